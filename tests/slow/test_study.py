"""A training of the study leaves its tables, whole, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

import run
from conftest import SMALL, clone_with_outputs, dvc_environment, put_into_larger_repository
from dotted import leaves


def test_overrides_are_what_dvc_takes() -> None:
    tree = {"split": {"by": "patient", "inner_fold": 0}, "train": {"augment": {"flip": True}}}
    assert run.overrides_of(tree) == [
        'split.by="patient"',
        "split.inner_fold=0",
        "train.augment.flip=true",
    ]


TOLD = """Stage 'split' didn't change, skipping
Running stage 'train':
2202 slices, 137 steps of 16 an epoch, 4,405,073 parameters trained, on 1 × cpu in bf16-mixed
epoch 1/3: loss 0.3, IoU 0.3475 train, 0.5833 val, 90.0 images/s
epoch 2/3: loss 0.2, IoU 0.5522 train, 0.5991 val, 100.0 images/s
epoch 3/3: loss 0.1, IoU 0.5816 train, 0.6705 val, 80.0 images/s
Updating lock file 'dvc.lock'
Running stage 'predict':
Updating lock file 'dvc.lock'""".splitlines()


def test_the_cost_is_that_of_the_train_stage() -> None:
    lines = [(30.0 * number, line) for number, line in enumerate(TOLD)]
    assert run.cost(lines) == {
        "minutes": 2.5,
        "epochs": 3,
        "images_per_s": 90.0,
        "device": "1 × cpu in bf16-mixed",
    }


@pytest.mark.parametrize(
    "lines",
    [TOLD[:1] + TOLD[7:], [*TOLD[:3], "resumed at epoch 1", *TOLD[4:]]],
    ids=["taken from the cache", "resumed"],
)
def test_what_was_not_trained_at_once_has_no_cost(lines: list[str]) -> None:
    assert run.cost([(0.0, line) for line in lines]) == {}


def test_every_run_is_named_once_and_fits_params() -> None:
    """A key twice in YAML is the last one; params that do not exist would only fail in DVC."""
    text = run.RUNS.read_text()
    names = [line.partition(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    runs = yaml.safe_load(text)
    assert sorted(names) == sorted(runs)
    known = dict(leaves(yaml.safe_load(Path("params.yaml").read_text())))
    for overrides in runs.values():
        assert dict(leaves(overrides)).keys() <= known.keys()


def test_what_is_kept_is_what_is_listed() -> None:
    """Each kept training has the params that its name stands for, and tables that it is of."""
    runs = yaml.safe_load(run.RUNS.read_text())
    kept = [path.parent for path in sorted(run.KEPT.rglob("params.yaml"))]
    assert {str(folder.relative_to(run.KEPT)) for folder in kept} <= runs.keys()
    for folder in kept:
        name = str(folder.relative_to(run.KEPT))
        found = dict(leaves(yaml.safe_load((folder / "params.yaml").read_text())))
        wanted = dict(leaves(runs[name]))
        assert {key: found[key] for key in wanted} == wanted, name
        epochs = len((folder / "train_loss.tsv").read_text().splitlines()) - 1
        assert epochs == found["train.epochs"], name


@pytest.mark.parametrize("place", ["the path of the cache", "the settings of Git"])
def test_letters_outside_of_ascii_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = tmp_path / ("Jörg" if "path" in place else "ascii")
    folder.mkdir()
    for words in (["git", "init", "-q"], [*run.DVC, "init", "-q"]):
        subprocess.run(words, cwd=folder, check=True)
    monkeypatch.setattr(run, "ROOT", folder)
    if "Git" in place:
        run.check_letters()
        subprocess.run(["git", "config", "user.name", "Jörg"], cwd=folder, check=True)
    told = (
        "cache is in .*Jörg.*dvc config --local cache.dir"
        if "path" in place
        else "config holds letters"
    )
    with pytest.raises(SystemExit, match=told):
        run.check_letters()


def test_a_run_leaves_its_tables_and_nothing_else(committed_run: Path, tmp_path: Path) -> None:
    """Also where the project is a subfolder of a larger Git repository."""
    folder = clone_with_outputs(committed_run, tmp_path / "larger/brain")
    wanted = {"tiny/fold/1": {"split": {"test_fold": 1}, "train": {"repeat": 3}}}
    (folder / "study/runs.yaml").write_text(yaml.safe_dump(wanted))
    put_into_larger_repository(folder)

    def take(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "study/run.py", *names]
        return subprocess.run(
            command, cwd=folder, env=dvc_environment(), capture_output=True, text=True, check=False
        )

    done = take()
    assert done.returncode == 0, done.stdout + done.stderr
    changed = ["git", "status", "--short", "--untracked-files=all"]
    status = subprocess.run(changed, cwd=folder, capture_output=True, text=True, check=True).stdout
    kept = folder / "study/runs/tiny/fold/1"
    assert status.splitlines() == [
        f"?? {path.relative_to(folder)}" for path in sorted(kept.iterdir())
    ]
    assert {path.name for path in kept.iterdir()} == {*run.TABLES.values(), "cost.json"}
    params = yaml.safe_load((kept / "params.yaml").read_text())
    assert params["split"]["test_fold"] == 1
    assert params["train"]["repeat"] == 3
    assert params["train"]["image_size"] == SMALL["train__image_size"]
    tables = [pd.read_csv(each / "per_patient.csv") for each in (kept, folder / "metrics/evaluate")]
    tested = [set(table["patient_id"][table["split"] == "test"]) for table in tables]
    assert tested[0]
    assert not tested[0] & tested[1]
    assert json.loads((kept / "cost.json").read_text())["epochs"] == 1

    assert take().stdout == ""  # nothing lacks
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    done = take("tiny/fold/1")  # DVC has it: nothing is trained, and its cost stays
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    done = take("tiny/fold/2")
    assert done.returncode == 2
    assert "has no tiny/fold/2, but tiny/fold/1" in done.stderr
