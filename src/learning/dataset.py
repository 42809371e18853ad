"""Slices as the network takes them: normalized, fitted into a square, augmented, in batches."""

import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, cast

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.command import interrupt_held_back
from scans.intensity import NONE, Normalization
from scans.slices import read_image, read_mask, slice_path

if TYPE_CHECKING:
    import albumentations  # slow to import, and not needed for prediction

STRIDE = 32  # the encoder halves a slice five times
MOST_WORKERS = 16
# A slice is too small to be shared among threads: they would only take cores from the network.
cv2.setNumThreads(1)

# Processes that load slices; `auto`: one for each core.
Workers = Annotated[int, Field(ge=0)] | Literal["auto"]

# Which slice an item is: epoch, position, and how often that epoch had drawn the slice before.
Key = tuple[int, int, int]
# A fitted scan (S, S, 3), its fitted mask (S, S), the mask at its own size (H, W), the slice's id.
Item = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_], str]


class Batch(NamedTuple):
    """Slices of one batch, N of them; S is the image size rounded up to a multiple of 32."""

    images: torch.Tensor  # (N, S, S, 3) uint8
    masks: torch.Tensor  # (N, S, S) uint8, 1 on tumor
    own_masks: list[NDArray[np.bool_]]  # N of (H, W), as in the file
    slice_ids: list[str]


def fitted_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Return height and width scaled so that the longer one is `image_size`."""
    scale = image_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def padded_size(image_size: int) -> int:
    """Return `image_size` rounded up to a multiple of 32."""
    return -(-image_size // STRIDE) * STRIDE


def fit(pixels: NDArray[np.uint8], image_size: int, interpolation: int) -> NDArray[np.uint8]:
    """Return a scan or mask scaled to `image_size`, padded with 0 below and to the right.

    (H, W, ...) becomes (S, S, ...) with S = padded_size(image_size); unfit is the way back.
    """
    height, width = fitted_size(pixels.shape[0], pixels.shape[1], image_size)
    if (height, width) != pixels.shape[:2]:
        pixels = np.asarray(
            cv2.resize(pixels, (width, height), interpolation=interpolation), dtype=np.uint8
        )
    size = padded_size(image_size)
    margins = [(0, size - height), (0, size - width)] + [(0, 0)] * (pixels.ndim - 2)
    return np.pad(pixels, margins)


def unfit(logits: torch.Tensor, height: int, width: int, image_size: int) -> torch.Tensor:
    """Return logits (S, S) of a fitted slice at the slice's own size, (H, W), bilinear."""
    rows, columns = fitted_size(height, width, image_size)
    logits = logits[:rows, :columns]
    if (rows, columns) == (height, width):
        return logits
    scaled = torch.nn.functional.interpolate(
        logits[None, None].float(), (height, width), mode="bilinear", align_corners=False
    )
    return scaled[0, 0]


