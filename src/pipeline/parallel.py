"""Work on many patients or slices at once, by processes or by threads."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm.contrib.concurrent import process_map

from pipeline.refusals import Refusal

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], title: str, unit: str = "patient"
) -> list[Result]:
    """Return what `work` makes of each item, in their order; in a terminal with a progress bar."""
    size = 32 if unit == "slice" else 1  # items that a process is handed at a time
    try:
        results: list[Result] = process_map(
            work,
            list(items),
            max_workers=n_threads(),
            chunksize=size,
            desc=title,
            unit=unit,
            disable=None,
        )
    except BrokenProcessPool:
        raise Refusal(
            f"{title}: one of the processes was killed, as a system short of memory kills the "
            "largest; close other programs, or take a machine with more memory, and repeat it"
        ) from None
    return results


def n_cores() -> int:
    """Return how many cores the system lets this process use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def n_threads() -> int:
    """Return how many threads or workers a process may have: its share of the cores.

    Those that the system lets it use, or fewer if OMP_NUM_THREADS says so, as it does in a task of
    Ray; processes that torchrun has started share them.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    n = min(n_cores(), int(asked)) if asked.isdigit() else n_cores()
    return max(1, n // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1, depth: int = 2
) -> Iterator[Result]:
    """Yield what `work` makes of each item, in their order, `depth` results ahead of the consumer.

    An error comes where its result would have come. Whoever stops early waits for what has begun
    and for nothing else.
    """
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > depth:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
