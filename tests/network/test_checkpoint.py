"""A killed training resumes and ends with the same bytes; a different one never resumes from it."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock, Timeout
from torch import nn

import train
from helpers import MODULES, QUICK, ROOT, Data, Outcome, RunStage, moved
from learning import checkpoint
from learning.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_lock,
    fingerprint,
    locked_checkpoint,
    main_repository,
)
from learning.epochs import train_epoch
from learning.network import Encoder, build_encoder
from learning.weights import save_tensors
from pipeline.outputs import file_sha256
from scans.manifest import read_manifest

SHORT: dict[str, Any] = QUICK | {"train__epochs": 4, "train__image_size": 32}
Train = Callable[..., Outcome]


def outputs(folder: Path) -> dict[str, str]:
    """Return the digest of every file that the stage wrote, by relative path."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def train_in(run_stage: RunStage, data: Data, encoder: Path, tmp_path: Path) -> Train:
    """Return a function that trains on the phantom in a named folder of a repository."""
    (tmp_path / ".dvc").mkdir()
    table, splits = read_manifest(data.splits), tmp_path / "splits.csv"
    few = table[table["abnormal"] == 1].groupby("split").head(16)
    few.to_csv(splits, index=False)

    def run(folder: str, encoder: Path = encoder, **overrides: Any) -> Outcome:
        out = tmp_path / folder
        inputs = [data.intensities, splits, encoder]
        paths = [*inputs, out / "unet", out / "train"]
        return run_stage(train.main, paths, **(SHORT | overrides))

    return run


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the list of epochs that have begun; adding -k interrupts epoch k once."""
    begun: list[int] = []

    def watched(*arguments: Any, epoch: int) -> dict[str, float]:
        if -epoch in begun:
            begun.remove(-epoch)
            raise KeyboardInterrupt
        begun.append(epoch)
        return train_epoch(*arguments, epoch=epoch)

    monkeypatch.setattr(train, "train_epoch", watched)
    return begun


RECIPES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "best": {"train__keep": "best", "train__average": 0, "train__context": 0},
    "learning": {"encoder__frozen": False, "train__encoder_rate": 0.1},
    "dropout": {"encoder__name": "mit_b0", "encoder__frozen": False, "train__schedule": "cosine"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_training_ends_with_the_same_bytes(
    train_in: Train, epochs: list[int], encoder: Path, tmp_path: Path, recipe: str
) -> None:
    """The training is interrupted twice, the second time before another epoch has finished."""
    if recipe == "dropout":
        torch.manual_seed(0)
        encoder = tmp_path / "mit.safetensors"
        save_tensors(build_encoder("mit_b0").state_dict(), Encoder("mit_b0"), encoder)
    overrides = RECIPES[recipe]
    epochs += [-3, -3]
    for _ in range(2):
        outcome = train_in("resumed", encoder, **overrides)
        assert outcome.code == 130
        assert "interrupted; 2 epochs " in outcome.error
        assert not (tmp_path / "resumed/unet").exists()
    assert train_in("resumed", encoder, **overrides).code == 0
    assert epochs == [1, 2, 3, 4]
    (tmp_path / ".dvc").rename(tmp_path / "no repository")
    assert train_in("at once", encoder, **overrides).code == 0
    assert epochs == [1, 2, 3, 4] * 2
    expected = outputs(tmp_path / "at once")
    assert {"unet", "train/metrics.json", "train/plots/metrics/val/iou.tsv"} <= expected.keys()
    assert outputs(tmp_path / "resumed") == expected


def test_a_training_with_other_params_does_not_resume(train_in: Train, epochs: list[int]) -> None:
    epochs.append(-2)
    assert train_in("a").code == 130
    assert train_in("a", train__learning_rate=0.001).code == 0
    assert epochs == [1, 1, 2, 3, 4]
    assert train_in("a", compute__workers=1).code == 0  # changes no byte
    assert epochs == [1, 1, 2, 3, 4, 2, 3, 4]


def test_the_fingerprint_changes_with_settings_inputs_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, code = (tmp_path / name for name in ("a", "b", "module.py"))
    for path in (a, b, code):
        path.write_text(path.name)
    assert {MODULES["train"], MODULES["learning.checkpoint"], MODULES["scans.tiff"]} <= set(
        checkpoint.code_files()
    )
    monkeypatch.setattr(checkpoint, "code_files", lambda: [code])

    def fingerprints() -> list[str]:
        settings: list[dict[str, Any]] = [{"rate": 1e-3, "to": True}, {"rate": 1e-4, "to": True}]
        return [fingerprint(s, files) for s in settings for files in ([a, b], [b, a])]

    before = fingerprints()
    assert len(set(before)) == 4
    assert fingerprints() == before
    code.write_text("other code")
    changed_code = fingerprints()
    b.write_text("other input")
    assert len({*before, *changed_code, *fingerprints()}) == 12


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ("/team/project", "/team/project"),
        ("/team/project/.dvc/tmp/exps/standalone/tmpx1", "/team/project"),
        ("/team/project/.dvc/tmp/exps/tmpx1", "/team/project"),
        (None, "here"),
    ],
)
def test_checkpoints_are_in_the_main_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None, found: str
) -> None:
    deep = tmp_path / "here/src"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert main_repository() is None
    (tmp_path / "here/.dvc").mkdir()
    if root:
        monkeypatch.setenv("DVC_ROOT", root)
    assert main_repository() == tmp_path / found


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of checkpoints of a real repository, which becomes the current folder."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".dvc/tmp/training"


def finish(key: str, model: Path) -> None:
    """Leave the checkpoint of a finished training."""
    with locked_checkpoint(key) as saved:
        saved.file.write_text("checkpoint")
        saved.finish(model)


def test_a_finished_checkpoint_is_kept_until_the_model_is_in_dvcs_cache(
    checkpoints: Path, tmp_path: Path
) -> None:
    """`dvc repro --force` trains from the start; a kill before DVC's commit loses nothing."""
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    finish("key", model)
    with locked_checkpoint("key") as saved:
        assert saved.file.exists()
    finish("key", model)
    md5 = hashlib.md5(b"weights").hexdigest()  # noqa: S324
    cached = tmp_path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    with locked_checkpoint("key") as saved:
        assert not saved.file.exists()


