"""Batches of train slices: their order, their content, and the data loader that prepares them."""

import multiprocessing.queues
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from learning.params import Workers
from pipeline.parallel import n_threads, prefetch
from scans.fitted import FittedSlices

if TYPE_CHECKING:
    import albumentations  # at run time, learning.augmentation imports it with its settings

MAX_WORKERS = 16

# Identifies a slice in a batch: epoch, place in the epoch's order, position in the table.
Key = tuple[int, int, int]


class TrainBatch(NamedTuple):
    """A batch of N slices, each with its context; S is defined in scans/fitting.py."""

    images: torch.Tensor  # (N, K, S, S, 3) uint8; K is 1, or 3 with both neighbors
    masks: torch.Tensor  # (N, S, S) uint8, 1 on tumor
    slice_ids: list[str]


def draw(rng: np.random.Generator, positions: NDArray[np.int64], n_drawn: int) -> NDArray[np.int64]:
    """Return `n_drawn` random positions; none is repeated before every position was drawn once."""
    rounds = max(1, -(-n_drawn // len(positions)))
    return np.concatenate([rng.permutation(positions) for _ in range(rounds)])[:n_drawn]


def draw_share(
    rng: np.random.Generator, abnormal: NDArray[np.bool_], share: float
) -> NDArray[np.int64]:
    """Return as many positions as there are slices, a fraction `share` of them abnormal.

    `abnormal` marks the abnormal slices; at least one must be.
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


class BatchOrder:
    """The keys of an epoch's batches, in an order drawn from (seed, epoch).

    An incomplete last batch is dropped, unless it is the only one: batch norm over a handful of
    slices would be noise. Several processes share each batch evenly: slice i goes to process
    i modulo `world_size`, and slices that cannot be shared evenly are dropped.

    With `abnormal_share`, an epoch still has `n_slices` slices, but this fraction of them is
    abnormal. `abnormal` marks the abnormal slices.
    """

    def __init__(
        self,
        n_slices: int,
        batch_size: int,
        *,
        seed: int,
        abnormal: NDArray[np.bool_] | None = None,
        abnormal_share: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n_slices, self.batch_size, self.seed, self.epoch = n_slices, batch_size, seed, 0
        self.abnormal, self.abnormal_share = abnormal, abnormal_share
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return max(1, self.n_slices // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        order, rng = np.arange(self.n_slices), np.random.default_rng([self.seed, self.epoch])
        if self.abnormal is not None and self.abnormal_share is not None:
            order = draw_share(rng, self.abnormal, self.abnormal_share)
        keys = [(self.epoch, *key) for key in enumerate(rng.permutation(order).tolist())]
        for begin in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = keys[begin : begin + self.batch_size]
            shared = chosen[: len(chosen) // self.world_size * self.world_size]
            yield shared[self.rank :: self.world_size]


def augmentation_seed(seed: int, epoch: int, place: int) -> int:
    """Return the augmentation seed for a place in an epoch's order, in [0, 2**32)."""
    return int(np.random.SeedSequence([seed, epoch, place]).generate_state(1)[0])


class BatchMaker:
    """Assembles batches from fitted slices.

    The augmentation depends on the seed, the epoch and the place in its order, not on the worker
    that makes the batch.
    """

    def __init__(
        self,
        fitted: FittedSlices,
        *,
        context: int = 0,
        augment: "albumentations.Compose | None" = None,
        seed: int = 0,
    ) -> None:
        self.fitted, self.augment, self.seed = fitted, augment, seed
        positions, (before, after) = np.arange(len(fitted)), fitted.slices.neighbors.T
        # For each slice, the positions of itself and its neighbors, by their augmentation targets.
        self.views = {"image": positions}
        if context:
            self.views = {"before": before, "image": positions, "after": after}

    def __getitem__(self, keys: list[Key]) -> TrainBatch:
        images, masks, ids = [], [], []
        for epoch, place, position in keys:
            ids.append(self.fitted.slices.ids[position])
            pixels = {
                name: np.asarray(self.fitted.images[positions[position]])
                for name, positions in self.views.items()
            }
            pixels["mask"] = np.asarray(self.fitted.masks[position])
            if self.augment is not None:
                self.augment.set_random_seed(augmentation_seed(self.seed, epoch, place))
                pixels = self.augment(**pixels)
            images.append(np.stack([pixels[name] for name in self.views]))
            masks.append(pixels["mask"])
        return TrainBatch(
            torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), ids
        )


def prepare_worker(_: int) -> None:
    """Make a data loader worker exit if it cannot pass a batch to the main process.

    By default, a worker whose batch does not fit into shared memory prints a traceback and
    continues, while the main process waits forever for that batch. The main process notices a
    worker's exit within seconds.
    """

    def give_up(error: Exception, _: object) -> None:
        print(
            f"a data loader worker could not send a batch to the main process: {error}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(0)  # any other status makes PyTorch raise wherever the main process happens to be

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(give_up)  # type: ignore[attr-defined]


class Batches:
    """The batches of an epoch, prepared in advance: by a thread for a CPU, by workers for a GPU.

    The number of workers changes the speed, not the batches.
    """

    def __init__(
        self, maker: BatchMaker, order: BatchOrder, *, device: torch.device, workers: Workers
    ) -> None:
        self.maker, self.order = maker, order
        n_workers = min(n_threads(), MAX_WORKERS) if workers == "auto" else workers
        self.loader: DataLoader[TrainBatch] | None = (
            DataLoader(
                maker,  # type: ignore[arg-type]  # it has the methods of a map-style data set
                batch_size=None,
                sampler=order,
                num_workers=n_workers,
                persistent_workers=True,
                collate_fn=TrainBatch._make,
                worker_init_fn=prepare_worker,
                pin_memory=torch.cuda.is_available(),
                # By default, the data loader would draw from the same generator as dropout.
                generator=torch.Generator(),
            )
            if device.type == "cuda" and n_workers
            else None
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[TrainBatch]:
        return iter(self.loader or prefetch(self.maker.__getitem__, self.order))
