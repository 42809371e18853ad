"""Measurement of time and memory for the benchmarks."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
import psutil


def memory(process: psutil.Process) -> int:
    """Return the bytes that a process and its children occupy, counting shared pages once.

    This needs proportional set sizes, which Linux reports. On other systems, shared pages count
    for every process.
    """
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    occupied = 0
    for member in family:
        try:
            sizes = member.memory_full_info()
        except psutil.Error:  # the process has just ended
            continue
        occupied += getattr(sizes, "pss", sizes.rss)
    return occupied


class PeakMemory:
    """The peak memory of a process and its children within a `with` block."""

    def __init__(self, pid: int, interval_s: float = 0.2) -> None:
        self.process, self.interval_s, self.bytes = psutil.Process(pid), interval_s, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def sample(self) -> None:
        """Sample the memory until the block ends."""
        while not self.ended.is_set():
            self.bytes = max(self.bytes, memory(self.process))
            self.ended.wait(self.interval_s)

    def __enter__(self) -> "PeakMemory":
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.ended.set()
        self.thread.join()


def run_command(command: Sequence[str], cwd: str) -> tuple[float, int]:
    """Return a command's seconds and peak memory in bytes; raise an error if it fails."""
    begin = time.perf_counter()
    process = psutil.Popen(command, cwd=cwd, stdout=-3, stderr=-3)
    with PeakMemory(process.pid, interval_s=0.02) as peak:
        code = process.wait()
    seconds = time.perf_counter() - begin
    if code:
        raise RuntimeError(f"{' '.join(command)} failed with exit code {code}")
    return seconds, peak.bytes


def growth(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return b of the least-squares fit of log cost = a + b log size; 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
