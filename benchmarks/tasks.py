"""What Ray costs for each task, and the memory of its head as tasks are listed.

    python benchmarks/tasks.py --machines 1 2 4

For each number of machines, simulated on this one with one core each, tasks that do nothing go
through pipeline.cluster as a study's trainings do. The memory is that of Ray's processes of the
head and of this one, while so many more tasks wait for a core.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from pipeline import cluster


def nothing(item: int) -> int:
    """Do nothing."""
    return item


def seconds_of(n_tasks: int) -> float:
    """Return the seconds until so many tasks are done."""
    begin = time.perf_counter()
    done = list(cluster.outcomes(nothing, range(n_tasks), resources=cluster.Resources(1)))
    seconds = time.perf_counter() - begin
    if sorted(outcome.result for _, outcome in done) != list(range(n_tasks)):
        raise RuntimeError("not every task was done once")
    return seconds


def memory(names: tuple[str, ...]) -> float:
    """Return the MiB of this process, and of those of these names that it has started."""
    family = psutil.Process().children(recursive=True)
    chosen = [each for each in family if each.is_running() and each.name() in names]
    return float(sum(each.memory_info().rss for each in [psutil.Process(), *chosen])) / 2**20


def listed_memory(n_tasks: int) -> tuple[float, float]:
    """Return the MiB of head and driver before so many tasks are listed, and with all of them."""
    import ray

    head = ("gcs_server", "raylet")
    before = memory(head)
    waiting = ray.remote(nothing).options(num_cpus=1, resources={"nowhere": 1})
    references = [waiting.remote(number) for number in range(n_tasks)]
    time.sleep(5)
    after = memory(head)
    for reference in references:
        ray.cancel(reference)
    return before, after


def main() -> None:
    """Measure and print."""
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    for n_machines in asked.machines:
        made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(n_machines - 1):
            made.add_node(num_cpus=1)
        with cluster.connect(made.address):
            seconds_of(10 * n_machines)  # which starts the processes
            each = [seconds_of(asked.tasks) / asked.tasks for _ in range(asked.repeats)]
            times = f"{1000 * min(each):.2f} to {1000 * max(each):.2f}"
            print(
                f"{n_machines} machines: {1000 * statistics.median(each):.2f} ms a task ({times}, "
                f"{asked.repeats} times {asked.tasks})"
            )
            if n_machines == asked.machines[0]:
                before, after = listed_memory(asked.listed)
                print(
                    f"head and driver: {before:.0f} MiB, with {asked.listed} tasks listed "
                    f"{after:.0f} MiB, {1024 * (after - before) / asked.listed:.1f} KiB a task"
                )
        made.shutdown()


if __name__ == "__main__":
    main()
