"""Run one training of the study on any machine.

The machine does not need the project: the training makes a copy of it (a clone of one commit) and
runs the DVC graph there. As a script, this module runs a command and stops it when the parent
process ends:

    python study/task.py FOLDER COMMAND...
"""

import fcntl
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

SCRATCH_PREFIX = "study-"  # of temporary folders
LOCK = "in-use"  # name of the lock file in each
MODEL = "models/unet.safetensors"
GRACE_PERIOD = 10.0  # seconds between interrupting a command and killing it
PUSH_ATTEMPTS = 3
KILL_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
KILLED_EXIT_CODES = {code for number in KILL_SIGNALS for code in (-number, 128 + number)}


class Source(NamedTuple):
    """What a machine needs to make a copy of the project."""

    commit: bytes  # tar archive of a Git repository with only that commit
    prefix: str  # path of the project in the repository
    config: str  # .dvc/config.local, with full paths of remotes
    dvc_folder: str  # .dvc of the checkout that runs the study
    cache: str
    marker: str  # name of a file in the cache; a machine that sees it shares the cache
    inputs: list[str]  # paths in the cache of the data that trainings read


def has_inputs(cache: str, marker: str, inputs: list[str]) -> bool:
    """Return whether this machine shares the cache and the cache contains all inputs."""
    return all((Path(cache) / path).exists() for path in (marker, *inputs))


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a new temporary folder; remove the folders of killed processes.

    Each process locks a file in its folder while it is alive.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{SCRATCH_PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open() as file:  # may be locked or belong to another user
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, ignore_cleanup_errors=True) as folder,
        (Path(folder) / "new").open("w") as file,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        (Path(folder) / "new").rename(Path(folder) / LOCK)
        copy = Path(folder) / "copy"
        copy.mkdir()
        yield copy


def make_copy(source: Source, folder: Path) -> Path:
    """Check out the commit in a folder; return the path of the project."""
    with tarfile.open(fileobj=io.BytesIO(source.commit)) as archive:
        archive.extractall(folder, filter="data")
    project = folder / source.prefix
    git(folder, "checkout", "--quiet", "--force", "HEAD")
    (project / ".dvc/config.local").write_text(source.config, encoding="utf-8")
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    if Path(source.dvc_folder).is_dir():  # share checkpoints, to resume interrupted trainings
        checkpoints = Path(source.dvc_folder) / "tmp/training"
        checkpoints.mkdir(parents=True, exist_ok=True)
        (project / ".dvc/tmp/training").symlink_to(checkpoints)
    if has_inputs(source.cache, source.marker, source.inputs):
        (project / ".dvc/cache").symlink_to(source.cache)
    return project


def git(folder: Path, *arguments: str) -> str:
    """Run Git in a folder and return its output."""
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment(None), check=True, stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()  # fmt: skip


def environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a command: this Python first in PATH, and its number of threads.

    Variables that a Git hook or a DVC stage set are removed, because they refer to another
    repository.
    """
    added = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if threads is not None:
        added["OMP_NUM_THREADS"] = str(threads)
    removed = ("DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    return {name: value for name, value in os.environ.items() if name not in removed} | added


def run_command(
    command: list[str], project: Path, folder: Path, threads: int | None
) -> Iterator[str]:
    """Run a command in the project and yield its lines of output.

    Raises ChildProcessError if a signal killed the command, CalledProcessError if it failed.
    """
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "study/task.py", str(folder), *command],
        cwd=project,
        env=environment(threads),
        stdin=subprocess.PIPE,  # when it closes, task.py stops the command
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as running:
        for line in running.stdout or []:
            lines.append(line.rstrip())
            yield lines[-1]
    codes = re.findall(r"exited with (-?\d+)$", "\n".join(lines[-5:]), re.MULTILINE)
    if KILLED_EXIT_CODES & {running.returncode, *map(int, codes)}:
        raise ChildProcessError(f"the command was killed: {' '.join(lines[-1:])}")
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command, "\n".join(lines))


def failure_reason(lines: list[str]) -> str:
    """Return the error messages in a training's output, or its last lines if there are none."""
    errors = [line for line in lines if re.match(r"(\w+\.py: error|ERROR|\w*Error): ", line)]
    return "\n  ".join(errors or [line for line in lines if line][-4:])


def push(execute: Callable[..., None]) -> None:
    """Push the model to the remote; retry, because the network may fail."""
    for attempts_left in reversed(range(PUSH_ATTEMPTS)):
        try:
            execute("push", MODEL)
        except subprocess.CalledProcessError:
            if not attempts_left:
                raise
        else:
            return


def train(
    training: tuple[str, list[str]],
    source: Source,
    report: Callable[[tuple[str, str, str]], object],
    threads: int | None,
) -> dict[str, Any]:
    """Run a training, given as the name of its experiment and the params that it overrides.

    Returns a dictionary: `lines` are pairs of time (s) and line of output, `error` says why the
    training failed or is empty, and `experiment`, if it succeeded, is a Git bundle of the DVC
    experiment. `report` is called for each line with the experiment, the machine and the line.
    """
    name, overrides = training
    lines: list[tuple[float, str]] = []
    machine = socket.gethostname()

    def execute(*arguments: str) -> None:
        command = [sys.executable, "-m", "dvc", *arguments]
        for line in run_command(command, project, folder, threads):
            lines.append((time.monotonic(), line))
            report((name, machine, line))

    with scratch_folder() as folder:
        project = make_copy(source, folder)
        is_shared = (project / ".dvc/cache").is_symlink()
        run = ["exp", "run", "--allow-missing", "--name", name, "evaluate"]
        run += [f"--set-param={override}" for override in overrides]
        try:
            if is_shared:
                execute(*run)
            else:
                execute(*run, "--pull")
                push(execute)
        except subprocess.CalledProcessError:
            return {"lines": lines, "error": failure_reason([line for _, line in lines])}
        bundle = folder / "experiment.bundle"
        ref = git(folder, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}")
        git(folder, "bundle", "create", "--quiet", str(bundle), ref, "^HEAD", "--")
        return {"lines": lines, "experiment": bundle.read_bytes(), "error": ""}


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if any of its processes is alive."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def run_while_parent_lives(folder: str, command: list[str]) -> int:
    """Run a command; when standard input closes, stop the command and remove the folder.

    Processes that the command started are stopped with it. Returns the exit code.
    """
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    orphaned = threading.Event()

    def watch() -> None:
        while os.read(0, 1):
            pass
        orphaned.set()
        signal_group(running.pid, signal.SIGINT)
        time.sleep(GRACE_PERIOD)
        signal_group(running.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = running.wait()
    signal_group(running.pid, signal.SIGKILL)
    if orphaned.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run_while_parent_lives(sys.argv[1], sys.argv[2:]))
