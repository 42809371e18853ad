"""Work on the cores, GPUs and machines that Ray has: many items, each computed once.

Ray (requirements-cluster.txt) is optional, and imported where it is used. It decides what runs
where, and repeats what is lost with a machine or a process. What fails for a reason of its own is
not repeated, and stops nothing else.
"""

import importlib.util
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

from pipeline.parallel import n_cores
from pipeline.refusals import Refusal, refuse

Item = TypeVar("Item")
Result = TypeVar("Result")

REPEATS = 3  # of an item whose process or machine is lost
TIMEOUT = 10.0  # seconds in which a cluster has to answer
POLL = 0.5  # seconds between two looks at what has been done
STORE = 2**29  # bytes of shared memory for what is handed over, where Ray is started here
# How often Ray repeats what it has ended itself to save memory; by default without end.
MEMORY_REPEATS = {"RAY_task_oom_retries": str(REPEATS)}
# Ray that is started here listens on the loopback interface alone (the variable is named after the
# systems where that is the default), asks for a token, and reports to nobody.
PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
HINT = (
    "Name the address that `ray start --head` printed, as host:port, or auto on a machine of the "
    "cluster; where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
)


class Share(NamedTuple):
    """What one item is given of a machine."""

    cpus: float
    gpus: float = 0


class Outcome(NamedTuple):
    """What came of an item: a result, or why there is none."""

    result: Any
    error: str = ""


def is_installed() -> bool:
    """Return whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def refuse_unreachable(address: str) -> None:
    """Refuse an address where nothing answers: Ray itself would wait for it without end."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise Refusal(f"no Ray cluster answers at {address} ({error}). {HINT}") from None


@contextmanager
def joined(address: str | None) -> Iterator[None]:
    """Join a Ray cluster for the block; without an address, start Ray on this machine alone."""
    if not is_installed():
        raise Refusal("Ray is not installed: `pip install --requirement requirements-cluster.txt`")
    started = address in (None, "local")
    os.environ |= MEMORY_REPEATS
    if started:
        os.environ |= {**PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif address != "auto":
        refuse_unreachable(str(address))
    import ray

    own = {"include_dashboard": False, "num_cpus": n_cores(), "object_store_memory": STORE}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **(own if started else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Refusal(
            f"no Ray cluster can be joined at {address}: {first_line(error)} {HINT}"
        ) from None
    ship(sys.modules[__name__])
    try:
        yield
    except ray.exceptions.RayError as error:
        raise Refusal(f"the Ray cluster was lost: {first_line(error)}") from None
    finally:
        ray.shutdown()


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """Yield a new file in a folder, by which other machines know that they see the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".{secrets.token_hex(8)}.partial"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def ship(module: ModuleType) -> None:
    """Let a module's functions travel as code: machines need not have its file."""
    import ray

    ray.cloudpickle.register_pickle_by_value(module)


def machines() -> list[dict[str, Any]]:
    """Return the machines of the cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def name_of(machine: dict[str, Any]) -> str:
    """Return the name by which a person knows a machine."""
    return f"{machine['NodeManagerHostname']} ({machine['NodeManagerAddress']})"


def usual_share(cpus: float | None, gpus: float | None) -> Share:
    """Return what an item gets where it is not said: a GPU with its part of the cores, or one core.

    Refuses what no machine of the cluster has.
    """
    have = [
        Share(each["Resources"].get("CPU", 0), each["Resources"].get("GPU", 0))
        for each in machines()
    ]
    if gpus is None:
        gpus = float(any(each.gpus for each in have))
    if cpus is None:
        parts = [each.cpus * gpus / each.gpus for each in have if gpus and each.gpus >= gpus]
        cpus = float(max(1, int(min(parts, default=1))))
    if not any(each.cpus >= cpus and each.gpus >= gpus for each in have):
        refuse(
            [
                f"no machine of the cluster has {cpus:g} cores and {gpus:g} GPUs; it has:",
                *(
                    f"  {name_of(machine)}: {each.cpus:g} cores, {each.gpus:g} GPUs"
                    for machine, each in zip(machines(), have, strict=True)
                ),
            ],
            "Ask for less, or start Ray on another machine first.",
        )
    return Share(cpus, gpus)


def on_each_machine(look: Callable[..., Result], *arguments: Any) -> list[tuple[str, Result]]:
    """Return what a function returns on every machine, with the machine's name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = machines()
    looks = [
        ray.remote(look)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False),
        )
        .remote(*arguments)
        for machine in nodes
    ]
    return list(zip(map(name_of, nodes), ray.get(looks), strict=True))


def common(value: object) -> Any:
    """Return a reference to a value that many items are given: it is sent to a machine once."""
    import ray

    return ray.put(value)


class Told:
    """What tasks have reported since the last look: an actor on the machine of the command."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, what: Any) -> None:
        """Add something."""
        self.told.append(what)

    def take(self) -> list[Any]:
        """Return what there is, in its order, and forget it."""
        told, self.told = self.told, []
        return told


class Listener:
    """Brings to this process what tasks report on any machine."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = ray.remote(Told).options(num_cpus=0, scheduling_strategy=here).remote()

    def take(self) -> list[Any]:
        """Return what was reported since the last time."""
        import ray

        told: list[Any] = ray.get(self.actor.take.remote())
        return told


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; Ray's have many."""
    return str(error).strip().partition("\n")[0]


def outcome(reference: Any) -> Outcome:
    """Return what came of an item that is done."""
    import ray

    try:
        return Outcome(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return Outcome(None, f"{type(error.cause).__name__}: {first_line(error.cause)}")
    except (
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.WorkerCrashedError,
    ) as error:
        reason = first_line(error)
        return Outcome(None, f"lost {REPEATS + 1} times, with its process or machine: {reason}")
    except ray.exceptions.RayError as error:
        return Outcome(None, f"{type(error).__name__}: {first_line(error)}")


def outcomes(
    work: Callable[..., Any],
    items: Iterable[Item],
    *shared: Any,
    share: Share,
    meanwhile: Callable[[], object] = lambda: None,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Yield each item with what `work(item, *shared)` came to, in the order in which they end.

    An item is repeated if its process or machine is lost, or if `work` raises ChildProcessError.
    `meanwhile` is called about twice a second. Closing the generator cancels what is not done.
    """
    import ray

    task = ray.remote(work).options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_retries=REPEATS,
        retry_exceptions=[ChildProcessError],
        scheduling_strategy="SPREAD",
    )
    waiting = {task.remote(item, *shared): item for item in items}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=POLL, fetch_local=False)
            meanwhile()
            for reference in done:
                yield waiting.pop(reference), outcome(reference)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
