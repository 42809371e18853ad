"""Batches of train slices: their order, how they are put together, and who does that when."""

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
    import albumentations  # learning.augmentation imports it, with its settings

MOST_WORKERS = 16

# Which slice an item of a batch is: the epoch, its place in the epoch's order, its table position.
Key = tuple[int, int, int]


class TrainBatch(NamedTuple):
    """Slices of one batch, N of them, each with its context; S as in scans/fitting.py."""

    images: torch.Tensor  # (N, K, S, S, 3) uint8; K is 1, or 3 with the slices before and after
    masks: torch.Tensor  # (N, S, S) uint8, 1 on tumor
    slice_ids: list[str]


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


class BatchOrder:
    """The keys of an epoch's batches, shuffled from (seed, epoch).

    The last batch of an epoch is left out when it is not full, unless it is the only one: batch
    norm over a handful of slices would be noise. Several processes share each batch evenly:
    slice i of it goes to process i modulo `world_size`, and a remainder to none.

    With `abnormal_share`, an epoch still has `n_slices` slices, but they are drawn so that this
    share of them is abnormal. `abnormal` tells which slices are.
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
    """Return the seed of what augmentation draws for a place in an epoch's order, in [0, 2**32)."""
    return int(np.random.SeedSequence([seed, epoch, place]).generate_state(1)[0])


class BatchMaker:
    """Puts batches together from fitted slices.

    What augmentation draws follows from the seed, the epoch and the place in its order, whoever
    makes the batch.
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
        own, (before, after) = np.arange(len(fitted)), fitted.slices.around.T
        # Positions of the slices that are shown with each one, by their names in augmentation.
        self.shown = {"before": before, "image": own, "after": after} if context else {"image": own}

    def __getitem__(self, keys: list[Key]) -> TrainBatch:
        images, masks, ids = [], [], []
        for epoch, place, position in keys:
            ids.append(self.fitted.slices.ids[position])
            pixels = {
                name: np.asarray(self.fitted.images[places[position]])
                for name, places in self.shown.items()
            }
            pixels["mask"] = np.asarray(self.fitted.masks[position])
            if self.augment is not None:
                self.augment.set_random_seed(augmentation_seed(self.seed, epoch, place))
                pixels = self.augment(**pixels)
            images.append(np.stack([pixels[name] for name in self.shown]))
            masks.append(pixels["mask"])
        return TrainBatch(
            torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks)), ids
        )


def prepare_worker(_: int) -> None:
    """Let a worker that cannot hand over a batch end.

    One whose batch does not fit into shared memory would print a traceback and go on, while the
    main process waits for that batch for ever; of a worker's death it learns within seconds.
    """

    def give_up(error: Exception, _: object) -> None:
        print(f"a batch could not be handed over: {error}", file=sys.stderr, flush=True)
        os._exit(0)  # for any other status, PyTorch raises an error wherever the main process is

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(give_up)  # type: ignore[attr-defined]


class Batches:
    """The batches of an epoch, made ahead: for a CPU by a thread, for a GPU by processes.

    How many workers there are changes the speed and nothing else.
    """

    def __init__(
        self, maker: BatchMaker, order: BatchOrder, *, device: torch.device, workers: Workers
    ) -> None:
        self.maker, self.order = maker, order
        n_workers = min(n_threads(), MOST_WORKERS) if workers == "auto" else workers
        self.loader: DataLoader[TrainBatch] | None = (
            DataLoader(
                maker,  # type: ignore[arg-type]  # it has what a map-style data set needs
                batch_size=None,
                sampler=order,
                num_workers=n_workers,
                persistent_workers=True,
                collate_fn=TrainBatch._make,
                worker_init_fn=prepare_worker,
                pin_memory=torch.cuda.is_available(),
                # Its own: by default a loader draws from the generator that dropout draws from.
                generator=torch.Generator(),
            )
            if device.type == "cuda" and n_workers
            else None
        )

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[TrainBatch]:
        return iter(self.loader or prefetch(self.maker.__getitem__, self.order))
