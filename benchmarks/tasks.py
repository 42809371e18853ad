"""Ray's overhead per task, and the memory of Ray's head as the number of queued tasks grows.

    python benchmarks/tasks.py --machines 1 2 4

The benchmark simulates each number of machines on this machine, with one core each, and runs tasks
that do nothing through pipeline.cluster, like the trainings of a study. The memory is that of the
head's processes and of this process, before and after `--listed` tasks are queued.
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


def do_nothing(item: int) -> int:
    """Return the item."""
    return item


def time_tasks(n_tasks: int) -> float:
    """Return the seconds until `n_tasks` tasks are done."""
    begin = time.perf_counter()
    done = list(cluster.outcomes(do_nothing, range(n_tasks), resources=cluster.Resources(1)))
    seconds = time.perf_counter() - begin
    if sorted(outcome.result for _, outcome in done) != list(range(n_tasks)):
        raise RuntimeError("not every task ran exactly once")
    return seconds


def memory(names: tuple[str, ...]) -> float:
    """Return the MiB of this process and of its child processes with one of the names."""
    family = psutil.Process().children(recursive=True)
    chosen = [process for process in family if process.is_running() and process.name() in names]
    return float(sum(p.memory_info().rss for p in [psutil.Process(), *chosen])) / 2**20


def queue_memory(n_tasks: int) -> tuple[float, float]:
    """Return the MiB of head and driver before and after `n_tasks` tasks are queued."""
    import ray

    head = ("gcs_server", "raylet")
    before = memory(head)
    waiting = ray.remote(do_nothing).options(num_cpus=1, resources={"nowhere": 1})
    references = [waiting.remote(number) for number in range(n_tasks)]
    time.sleep(5)
    after = memory(head)
    for reference in references:
        ray.cancel(reference)
    return before, after


def main() -> None:
    """Run the benchmark and print the results."""
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--listed", type=int, default=10_000, help="tasks that are queued")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for n_machines in arguments.machines:
        machines: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        for _ in range(n_machines - 1):
            machines.add_node(num_cpus=1)
        with cluster.connect(machines.address):
            time_tasks(10 * n_machines)  # starts the processes
            n_tasks = arguments.tasks
            times = [1000 * time_tasks(n_tasks) / n_tasks for _ in range(arguments.repeats)]
            print(
                f"machines: {n_machines}; {statistics.median(times):.2f} ms per task "
                f"({min(times):.2f} to {max(times):.2f}, {arguments.repeats} runs of {n_tasks})"
            )
            if n_machines == arguments.machines[0]:
                before, after = queue_memory(arguments.listed)
                per_task = 1024 * (after - before) / arguments.listed
                print(
                    f"head and driver: {before:.0f} MiB, with {arguments.listed} queued tasks "
                    f"{after:.0f} MiB, {per_task:.1f} KiB per task"
                )
        machines.shutdown()


if __name__ == "__main__":
    main()
