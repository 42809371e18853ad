"""One training of the study, on whatever machine it is started.

It needs nothing of the project there, for it makes its own copy: a clone of one commit, in which
DVC runs the graph. As a script it runs a command, and ends it when its own parent ends:

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

SCRATCH, LOCK = "study-", "in-use"  # names of temporary folders, and of a file in each
MODEL = "models/unet.safetensors"
ENDED = 10.0  # seconds that a command has to end in
PUSHES = 3  # attempts to push a model
DEADLY = (signal.SIGKILL, signal.SIGTERM)
KILLED = {code for number in DEADLY for code in (-number, 128 + number)}  # exit codes


class Source(NamedTuple):
    """What the copies of the project are made from."""

    commit: bytes  # a Git repository of that commit, as a tar archive
    prefix: str  # of the project in it
    config: str  # .dvc/config.local, with remotes that can be reached from anywhere
    repository: str  # the .dvc of the checkout that the study belongs to
    cache: str
    mark: str  # a file in it, by which it is known elsewhere
    inputs: list[str]  # what trainings read, as paths in the cache


def has_inputs(cache: str, mark: str, inputs: list[str]) -> bool:
    """Return whether this machine reaches that very cache, and it has what trainings read."""
    return all((Path(cache) / path).exists() for path in (mark, *inputs))


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new temporary folder, and remove those that killed processes have left.

    A living process has locked a file in its folder.
    """
    for lock in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*/{LOCK}"):
        with suppress(OSError), lock.open() as file:  # it may be locked, or another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as folder,
        (Path(folder) / "new").open("w") as file,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        (Path(folder) / "new").rename(Path(folder) / LOCK)
        copy = Path(folder) / "copy"
        copy.mkdir()
        yield copy


def make_copy(source: Source, folder: Path) -> Path:
    """Check the commit out in a folder; return where the project is in it."""
    with tarfile.open(fileobj=io.BytesIO(source.commit)) as archive:
        archive.extractall(folder, filter="data")
    project = folder / source.prefix
    git(folder, "checkout", "--quiet", "--force", "HEAD")
    (project / ".dvc/config.local").write_text(source.config, encoding="utf-8")
    (project / ".dvc/tmp").mkdir(exist_ok=True)
    if Path(source.repository).is_dir():  # there a training that was interrupted has its checkpoint
        states = Path(source.repository) / "tmp/training"
        states.mkdir(parents=True, exist_ok=True)
        (project / ".dvc/tmp/training").symlink_to(states)
    if has_inputs(source.cache, source.mark, source.inputs):
        (project / ".dvc/cache").symlink_to(source.cache)
    return project


def git(folder: Path, *words: str) -> str:
    """Return what Git prints in a folder."""
    return subprocess.run(
        ["git", *words], cwd=folder, env=environment(None), check=True, stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()  # fmt: skip


def environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a command: this Python first, and as many threads as it may have.

    What a Git hook or a stage of DVC has set speaks of another repository.
    """
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    foreign = ("DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")
    return {name: value for name, value in os.environ.items() if name not in foreign} | own


def lines_of(command: list[str], project: Path, folder: Path, threads: int | None) -> Iterator[str]:
    """Run a command in the project and yield its lines; raise CalledProcessError if it fails.

    ChildProcessError where something has killed it.
    """
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "study/task.py", str(folder), *command],
        cwd=project,
        env=environment(threads),
        stdin=subprocess.PIPE,  # at whose end the command is ended
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
    if KILLED & {running.returncode, *map(int, codes)}:
        raise ChildProcessError(f"it was killed: {' '.join(lines[-1:])}")
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command, "\n".join(lines))


def reason(lines: list[str]) -> str:
    """Return the lines that say why a training failed: those of errors, or else the last ones."""
    errors = [line for line in lines if re.match(r"(\w+\.py: error|ERROR|\w*Error): ", line)]
    return "\n  ".join(errors or [line for line in lines if line][-4:])


def push(execute: Callable[..., None]) -> None:
    """Push the model to the remote; the network may fail, but not every time."""
    for left in reversed(range(PUSHES)):
        try:
            execute("push", MODEL)
        except subprocess.CalledProcessError:
            if not left:
                raise
        else:
            return


def train(
    training: tuple[str, list[str]],
    source: Source,
    tell: Callable[[tuple[str, str, str]], object],
    threads: int | None,
) -> dict[str, Any]:
    """Run a training, given by the experiment's name and its overrides of params.

    Returns `lines`, each with the second at which it came, and `experiment`, a Git bundle of what
    DVC has recorded; where it failed, `error` says why. `tell` is called with the names of the
    experiment and the machine, and each line.
    """
    name, overrides = training
    lines: list[tuple[float, str]] = []
    machine = socket.gethostname()

    def execute(*words: str) -> None:
        for line in lines_of([sys.executable, "-m", "dvc", *words], project, folder, threads):
            lines.append((time.monotonic(), line))
            tell((name, machine, line))

    with scratch() as folder:
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
            return {"lines": lines, "error": reason([line for _, line in lines])}
        bundle = folder / "experiment.bundle"
        ref = git(folder, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}")
        git(folder, "bundle", "create", "--quiet", str(bundle), ref, "^HEAD", "--")
        return {"lines": lines, "experiment": bundle.read_bytes(), "error": ""}


def end(group: int, number: signal.Signals) -> None:
    """Send a signal to whatever is left of a process group."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def run_while_parent_lives(folder: str, command: list[str]) -> int:
    """Run a command; end it, and remove the folder, once standard input has ended.

    Whatever the command has started ends with it.
    """
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    orphaned = threading.Event()

    def watch() -> None:
        while os.read(0, 1):
            pass
        orphaned.set()
        end(running.pid, signal.SIGINT)
        time.sleep(ENDED)
        end(running.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = running.wait()
    end(running.pid, signal.SIGKILL)
    if orphaned.is_set():
        shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run_while_parent_lives(sys.argv[1], sys.argv[2:]))
