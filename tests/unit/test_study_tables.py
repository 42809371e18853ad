"""The study: its list of trainings, what they cost, and what is kept of them."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

import run
from comparison.study_tables import COST, add_training, as_text, read_study
from conftest import ROOT
from pipeline.params import leaves


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
    known = dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
    for overrides in runs.values():
        assert dict(leaves(overrides)).keys() <= known.keys()


def test_what_is_kept_is_what_is_listed() -> None:
    """Each row has the params that its name stands for, as far as they are still params."""
    runs = yaml.safe_load(run.RUNS.read_text())
    rows = read_study(*run.TABLES).trainings
    listed = [name for name in rows.index if name in runs]
    assert len(listed) > 40
    for name in listed:
        wanted = {param: as_text(value) for param, value in leaves(runs[name])}
        assert {param: rows.loc[name, param] for param in wanted} == wanted, name


def test_rows_replace_those_of_the_same_training(tmp_path: Path) -> None:
    """The others keep their bytes; a param that is new is blank in the rows before it."""
    tables = [pd.DataFrame({"training": ["b"], "x.y": ["0.10"]})] * 3
    files = [tmp_path / f"{n}.csv" for n in range(3)]
    add_training(files, tables)
    add_training(files, [table.assign(training="a", new="1") for table in tables])
    add_training(files, [table.assign(**{"x.y": "0.30"}) for table in tables])
    assert {file.read_text() for file in files} == {"training,x.y,new\na,0.10,1\nb,0.30,\n"}


def test_a_cost_is_kept_where_the_same_training_came_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"training": "a", "minutes": "2.5", "images_per_s": "90", "device": "cpu", "x.y": "1"}
    monkeypatch.setattr(run, "TABLES", [tmp_path / "trainings.csv"])
    again = pd.DataFrame([row | dict.fromkeys(COST, "")])
    assert run.kept_cost(again) == {}
    pd.DataFrame([row]).to_csv(run.TABLES[0], index=False)
    assert run.kept_cost(again) == {name: row[name] for name in COST}
    assert run.kept_cost(again.assign(**{"x.y": "2"})) == {}


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
        else "config has non-ASCII characters"
    )
    with pytest.raises(SystemExit, match=told):
        run.check_letters()
