"""Process many patients or slices in parallel, with processes or threads."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from pipeline.refusals import Refusal

Item = TypeVar("Item")
Result = TypeVar("Result")


def end_with_parent() -> None:
    """Make this worker process end when its parent does.

    By default it would wait forever for more work if its parent is killed.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item], title: str, unit: str = "patient"
) -> list[Result]:
    """Return `work(item)` of each item in order; in a terminal, show a progress bar."""
    items = list(items)
    size = 32 if unit == "slice" else 1  # items a process gets at a time
    try:
        with ProcessPoolExecutor(n_threads(), initializer=end_with_parent) as pool:
            done = pool.map(work, items, chunksize=size)
            return list(tqdm(done, desc=title, unit=unit, total=len(items), disable=None))
    except BrokenProcessPool:
        raise Refusal(
            f"{title}: a worker process was killed, probably because the system ran out of memory. "
            "Close other programs or use a machine with more memory, then run it again."
        ) from None


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def n_threads() -> int:
    """Return the number of threads or workers that this process may start.

    This is the number of cores, limited by OMP_NUM_THREADS, which Ray sets for its tasks. Processes
    that torchrun started share the cores equally.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    n = min(n_cores(), int(limit)) if limit.isdigit() else n_cores()
    return max(1, n // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int = 1, depth: int = 2
) -> Iterator[Result]:
    """Yield `work(item)` of each item in order, computed up to `depth` results ahead.

    An exception is raised in place of its result. A consumer that stops early waits only for items
    that have started.
    """
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
