"""A training that was killed goes on, to the same bytes; another one never takes its state."""

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
    """Return the digest of every file that the stage has written."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def train_in(run_stage: RunStage, data: Data, encoder: Path, tmp_path: Path) -> Train:
    """Train on the phantom in a folder of the given name, inside of a repository."""
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
    """Return the epochs that are trained, as they begin; a negative one will be interrupted."""
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
    """Interrupted twice; the second time before an epoch of its own was through."""
    if recipe == "dropout":
        torch.manual_seed(0)
        encoder = tmp_path / "mit.safetensors"
        save_tensors(build_encoder("mit_b0").state_dict(), Encoder("mit_b0"), encoder)
    overrides = RECIPES[recipe]
    epochs += [-3, -3]
    told = "train.py: interrupted; 2 epochs are kept; the same training goes on from there\n"
    for _ in range(2):
        outcome = train_in("resumed", encoder, **overrides)
        assert outcome.code == 130
        assert outcome.error.endswith(told.partition(" ")[2])
        assert not (tmp_path / "resumed/unet").exists()
    assert train_in("resumed", encoder, **overrides).code == 0
    assert epochs == [1, 2, 3, 4]
    (tmp_path / ".dvc").rename(tmp_path / "no repository")
    assert train_in("at once", encoder, **overrides).code == 0
    assert epochs == [1, 2, 3, 4] * 2
    wanted = outputs(tmp_path / "at once")
    assert {"unet", "train/metrics.json", "train/plots/metrics/val/iou.tsv"} <= wanted.keys()
    assert outputs(tmp_path / "resumed") == wanted


def test_another_param_does_not_take_up_the_state(train_in: Train, epochs: list[int]) -> None:
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

    def prints() -> list[str]:
        settings: list[dict[str, Any]] = [{"rate": 1e-3, "to": True}, {"rate": 1e-4, "to": True}]
        return [fingerprint(s, files) for s in settings for files in ([a, b], [b, a])]

    before = prints()
    assert len(set(before)) == 4
    assert prints() == before
    code.write_text("other code")
    changed_code = prints()
    b.write_text("other input")
    assert len({*before, *changed_code, *prints()}) == 12


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ("/team/project", "/team/project"),
        ("/team/project/.dvc/tmp/exps/standalone/tmpx1", "/team/project"),
        ("/team/project/.dvc/tmp/exps/tmpx1", "/team/project"),
        (None, "here"),
    ],
)
def test_the_state_lies_in_the_main_repository(
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
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of states of a real repository, which is the current folder."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / ".dvc/tmp/training"


def finish(key: str, model: Path) -> None:
    """Leave the state of a finished training."""
    with locked_checkpoint(key) as state:
        state.file.write_text("checkpoint")
        state.finish(model)


def test_the_state_of_a_finished_training_serves_until_dvc_holds_the_model(
    states: Path, tmp_path: Path
) -> None:
    """`dvc repro --force` trains anew; after a kill before DVC's commit nothing is lost."""
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    finish("key", model)
    with locked_checkpoint("key") as state:
        assert state.file.exists()
    finish("key", model)
    md5 = hashlib.md5(b"weights").hexdigest()  # noqa: S324
    cached = tmp_path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    with locked_checkpoint("key") as state:
        assert not state.file.exists()


def test_a_second_trainer_waits_and_takes_what_the_first_has_come_to(
    states: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when DVC holds the model by then: nobody has asked for another training."""
    monkeypatch.setattr(checkpoint, "is_in_dvc_cache", lambda *_: True)
    seen: list[bool] = []

    def second() -> None:
        with locked_checkpoint("key") as state:
            seen.append(state.file.exists())

    thread = threading.Thread(target=second)
    with locked_checkpoint("key") as state:
        thread.start()
        told, deadline = "", time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
            told = capsys.readouterr().out
        assert told.startswith("another process trains for the same result; waiting for /")
        assert seen == []
        state.file.write_text("checkpoint")
        state.finish(ROOT / "LICENSE")
    thread.join(30)
    assert seen == [True]
    finish("key", ROOT / "LICENSE")
    with locked_checkpoint("key") as state:
        assert not state.file.exists()


def test_old_and_finished_states_are_removed_unless_held(states: Path) -> None:
    for name in ("finished", "held", "old", "new"):
        (states / name).mkdir(parents=True)
        if name != "new":
            (states / name / checkpoint.MODEL_MD5).write_text("md5")
    (states / "old" / checkpoint.MODEL_MD5).unlink()
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(states / "old", (long_ago, long_ago))
    with checkpoint_lock(states / "held"), locked_checkpoint("key"):
        pass
    assert sorted(path.name for path in states.iterdir() if path.is_dir()) == ["held", "key", "new"]


class Payload:
    """What an attacker would have pickle run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path("executed").touch, ()


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "pickle"])
def test_a_damaged_checkpoint_starts_over_and_says_so(
    train_in: Train,
    epochs: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    epochs.append(-2)
    assert train_in("a", train__epochs=2).code == 130
    (kept,) = tmp_path.glob(".dvc/tmp/training/*/checkpoint.pt")
    if damage == "pickle":
        torch.save(Payload(), kept)
    else:
        content = {"cut off": kept.read_bytes()[:-100], "empty": b"", "text": b"no checkpoint"}
        kept.write_bytes(content[damage])
    with locked_checkpoint(kept.parent.name) as state:
        assert state.read() is None
    printed = capsys.readouterr().out
    assert re.search(
        r"checkpoint.pt: not a sound checkpoint \(\w+\). Training starts over.\n$", printed
    )
    assert train_in("a", train__epochs=2).code == 0
    assert epochs == [1, 1, 2]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_another_scan_or_mask_does_not_take_up_the_state(
    train_in: Train, epochs: list[int], tmp_path: Path, kind: str
) -> None:
    """A byte of one file of a slice has changed, which is in no table."""
    table = read_manifest(tmp_path / "splits.csv")
    copies = Path(shutil.copytree(Path(table[kind][0]).parent, tmp_path / kind))
    moved(table, **{kind: copies}).to_csv(tmp_path / "splits.csv", index=False)
    epochs.append(-2)
    assert train_in("a", train__epochs=2).code == 130
    changed = copies / Path(table[kind][0]).name
    changed.write_bytes(changed.read_bytes() + b"x")
    assert train_in("a", train__epochs=2).code == 0
    assert epochs == [1, 1, 2]


def test_a_full_disk_leaves_the_state_of_the_epoch_before(
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
def test_the_last_epoch_is_kept_or_the_first_of_the_best(best: bool, kept: int) -> None:
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


def test_outside_of_a_repository_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with locked_checkpoint("key") as state:
        assert state == Checkpoint(None)
        assert state.hint(3).startswith("0 epochs are kept")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_lets_go_when_its_process_is_killed(tmp_path: Path) -> None:
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
