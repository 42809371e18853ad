"""Checkpoints, from which an interrupted training resumes after its last complete epoch.

DVC removes a stage's outputs before the stage starts, so checkpoints are stored elsewhere: each in
a folder under `.dvc/tmp/training`, named by a digest of everything that the result depends on.
Experiments that DVC runs in other folders (`--temp`, the queue) share the workspace's checkpoints.
A lock on the folder ensures that only one process at a time runs the same training.
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
from pipeline.refusals import quantity

EXPERIMENTS = f"{os.sep}.dvc{os.sep}tmp{os.sep}exps{os.sep}"  # in the main repository
CHECKPOINTS = ".dvc/tmp/training"
KEPT_DAYS = 30  # how long the checkpoint of an unfinished training is kept
MODEL_MD5 = "model.md5"  # in a checkpoint's folder: the MD5 of a finished training's model


def main_repository() -> Path | None:
    """Return the main repository of the DVC run, or the one that contains the current folder."""
    here = Path.cwd()
    around = next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)
    root = os.environ.get("DVC_ROOT") or around
    return Path(str(root).partition(EXPERIMENTS)[0]) if root else None


def code_files() -> list[Path]:
    """Return the project's files that the running program has imported, sorted."""
    found = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    paths = {Path(path).resolve() for path in found if path}
    src = Path(__file__).resolve().parents[1]
    return sorted(path for path in paths if path.is_relative_to(src))


def fingerprint(settings: dict[str, Any], files: Iterable[Path]) -> str:
    """Return a digest of the settings, the files' contents and order, and the imported code."""
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(file_sha256, [*code_files(), *files]))
    text = json.dumps([settings, digests], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Progress:
    """The progress of a training: its curves so far, and the network of the epoch to keep.

    `curves` has a dictionary of values, by curve name, for each finished epoch.
    """

    curves: list[dict[str, float]] = field(default_factory=list)
    kept_epoch: int = 0
    kept_tensors: Tensors = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.curves)

    def add(self, scores: dict[str, float], network: Network, *, best: bool) -> None:
        """Add an epoch and keep its network; with `best`, only if its `val/iou` is the highest."""
        self.curves.append(scores)
        if best and self.kept_epoch and scores["val/iou"] <= self.kept_scores["val/iou"]:
            return
        self.kept_epoch, self.kept_tensors = self.epoch, network.trained_tensors()

    @property
    def kept_scores(self) -> dict[str, float]:
        """The scores of the epoch that is kept."""
        return self.curves[self.kept_epoch - 1]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the random number generators that dropout uses."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {})


@dataclass(frozen=True)
class Checkpoint:
    """A training's checkpoint and its folder, which is None if nothing is saved.

    Nothing is saved outside of a repository, or by any but the first of several processes.
    """

    folder: Path | None

    @property
    def file(self) -> Path:
        """The file with the checkpoint."""
        assert self.folder is not None
        return self.folder / "checkpoint.pt"

    def save(self, progress: Progress, trainer: Trainer) -> None:
        """Replace the checkpoint by one of the current epoch."""
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
        """Return the checkpoint's content, or None if it is missing or damaged."""
        if self.folder is None or not self.file.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch fail in many ways
            kind = type(error).__name__
            print(f"{self.file}: damaged checkpoint ({kind}). Training starts over.")
            return None
        return content

    def load(self, trainer: Trainer) -> Progress:
        """Restore the trainer from the checkpoint and return its progress.

        Only the first process reads the file, because other processes may be on other machines.
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
            if isinstance(group["lr"], torch.Tensor):  # for a CUDA graph
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
        """Return the message for a training that is interrupted after `epoch` epochs."""
        n_saved = epoch if self.folder is not None else 0
        return f"{quantity(n_saved, 'epoch')} saved; run the same command again to continue"

    def finish(self, model: Path) -> None:
        """Record the finished model's MD5: once DVC has cached it, the checkpoint is obsolete."""
        if self.folder is not None:
            (self.folder / MODEL_MD5).write_text(file_digest(model, "md5"))


def is_in_dvc_cache(md5: str, repository: Path) -> bool:
    """Return whether the repository's DVC cache has a file with this MD5."""
    from dvc.repo import Repo  # takes a second to import and is rarely needed

    with Repo(str(repository)) as repo:
        return bool(repo.cache.local.exists(md5))


def checkpoint_lock(folder: Path) -> FileLock:
    """Return the lock of a checkpoint, a file next to its folder that is never removed."""
    return FileLock(folder.with_suffix(".lock"))


def delete_old_checkpoints(checkpoints: Path, current: Path) -> None:
    """Delete other checkpoints that are finished or older than KEPT_DAYS, except locked ones."""
    for folder in checkpoints.iterdir():
        if not folder.is_dir() or folder == current:
            continue
        idle_days = (time.time() - folder.stat().st_mtime) / (24 * 3600)
        if (folder / MODEL_MD5).exists() or idle_days > KEPT_DAYS:
            with suppress(Timeout), checkpoint_lock(folder).acquire(timeout=0):
                discard(folder)


def acquire(lock: FileLock) -> bool:
    """Acquire a lock, with a message if this has to wait for it; return whether it waited."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            "another process is running the same training; waiting until it releases "
            f"{lock.lock_file}"
        )
        lock.acquire()
        return True
    return False


@contextmanager
def locked_checkpoint(key: str | None) -> Iterator[Checkpoint]:
    """Yield the checkpoint of the training with this fingerprint, locked against other processes.

    Waits while another process runs the same training, then continues from its checkpoint. The
    checkpoint of a finished training is deleted if its model is already in DVC's cache: this
    happens if the user starts over with `dvc repro --force`.
    """
    repository = main_repository()
    if key is None or repository is None:
        yield Checkpoint(None)
        return
    folder = repository / CHECKPOINTS / key
    folder.mkdir(parents=True, exist_ok=True)
    lock, model_md5 = checkpoint_lock(folder), folder / MODEL_MD5
    waited = acquire(lock)
    try:
        delete_old_checkpoints(folder.parent, current=folder)
        folder.mkdir(exist_ok=True)
        if not waited and model_md5.exists() and is_in_dvc_cache(model_md5.read_text(), repository):
            discard(Checkpoint(folder).file)
        discard(model_md5)
        yield Checkpoint(folder)
    finally:
        lock.release()