def slice_seed(seed: int, epoch: int, slice_id: str, n_before: int) -> int:
    """Return the seed of a slice's augmentation, in [0, 2**32).

    `n_before` is how often the epoch had drawn the slice before.
    """
    entropy = [seed, epoch, zlib.crc32(slice_id.encode()), n_before]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class SliceDataset(Dataset[Item]):
    """Scans and masks of the given slices, read and fitted one by one; without masks, empty ones.

    What augmentation draws follows from the seed, the epoch, the slice and how often the epoch had
    drawn it before, whichever worker loads it.
    """

    def __init__(
        self,
        images: Path,
        masks: Path | None,
        slice_ids: Sequence[str],
        *,
        image_size: int,
        normalization: Normalization = NONE,
        augment: "albumentations.Compose | None" = None,
        seed: int = 0,
    ) -> None:
        self.images, self.masks, self.slice_ids = images, masks, list(slice_ids)
        self.image_size, self.normalization = image_size, normalization
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.slice_ids)

    def __getitem__(self, key: Key) -> Item:
        epoch, position, n_before = key
        slice_id = self.slice_ids[position]
        image = read_image(slice_path(self.images, slice_id))
        own_mask = (
            read_mask(slice_path(self.masks, slice_id))
            if self.masks
            else np.zeros(image.shape[:2], dtype=np.bool_)
        )
        image = fit(self.normalization(image, slice_id), self.image_size, cv2.INTER_LINEAR)
        mask = fit(own_mask.view(np.uint8), self.image_size, cv2.INTER_NEAREST)
        if self.augment is not None:
            self.augment.set_random_seed(slice_seed(self.seed, epoch, slice_id, n_before))
            augmented = self.augment(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        return image, mask, own_mask, slice_id


def draw(rng: np.random.Generator, positions: NDArray[np.int64], n_drawn: int) -> NDArray[np.int64]:
    """Return so many of the positions at random, none a second time before each came once."""
    rounds = max(1, -(-n_drawn // len(positions)))
    return np.concatenate([rng.permutation(positions) for _ in range(rounds)])[:n_drawn]


def draw_share(
    rng: np.random.Generator, abnormal: NDArray[np.bool_], share: float
) -> NDArray[np.int64]:
    """Return positions of slices, as many as there are, that share of them abnormal.

    `abnormal` says which are, of which there is one at least.
    """
    if abnormal.all():
        return np.arange(len(abnormal))
    n_abnormal = round(share * len(abnormal))
    return np.concatenate(
        [
            draw(rng, np.flatnonzero(abnormal), n_abnormal),
            draw(rng, np.flatnonzero(~abnormal), len(abnormal) - n_abnormal),
        ]
    )


def repeats(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return of each position how often it stands earlier in the order."""
    return np.asarray(pd.Series(order).groupby(order).cumcount(), dtype=np.int64)


class BatchOrder(Sampler[list[Key]]):
    """The keys of an epoch's batches: in order, or shuffled from (seed, epoch).

    The last batch of a shuffled epoch is left out when it is not full, unless it is the only one:
    batch norm over a handful of slices would be noise. Several processes share each batch evenly:
    slice i of it goes to process i modulo `world_size`, and a remainder to none.

    With `abnormal_share`, a shuffled epoch draws as many slices anew, that share of them abnormal;
    `abnormal` says of each whether it is.
    """

    def __init__(
        self,
        n_slices: int,
        batch_size: int,
        *,
        seed: int | None = None,
        abnormal: NDArray[np.bool_] | None = None,
        abnormal_share: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n_slices, self.batch_size, self.seed, self.epoch = n_slices, batch_size, seed, 0
        self.abnormal, self.abnormal_share = abnormal, abnormal_share
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        if self.seed is None:
            return -(-self.n_slices // self.batch_size)
        return max(1, self.n_slices // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(self.n_slices)
        if self.seed is not None:
            rng = np.random.default_rng([self.seed, self.epoch])
            if self.abnormal is not None and self.abnormal_share is not None:
                order = draw_share(rng, self.abnormal, self.abnormal_share)
            order = rng.permutation(order)
        drawn = np.stack([order, repeats(order)], axis=1).tolist()
        for batch in range(len(self)):
            chosen = drawn[batch * self.batch_size : (batch + 1) * self.batch_size]
            shared = chosen[: len(chosen) // self.world_size * self.world_size]
            own = shared[self.rank :: self.world_size]
            yield [(self.epoch, position, n_before) for position, n_before in own]


def collate(items: list[Item]) -> Batch:
    """Return a batch; masks at their own sizes stay a list, for patients may differ."""
    images, masks, own_masks, slice_ids = zip(*items, strict=True)
    return Batch(
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(masks)),
        list(own_masks),
        list(slice_ids),
    )


def n_workers(workers: Workers) -> int:
    """Return the number of workers: with `auto`, this process's share of the machine's cores."""
    if workers != "auto":
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min((cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), MOST_WORKERS)


def leave_quietly(_: int) -> None:
    """Have a worker say nothing of a batch that nobody takes: its process of origin has ended."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


class Loader(DataLoader[Batch]):
    """A loader that Ctrl-C leaves between two batches alone, with its workers in order."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with interrupt_held_back():
            batches = super().__iter__()
        while True:
            with interrupt_held_back():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def loader(dataset: SliceDataset, order: BatchOrder, *, workers: Workers) -> Loader:
    """Return a loader of batches; the number of workers changes its speed and nothing else."""
    n_processes = n_workers(workers)
    return Loader(
        cast("Dataset[Batch]", dataset),  # what collate makes of it
        batch_sampler=order,
        collate_fn=collate,
        num_workers=n_processes,
        # Else they stop when the last batch is taken, which Ctrl-C waits for as well.
        persistent_workers=n_processes > 0 and order.seed is not None,
        worker_init_fn=leave_quietly,
        pin_memory=torch.cuda.is_available(),
        # Its own: by default a loader draws from the generator that dropout draws from, as often
        # as it starts workers.
        generator=torch.Generator(),
    )
