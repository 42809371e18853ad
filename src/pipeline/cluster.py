"""Run a function on many items with Ray: on this machine's cores and GPUs, or on a cluster.

Ray is optional (requirements-cluster.txt), so this module imports it only inside functions. Ray
schedules the work and retries an item whose process or machine is lost. An exception in the work
itself is not retried and does not stop the other items.
"""

import importlib.util
import logging
import os
import secrets
import signal
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

RETRIES = 3  # of an item whose process or machine is lost
TIMEOUT = 10.0  # seconds to wait for a cluster to answer
POLL_INTERVAL = 0.5  # seconds
OBJECT_STORE = 2**29  # bytes of shared memory for a local Ray's object store
# By default, Ray retries a task without limit after killing it to save memory.
OUT_OF_MEMORY_RETRIES = {"RAY_task_oom_retries": str(RETRIES)}
# A local Ray listens only on the loopback interface (the variable is named after the systems where
# that is the default), requires a token, and sends no usage statistics.
LOCAL_SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
HINT = (
    "Give the address that `ray start --head` printed, as host:port, or auto on a machine of the "
    "cluster. If the cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
)


class Resources(NamedTuple):
    """The CPU cores and GPUs of a machine, or those reserved for one item."""

    cpus: float
    gpus: float = 0


class Outcome(NamedTuple):
    """The result of an item, or the error that prevented it."""

    result: Any
    error: str = ""


def is_installed() -> bool:
    """Return whether Ray can be imported."""
    return importlib.util.find_spec("ray") is not None


def check_reachable(address: str) -> None:
    """Raise an error if nothing answers at an address; Ray itself would wait forever."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise Refusal(f"no Ray cluster answers at {address} ({error}). {HINT}") from None


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster for the block; without an address, start Ray on this machine."""
    if not is_installed():
        raise Refusal(
            "Ray is not installed. Run `pip install --requirement requirements-cluster.txt`."
        )
    is_local = address in (None, "local")
    os.environ |= OUT_OF_MEMORY_RETRIES
    if is_local:
        os.environ |= {**LOCAL_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    elif address != "auto":
        check_reachable(str(address))
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    local = {"include_dashboard": False, "num_cpus": n_cores(), "object_store_memory": OBJECT_STORE}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **(local if is_local else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise Refusal(
            f"cannot connect to Ray at {'this machine' if is_local else address}: "
            f"{first_line(error).rstrip('.')}. {HINT}"
        ) from None
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has replaced the handler
    pickle_by_value(sys.modules[__name__])
    try:
        yield
    except ray.exceptions.RayError as error:
        raise Refusal(f"lost the connection to the Ray cluster: {first_line(error)}") from None
    finally:
        ray.shutdown()


@contextmanager
def marker_file(folder: Path) -> Iterator[Path]:
    """Create a file in a folder for the block: machines that see it share the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".{secrets.token_hex(8)}.partial"
    marker.touch()
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def pickle_by_value(module: ModuleType) -> None:
    """Send a module's functions to other machines as code, so that they do not need its file."""
    import ray

    ray.cloudpickle.register_pickle_by_value(module)


def machines() -> list[dict[str, Any]]:
    """Return the machines of the cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def machine_name(machine: dict[str, Any]) -> str:
    """Return a machine's host name and address, for messages."""
    return f"{machine['NodeManagerHostname']} ({machine['NodeManagerAddress']})"


def resources_per_item(cpus: float | None, gpus: float | None) -> Resources:
    """Return the resources to reserve for an item, with defaults for values that are None.

    The default is one GPU with its share of the machine's cores, or one core if no machine has a
    GPU. Raises an error if no machine of the cluster has enough.
    """
    available = [
        Resources(machine["Resources"].get("CPU", 0), machine["Resources"].get("GPU", 0))
        for machine in machines()
    ]
    if gpus is None:
        gpus = float(any(machine.gpus for machine in available))
    if cpus is None:
        cores = [
            machine.cpus * gpus / machine.gpus
            for machine in available
            if gpus and machine.gpus >= gpus
        ]
        cpus = float(max(1, int(min(cores, default=1))))
    if not any(machine.cpus >= cpus and machine.gpus >= gpus for machine in available):
        refuse(
            [
                "no machine of the cluster is large enough: "
                f"requested cores: {cpus:g}, GPUs: {gpus:g}. Found:",
                *(
                    f"  {machine_name(machine)}: cores: {found.cpus:g}, GPUs: {found.gpus:g}"
                    for machine, found in zip(machines(), available, strict=True)
                ),
            ],
            "Request fewer, or start Ray on another machine first.",
        )
    return Resources(cpus, gpus)


def run_on_each_machine(
    function: Callable[..., Result], *arguments: Any
) -> list[tuple[str, Result]]:
    """Call a function on every machine; return pairs of the machine's name and the result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = machines()
    references = [
        ray.remote(function)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False),
        )
        .remote(*arguments)
        for machine in nodes
    ]
    return list(zip(map(machine_name, nodes), ray.get(references), strict=True))


def broadcast(value: object) -> Any:
    """Return a reference to a value that many items use; Ray sends it to each machine once."""
    import ray

    return ray.put(value)


class Mailbox:
    """The actor of a MessageQueue. It collects messages in the order in which they arrive."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def put(self, message: Any) -> None:
        """Add a message."""
        self.messages.append(message)

    def take(self) -> list[Any]:
        """Return the messages and clear the list."""
        messages, self.messages = self.messages, []
        return messages


class MessageQueue:
    """Messages from tasks on any machine to this process; tasks call `actor.put.remote`."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()

    def take(self) -> list[Any]:
        """Return the messages since the last call."""
        import ray

        messages: list[Any] = ray.get(self.actor.take.remote())
        return messages


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; Ray's messages have many."""
    return str(error).strip().partition("\n")[0]


def outcome(reference: Any) -> Outcome:
    """Return the outcome of an item that is done."""
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
        return Outcome(None, f"its process or machine was lost {RETRIES + 1} times: {reason}")
    except ray.exceptions.RayError as error:
        return Outcome(None, f"{type(error).__name__}: {first_line(error)}")


def outcomes(
    work: Callable[..., Any],
    items: Iterable[Item],
    *shared: Any,
    resources: Resources,
    on_poll: Callable[[], object] = lambda: None,
) -> Generator[tuple[Item, Outcome], None, None]:
    """Yield each item with the outcome of `work(item, *shared)`, in order of completion.

    An item is retried if its process or machine is lost, or if `work` raises ChildProcessError.
    `on_poll` is called about twice a second. Closing the generator cancels unfinished items.
    """
    import ray

    task = ray.remote(work).options(
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        max_retries=RETRIES,
        retry_exceptions=[ChildProcessError],
        scheduling_strategy="SPREAD",
    )
    waiting = {task.remote(item, *shared): item for item in items}
    try:
        while waiting:
            done, _ = ray.wait(list(waiting), timeout=POLL_INTERVAL, fetch_local=False)
            on_poll()
            for reference in done:
                yield waiting.pop(reference), outcome(reference)
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