def test_a_second_trainer_waits_and_continues_from_the_first_ones_checkpoint(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that waited keeps the checkpoint, even if DVC has cached the model by then."""
    monkeypatch.setattr(checkpoint, "is_in_dvc_cache", lambda *_: True)
    seen: list[bool] = []

    def second() -> None:
        with locked_checkpoint("key") as saved:
            seen.append(saved.file.exists())

    thread = threading.Thread(target=second)
    with locked_checkpoint("key") as saved:
        thread.start()
        printed, deadline = "", time.monotonic() + 30
        while not printed and time.monotonic() < deadline:
            time.sleep(0.05)
            printed = capsys.readouterr().out
        assert str(checkpoints / "key.lock") in printed
        assert seen == []
        saved.file.write_text("checkpoint")
        saved.finish(ROOT / "LICENSE")
    thread.join(30)
    assert seen == [True]
    finish("key", ROOT / "LICENSE")
    with locked_checkpoint("key") as saved:
        assert not saved.file.exists()


def test_old_and_finished_checkpoints_are_deleted_unless_locked(checkpoints: Path) -> None:
    for name in ("finished", "locked", "old", "new"):
        (checkpoints / name).mkdir(parents=True)
        if name != "new":
            (checkpoints / name / checkpoint.MODEL_MD5).write_text("md5")
    (checkpoints / "old" / checkpoint.MODEL_MD5).unlink()
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(checkpoints / "old", (long_ago, long_ago))
    with checkpoint_lock(checkpoints / "locked"), locked_checkpoint("key"):
        pass
    left = sorted(path.name for path in checkpoints.iterdir() if path.is_dir())
    assert left == ["key", "locked", "new"]


class Payload:
    """An object that runs code when pickle loads it, like an attacker's."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("executed").touch, ()


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "pickle"])
def test_training_starts_over_with_a_message_if_the_checkpoint_is_damaged(
    train_in: Train,
    epochs: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    epochs.append(-2)
    assert train_in("a", train__epochs=2).code == 130
    (file,) = tmp_path.glob(".dvc/tmp/training/*/checkpoint.pt")
    if damage == "pickle":
        torch.save(Payload(), file)
    else:
        content = {"cut off": file.read_bytes()[:-100], "empty": b"", "text": b"no checkpoint"}
        file.write_bytes(content[damage])
    with locked_checkpoint(file.parent.name) as saved:
        assert saved.read() is None
    printed = capsys.readouterr().out
    assert re.search(r"checkpoint.pt: .*\(\w+\)", printed)
    assert train_in("a", train__epochs=2).code == 0
    assert epochs == [1, 1, 2]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_training_with_a_changed_scan_or_mask_does_not_resume(
    train_in: Train, epochs: list[int], tmp_path: Path, kind: str
) -> None:
    """A byte of one slice's file has changed, which the tables do not show."""
    table = read_manifest(tmp_path / "splits.csv")
    copies = Path(shutil.copytree(Path(table[kind][0]).parent, tmp_path / kind))
    moved(table, **{kind: copies}).to_csv(tmp_path / "splits.csv", index=False)
    epochs.append(-2)
    assert train_in("a", train__epochs=2).code == 130
    changed = copies / Path(table[kind][0]).name
    changed.write_bytes(changed.read_bytes() + b"x")
    assert train_in("a", train__epochs=2).code == 0
    assert epochs == [1, 1, 2]


def test_a_full_disk_leaves_the_previous_epochs_checkpoint(
    train_in: Train, epochs: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: Any, path: Path) -> None:
        save(content, path)
        if len(epochs) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        outcome = train_in("a")
    assert outcome.code == 1
    assert "No space left on device" in outcome.error
    (folder,) = (path for path in (tmp_path / ".dvc/tmp/training").iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt"]
    assert not (tmp_path / "a/unet").exists()
    assert train_in("a").code == 0
    assert epochs == [1, 2, 3, 3, 4]


@pytest.mark.parametrize(("best", "kept"), [(True, 2), (False, 4)])
def test_the_last_epoch_is_kept_or_the_first_best_one(best: bool, kept: int) -> None:
    class Counting(nn.Module):
        calls = 0

        def trained_tensors(self) -> dict[str, torch.Tensor]:
            self.calls += 1
            return {"call": torch.tensor(self.calls)}

    progress, network = Progress(), Counting()
    for number, score in enumerate((0.0, 0.5, 0.4, 0.5), start=1):
        progress.add({"val/iou": score, "number": number}, network, best=best)  # type: ignore[arg-type]
    assert (progress.kept_epoch, progress.epoch) == (kept, 4)
    assert progress.kept_scores == {"val/iou": 0.5, "number": kept}
    assert progress.kept_tensors["call"].item() == kept


def test_outside_of_a_repository_nothing_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with locked_checkpoint("key") as saved:
        assert saved == Checkpoint(None)
        assert saved.hint(3).startswith("0 epochs ")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    code = f"from filelock import FileLock; lock = FileLock({str(tmp_path / 'lock')!r}); "
    code += "lock.acquire(); print('locked', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(Timeout):
            FileLock(tmp_path / "lock", timeout=0).acquire()
        child.kill()
    with FileLock(tmp_path / "lock", timeout=5) as lock:
        assert lock.is_locked
