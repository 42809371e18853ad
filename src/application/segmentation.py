"""From the series of one patient to a mask: prepared, shown to the model, and brought back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from application.field import Field, choose_field
from application.model import ReleasedModel
from application.warnings import describe_scan
from pipeline.refusals import Refusal
from scans.alignment import on_one_grid
from scans.intensity import distinct, normalized, tissue_statistics
from scans.probability_maps import PROBABILITIES, encode
from scans.sequences import MAIN, NAMES
from scans.series import Axial, Series
from scans.volume import large_components

MOST_LOGIT = 30.0  # of a probability that is 1 in 32 bits


class Segmentation(NamedTuple):
    """A patient's axial slices, what the model made of them, and what to be warned of."""

    flair: Series
    axial: Axial
    images: NDArray[np.uint8]  # (D, H, W, 3) normalized, channels as the model takes them
    missing: tuple[str, ...]  # sequences that FLAIR stands in for
    levels: NDArray[np.uint8]  # (D, H, W) of probability; PROBABILITIES says what they mean
    mask: NDArray[np.bool_]  # (D, H, W)
    warnings: tuple[str, ...]
    sequences: tuple[str, str, str]  # of the channels

    @property
    def copies(self) -> list[int]:
        """Return the channels in which FLAIR stands in for another sequence, or fills up."""
        copied = (*self.missing, self.sequences[MAIN])
        return [n for n, name in enumerate(self.sequences) if n != MAIN and name in copied]

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Return mm between slices, rows and columns."""
        depth, height, width = (self.flair.voxel_size[axis] for axis in self.axial.axes)
        return depth, height, width


def normalized_slices(
    volumes: Mapping[str, NDArray[Any]], field: Field, model: ReleasedModel, warnings: list[str]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return all sequences normalized, (D, H, W, 3), and which are missing.

    The statistics are those of the field that the network is shown, as in the training.
    """
    sequences = model.sequences
    images = np.empty((*volumes["flair"].shape, len(sequences)), dtype=np.uint8)
    missing = [name for name in dict.fromkeys(sequences) if name not in volumes]
    for channel, name in enumerate(sequences):
        if name in missing:
            continue
        statistics = tissue_statistics(*distinct(field.cut(volumes[name])))
        if not statistics["tissue_p99"] > 0:
            if name == "flair":
                raise Refusal("FLAIR: all voxels in the field of view are alike")
            warnings.append(f"{NAMES[name]}: all voxels in the field of view are alike")
            missing.append(name)
            continue
        for image, values in zip(images, volumes[name], strict=True):
            image[..., channel] = normalized(values, statistics, model.takes["normalize"])
    for name in missing:
        images[..., sequences.index(name)] = images[..., MAIN]
    return images, tuple(name for name in dict.fromkeys(sequences) if name in missing)


def runs(numbers: Sequence[int], stride: int) -> list[NDArray[np.int64]]:
    """Return the positions of slices that are shown to the network together, in order.

    Those whose numbers follow each other without a gap; and of thin slices every `stride`th, so
    that neighbors are as far apart as they were in the training.
    """
    gaps = np.flatnonzero(np.diff(numbers) != 1) + 1
    parts = np.split(np.arange(len(numbers)), gaps)
    return [part[k::stride] for part in parts for k in range(min(stride, len(part)))]


def predicted_levels(
    images: NDArray[np.uint8],
    field: Field,
    model: ReleasedModel,
    groups: Sequence[NDArray[np.int64]],
    step: Callable[[int], object],
) -> NDArray[np.uint8]:
    """Return the levels of probability of slices, (D, H, W), from normalized ones (D, H, W, 3)."""
    image_size = model.takes["image_size"]
    height, width = images.shape[1:3]
    levels = np.empty(images.shape[:3], dtype=np.uint8)
    for places in groups:
        shown = [field.fitted(each, image_size) for each in field.cut(images[places])]
        for place, answer in zip(places, model.probabilities(np.stack(shown), step), strict=True):
            with np.errstate(divide="ignore"):
                logits = np.log(answer) - np.log1p(-answer)
            logits = logits.clip(-MOST_LOGIT, MOST_LOGIT)
            levels[place] = encode(field.restored(logits, height, width, image_size))
    return levels


def segment(
    series: Mapping[str, Series],
    model: ReleasedModel,
    *,
    numbers: Sequence[int] | None = None,
    threshold: float | None = None,
    step: Callable[[int], object] = lambda _: None,
) -> Segmentation:
    """Segment one patient; `series` has FLAIR and what else there is, by their names.

    `numbers` are those of the slices where some may be missing. `threshold` replaces the model's.
    """
    warnings: list[str] = []
    volumes, axial = on_one_grid(series, warnings)
    flair = series["flair"]
    spacing, *pixel = (flair.voxel_size[axis] for axis in axial.axes)
    tissue = volumes["flair"] > volumes["flair"].mean()
    field = choose_field(tissue, (pixel[0], pixel[1]), model.takes["field_of_view_mm"])
    images, missing = normalized_slices(volumes, field, model, warnings)
    del volumes  # which may be large
    places = list(numbers or range(len(images)))
    levels = predicted_levels(images, field, model, runs(places, model.stride(spacing)), step)
    share = model.description["component_share"]
    above = PROBABILITIES[levels] > (threshold or model.description["threshold"])
    mask = large_components(above, places, share=share)
    if missing:
        names = " and ".join(NAMES[name] for name in missing)
        warnings.append(
            f"no {names}: FLAIR stands in; expect less ({model.score_without(missing)})"
        )
    warnings += describe_scan(flair, images, tissue, field, (spacing, pixel[0], pixel[1]))
    if not mask.any():
        warnings.append("no tumor found")
    return Segmentation(
        flair, axial, images, missing, levels, mask, tuple(warnings), model.sequences
    )
