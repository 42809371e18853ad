"""The study: its list of trainings, what they cost, and what is kept of them."""

import subprocess
from pathlib import Path

import pytest
import yaml

import run
from conftest import ROOT
from pipeline.dotted import leaves


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
    known = dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
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
        else "config has non-ASCII characters"
    )
    with pytest.raises(SystemExit, match=told):
        run.check_letters()
