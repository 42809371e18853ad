"""Batches of slices: their order, their workers, and how they are put together."""

import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from learning.params import Workers
from learning.slice_dataset import Item, Key, SliceDataset

MOST_WORKERS = 16


class Batch(NamedTuple):
    """Slices of one batch, N of them; S is the image size rounded up to a multiple of 32."""

    images: torch.Tensor  # (N, S, S, 3) uint8
    masks: torch.Tensor  # (N, S, S) uint8, 1 on tumor
    own_masks: list[NDArray[np.bool_]]  # N of (H, W), as in the file
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


def prepare_worker(_: int) -> None:
    """Let a worker that cannot hand over a batch end, and one that is left alone end in silence.

    A worker whose batch does not fit into shared memory would print a traceback and go on, while
    the main process waits for that batch for ever; of a worker's death it learns within seconds.
    """

    def give_up(error: Exception, _: object) -> None:
        print(f"a batch could not be handed over: {error}", file=sys.stderr, flush=True)
        os._exit(1)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, trace)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(give_up)  # type: ignore[attr-defined]
    sys.excepthook = hook


@contextmanager
def delayed_interrupt() -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block; pressed twice, it takes effect at once.

    For work that must not stop halfway: processes that start, stop or exchange data.
    """
    usual, received = signal.getsignal(signal.SIGINT), []

    def remember(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, usual)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or usual is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if received:
        raise KeyboardInterrupt


class Loader(DataLoader[Batch]):
    """A loader that Ctrl-C leaves between two batches alone, with its workers in order."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with delayed_interrupt():
            batches = super().__iter__()
        while True:
            with delayed_interrupt():
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
        worker_init_fn=prepare_worker,
        pin_memory=torch.cuda.is_available(),
        # Its own: by default a loader draws from the generator that dropout draws from, as often
        # as it starts workers.
        generator=torch.Generator(),
    )
