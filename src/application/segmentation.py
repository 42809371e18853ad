"""Segment the series of one patient: prepare slices, run the model, and build the mask."""

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

MOST_LOGIT = 30.0  # logits are clipped to this, because a float32 probability can be exactly 1


class Segmentation(NamedTuple):
    """A patient's axial slices, the model's result, and warnings."""

    flair: Series
    axial: Axial
    images: NDArray[np.uint8]  # (D, H, W, 3) normalized, channels as the model takes them
    missing: tuple[str, ...]  # sequences that are replaced by FLAIR
    levels: NDArray[np.uint8]  # (D, H, W), encoded probabilities: indices into PROBABILITIES
    mask: NDArray[np.bool_]  # (D, H, W)
    warnings: tuple[str, ...]
    sequences: tuple[str, str, str]  # the sequence of each channel

    @property
    def copies(self) -> list[int]:
        """Return the channels that hold a copy of FLAIR."""
        copied = (*self.missing, self.sequences[MAIN])
        return [n for n, name in enumerate(self.sequences) if n != MAIN and name in copied]

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Return the distance between slices, rows and columns in mm."""
        depth, height, width = (self.flair.voxel_size[axis] for axis in self.axial.axes)
        return depth, height, width


def normalized_slices(
    volumes: Mapping[str, NDArray[Any]], field: Field, model: ReleasedModel, warnings: list[str]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return the normalized sequences, (D, H, W, 3), and the names of missing ones.

    As in training, the statistics are computed over the field of view that the network sees.
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
                raise Refusal("FLAIR: all voxels in the field of view have the same value")
            warnings.append(f"{NAMES[name]}: all voxels in the field of view have the same value")
            missing.append(name)
            continue
        for image, values in zip(images, volumes[name], strict=True):
            image[..., channel] = normalized(values, statistics, model.input["normalize"])
    for name in missing:
        images[..., sequences.index(name)] = images[..., MAIN]
    return images, tuple(name for name in dict.fromkeys(sequences) if name in missing)


def slice_groups(numbers: Sequence[int], stride: int) -> list[NDArray[np.int64]]:
    """Group the positions of slices; the network sees the slices of a group as neighbors.

    A group has consecutive slice numbers without a gap, or every `stride`th of them if slices are
    thin, so that neighbors are as far apart as in training.
    """
    gaps = np.flatnonzero(np.diff(numbers) != 1) + 1
    parts = np.split(np.arange(len(numbers)), gaps)
    return [part[k::stride] for part in parts for k in range(min(stride, len(part)))]


def predicted_levels(
    images: NDArray[np.uint8],
    field: Field,
    model: ReleasedModel,
    groups: Sequence[NDArray[np.int64]],
    on_progress: Callable[[int], object],
) -> NDArray[np.uint8]:
    """Return the encoded probabilities (D, H, W) of normalized slices (D, H, W, 3)."""
    image_size = model.input["image_size"]
    height, width = images.shape[1:3]
    levels = np.empty(images.shape[:3], dtype=np.uint8)
    for group in groups:
        inputs = np.stack([field.fitted(image, image_size) for image in field.cut(images[group])])
        for index, probability in zip(group, model.probabilities(inputs, on_progress), strict=True):
            with np.errstate(divide="ignore"):
                logits = np.log(probability) - np.log1p(-probability)
            logits = logits.clip(-MOST_LOGIT, MOST_LOGIT)
            levels[index] = encode(field.restored(logits, height, width, image_size))
    return levels


def segment(
    series: Mapping[str, Series],
    model: ReleasedModel,
    *,
    numbers: Sequence[int] | None = None,
    threshold: float | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Segmentation:
    """Segment one patient; `series` has FLAIR and other available series by sequence.

    `numbers` are the slice numbers, if slices may be missing. `threshold` overrides the model's.
    """
    warnings: list[str] = []
    volumes, axial = on_one_grid(series, warnings)
    flair = series["flair"]
    spacing, *pixel = (flair.voxel_size[axis] for axis in axial.axes)
    tissue = volumes["flair"] > volumes["flair"].mean()
    field = choose_field(tissue, (pixel[0], pixel[1]), model.input["field_of_view_mm"])
    images, missing = normalized_slices(volumes, field, model, warnings)
    del volumes  # to free memory
    numbers = list(numbers or range(len(images)))
    groups = slice_groups(numbers, model.stride(spacing))
    levels = predicted_levels(images, field, model, groups, on_progress)
    share = model.description["component_share"]
    above = PROBABILITIES[levels] > (threshold or model.description["threshold"])
    mask = large_components(above, numbers, share=share)
    if missing:
        names = " and ".join(NAMES[name] for name in missing)
        warnings.append(
            f"no {names}: FLAIR is used instead; expect lower accuracy "
            f"({model.score_without(missing)})"
        )
    warnings += describe_scan(flair, images, tissue, field, (spacing, pixel[0], pixel[1]))
    if not mask.any():
        warnings.append("no tumor found")
    return Segmentation(
        flair, axial, images, missing, levels, mask, tuple(warnings), model.sequences
    )
