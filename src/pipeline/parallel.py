"""Work on many patients or slices at once, in as many processes as there are cores."""

from collections.abc import Callable, Iterable
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
            work, list(items), chunksize=size, desc=title, unit=unit, disable=None
        )
    except BrokenProcessPool:
        raise Refusal(
            f"{title}: one of the processes was killed, as a system short of memory kills the "
            "largest; close other programs, or take a machine with more memory, and repeat it"
        ) from None
    return results
