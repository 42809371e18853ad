"""The state of a training, kept so that a killed one goes on from its last epoch.

DVC removes a stage's outputs before it starts, so the state lies outside of them: in a folder of
its own under `.dvc/tmp/training`, named by a digest of all that the result depends on. Experiments
that DVC runs elsewhere (`--temp`, the queue) share it with the workspace. A lock on the folder lets
one process at a time train for the same result.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from learning.network import Network, Tensors
from learning.optimization import Trainer
from pipeline.outputs import discard, file_digest, file_sha256, replacing

EXPERIMENTS = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"  # in a main repository
STATES = ".dvc/tmp/training"
KEPT_DAYS = 30  # of an unfinished training that nobody goes on with
WRITTEN = "model.md5"  # in a state's folder: the MD5 of the model that a finished training wrote


def main_repository() -> Path | None:
    """Return the repository that DVC runs this for, or the one around the current folder."""
    here = Path.cwd()
    around = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    root = os.environ.get("DVC_ROOT") or around
    return Path(str(root).partition(EXPERIMENTS)[0]) if root else None


def code_files() -> list[Path]:
    """Return the files of this project that the running program has imported, sorted."""
    found = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = {Path(path).resolve() for path in found if path}
    src = Path(__file__).resolve().parents[1]
    return sorted(path for path in paths if path.is_relative_to(src))


def fingerprint(settings: dict[str, Any], files: Iterable[Path]) -> str:
    """Return a digest of settings, of the files' content and order, and of the project's code."""
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(file_sha256, [*code_files(), *files]))
    text = json.dumps([settings, digests], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Progress:
    """What a training has come to: its curves, and the network of the epoch that is kept.

    `curves` has for each epoch so far a value of each curve, by name.
    """

    curves: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int = 0
    kept_tensors: Tensors = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The number of epochs so far."""
        return len(self.curves)

    def add(self, scores: dict[str, float], network: Network, *, best: bool) -> None:
        """Add an epoch and keep its network; with `best` only if its `val/iou` is the highest."""
        self.curves.append(scores)
        if best and self.kept_epoch and scores["val/iou"] <= self.kept_scores["val/iou"]:
            return
        self.kept_epoch, self.kept_tensors = self.epoch, network.trained_tensors()

    @property
    def kept_scores(self) -> dict[str, float]:
        """The scores of the epoch that is kept."""
        return self.curves[self.kept_epoch - 1]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})


@dataclass(frozen=True)
class State:
    """The folder of a training's state; none outside of a repository, and in other processes."""

    folder: Path | None

    @property
    def file(self) -> Path:
        """The checkpoint."""
        assert self.folder is not None
        return self.folder / "checkpoint.pt"

    def save(self, progress: Progress, trainer: Trainer) -> None:
        """Replace the checkpoint by one of this moment, between two epochs."""
        if self.folder is None:
            return
        content = {
            "progress": vars(progress),
            "network": trainer.network.trained_tensors(),
            "averages": trainer.average.averages,
            "averaged_steps": trainer.average.n_steps,
            "optimizer": trainer.schedule.optimizer.state_dict(),
            "schedule": trainer.schedule.state_dict(),
            "precision": trainer.fabric.strategy.precision.state_dict(),
            "random": random_state(trainer.fabric.device),
        }
        with replacing(self.file) as [partial]:
            torch.save(content, partial)

    def read(self) -> dict[str, Any] | None:
        """Return what the checkpoint holds; None where there is none that can be read."""
        if self.folder is None or not self.file.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch fail in many ways
            kind = type(error).__name__
            print(f"{self.file}: not a sound checkpoint ({kind}). Training starts over.")
            return None
        return content

    def load(self, trainer: Trainer) -> Progress:
        """Set the trainer to the checkpoint's state; return what it had come to.

        Only the first of several processes reads it, for others may be on other machines.
        """
        content = trainer.fabric.broadcast(self.read())
        if content is None:
            return Progress()
        trainer.network.load_trained(content["network"])
        for average, saved in zip(trainer.average.averages, content["averages"], strict=True):
            average.copy_(saved)
        trainer.average.n_steps = content["averaged_steps"]
        trainer.schedule.optimizer.load_state_dict(content["optimizer"])
        for group in trainer.schedule.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):  # as a CUDA graph needs it
                group["lr"] = group["lr"].to(trainer.fabric.device)
        trainer.schedule.load_state_dict(content["schedule"])
        trainer.fabric.strategy.precision.load_state_dict(content["precision"])
        torch.set_rng_state(content["random"]["cpu"])
        if "cuda" in content["random"]:
            torch.cuda.set_rng_state(content["random"]["cuda"])
        progress = Progress(**content["progress"])
        if trainer.fabric.is_global_zero:
            print(f"resumed at epoch {progress.epoch}")
        return progress

    def hint(self, epoch: int) -> str:
        """Return how to go on, for whoever interrupts the training after so many epochs."""
        kept = epoch if self.folder is not None else 0
        return f"{kept} epochs are kept; the same training goes on from there"

    def finish(self, model: Path) -> None:
        """Note which model was written: once DVC has it, the state is of no more use."""
        if self.folder is not None:
            (self.folder / WRITTEN).write_text(file_digest(model, "md5"))


def is_in_dvc_cache(md5: str, repository: Path) -> bool:
    """Return whether the repository's cache has a content."""
    from dvc.repo import Repo  # takes a second, and is seldom needed

    with Repo(str(repository)) as repo:
        return bool(repo.cache.local.exists(md5))


def state_lock(folder: Path) -> FileLock:
    """Return the lock of a state, a file beside its folder, which is never removed."""
    return FileLock(folder.with_suffix(".lock"))


def delete_old(states: Path, but: Path) -> None:
    """Delete other states that are finished or older than KEPT_DAYS, except locked ones."""
    for folder in states.iterdir():
        if not folder.is_dir() or folder == but:
            continue
        idle_days = (time.time() - folder.stat().st_mtime) / (24 * 3600)
        if (folder / WRITTEN).exists() or idle_days > KEPT_DAYS:
            with suppress(Timeout), state_lock(folder).acquire(timeout=0):
                discard(folder)


def acquire(lock: FileLock) -> bool:
    """Take a lock; return whether it had to wait, which it says beforehand."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another process trains for the same result; waiting for {lock.lock_file}")
        lock.acquire()
        return True
    return False


@contextmanager
def locked_state(key: str | None) -> Iterator[State]:
    """Yield the state of the training of that fingerprint, locked against other processes.

    Waits while another process trains for the same result, then goes on from what it left. The
    state of a finished training whose model is in DVC's cache is dropped: training it once more was
    asked for (`dvc repro --force`).
    """
    repository = main_repository()
    if key is None or repository is None:
        yield State(None)
        return
    folder = repository / STATES / key
    folder.mkdir(parents=True, exist_ok=True)
    lock, written = state_lock(folder), folder / WRITTEN
    waited = acquire(lock)
    try:
        delete_old(folder.parent, but=folder)
        folder.mkdir(exist_ok=True)
        if not waited and written.exists() and is_in_dvc_cache(written.read_text(), repository):
            discard(State(folder).file)
        discard(written)
        yield State(folder)
    finally:
        lock.release()
