"""The study: its list of trainings, their cost, and their rows in the tables."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import yaml

import run
from comparison.study_tables import (
    COST,
    COUNTED,
    SCORED,
    add_training,
    as_text,
    read_study,
    training_rows,
)
from helpers import ROOT
from pipeline.params import leaves
from pipeline.refusals import Refusal


def test_overrides_have_the_syntax_of_dvc() -> None:
    tree = {"split": {"by": "patient", "inner_fold": 0}, "train": {"augment": {"flip": True}}}
    assert run.param_overrides(tree) == [
        'split.by="patient"',
        "split.inner_fold=0",
        "train.augment.flip=true",
    ]


LOG = """Stage 'split' didn't change, skipping
Running stage 'train':
2202 slices, 137 steps of 16 an epoch, 4,405,073 parameters trained, on 1 × cpu in bf16-mixed
epoch 1/3: loss 0.3, IoU 0.3475 train, 0.5833 val, 90.0 images/s
epoch 2/3: loss 0.2, IoU 0.5522 train, 0.5991 val, 100.0 images/s
epoch 3/3: loss 0.1, IoU 0.5816 train, 0.6705 val, 80.0 images/s
Updating lock file 'dvc.lock'
Running stage 'predict':
Updating lock file 'dvc.lock'""".splitlines()


def test_the_cost_counts_only_the_train_stage() -> None:
    lines = [(30.0 * number, line) for number, line in enumerate(LOG)]
    assert run.cost(lines) == {
        "minutes": 2.5,
        "images_per_s": 90.0,
        "device": "1 × cpu in bf16-mixed",
    }


@pytest.mark.parametrize(
    "lines",
    [LOG[:1] + LOG[7:], [*LOG[:3], "resumed at epoch 1", *LOG[4:]]],
    ids=["from the cache", "resumed"],
)
def test_a_cached_or_resumed_training_has_no_cost(lines: list[str]) -> None:
    assert run.cost([(0.0, line) for line in lines]) == {}


def test_run_names_are_unique_and_their_params_exist() -> None:
    """YAML silently keeps the last of two equal keys; an unknown param would only fail in DVC."""
    text = run.RUNS.read_text()
    names = [line.partition(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    runs = yaml.safe_load(text)
    assert sorted(names) == sorted(runs)
    known = dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
    for overrides in runs.values():
        assert dict(leaves(overrides)).keys() <= known.keys()


def test_each_row_has_the_params_that_are_listed_for_its_name() -> None:
    runs = yaml.safe_load(run.RUNS.read_text())
    rows = read_study(*run.TABLES).trainings
    assert not set(rows.index) - runs.keys()
    for name in rows.index:
        expected = {param: as_text(value) for param, value in leaves(runs[name])}
        assert {param: rows.loc[name, param] for param in expected} == expected, name
        assert 1 <= int(rows.loc[name, "kept_epoch"]) <= int(rows.loc[name, "train.epochs"])


def write_results(folder: Path) -> None:
    """Write the files that study/run.py gets from an experiment."""
    (folder / "metrics/evaluate").mkdir(parents=True)
    (folder / "metrics/train").mkdir()
    (folder / "params.yaml").write_text(
        "seed: 1\ntrain: {rate: 1.0, flip: true, augment: {a: 0.10}}"
    )
    counts = {"n_patients": 2, "n_slices": 40, "iou": 0.5}
    (folder / "metrics/evaluate.json").write_text(json.dumps({"val": counts, "test": counts}))
    best = {"kept": {"epoch": 3, "val_iou": 0.25}}
    (folder / "metrics/train/metrics.json").write_text(json.dumps(best))
    columns = ["split", "patient_id", *COUNTED, *SCORED, "n_slices_hd95"]
    rows = [[split, name, *["0.50"] * 15] for split in ("train", "test") for name in ("NA", "0012")]
    tables = {"per_patient": pd.DataFrame(rows, columns=columns)}
    scores = {"name": "network (test)", "split": "test", "predictor": "network", "x": "0.10"}
    tables["definitions"] = pd.DataFrame([scores])
    for name, table in tables.items():
        table.to_csv(folder / f"metrics/evaluate/{name}.csv", index=False)


def test_rows_of_a_training_are_read_from_its_results(tmp_path: Path) -> None:
    write_results(tmp_path)
    cost: dict[str, float | str] = {"minutes": 2.5, "images_per_s": 90.0, "device": "1 × cpu"}
    training, patients, scores = training_rows("a/b/0", tmp_path, cost)
    assert training.to_dict("records") == [
        {
            "training": "a/b/0",
            "minutes": "2.5",
            "images_per_s": "90.0",
            "device": "1 × cpu",
            "kept_epoch": "3",
            "kept_val_iou": "0.25",
            "n_patients_val": "2",
            "n_patients_test": "2",
            "n_slices_val": "40",
            "n_slices_test": "40",
            "seed": "1",
            "train.rate": "1",
            "train.flip": "true",
            "train.augment.a": "0.1",
        }
    ]
    assert patients["patient_id"].tolist() == ["NA", "0012"]  # only tested patients
    assert list(patients) == ["training", "patient_id", *COUNTED, *SCORED]
    assert patients["dice"].tolist() == ["0.50"] * 2  # the same text as in the file
    assert scores.to_dict("records") == [
        {"training": "a/b/0", "split": "test", "predictor": "network", "x": "0.10"}
    ]


def test_rows_are_added_to_all_tables_or_to_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{n}.csv" for n in range(3)]
    tables = [pd.DataFrame({"training": ["a"]})] * 3
    add_training(files, tables)
    before = [file.read_bytes() for file in files]
    files[2].write_text("no column for the training\n")
    with pytest.raises(Refusal, match="2.csv: .*`python study/run.py`"):
        add_training(files, [table.assign(training="b") for table in tables])
    assert [file.read_bytes() for file in files[:2]] == before[:2]
    assert {path.name for path in tmp_path.iterdir()} == {"0.csv", "1.csv", "2.csv", ".tables.lock"}


def test_rows_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.csv" for n in range(3)]

    def add(number: int) -> None:
        add_training(files, [pd.DataFrame({"training": [f"t{number:02d}"]})] * 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    for file in files:
        assert pd.read_csv(file)["training"].tolist() == [f"t{number:02d}" for number in range(24)]


def test_rows_replace_those_of_the_same_training(tmp_path: Path) -> None:
    """Other rows keep their text; a param that they do not have is blank in them."""
    tables = [pd.DataFrame({"training": ["b"], "x.y": ["0.10"]})] * 3
    files = [tmp_path / f"{n}.csv" for n in range(3)]
    add_training(files, tables)
    add_training(files, [table.assign(training="a", new="1") for table in tables])
    add_training(files, [table.assign(**{"x.y": "0.30"}) for table in tables])
    assert {file.read_text() for file in files} == {"training,x.y,new\na,0.10,1\nb,0.30,\n"}


def test_the_cost_is_kept_if_the_same_training_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"training": "a", "minutes": "2.5", "images_per_s": "90", "device": "cpu", "x.y": "1"}
    monkeypatch.setattr(run, "TABLES", [tmp_path / "trainings.csv"])
    from_cache = pd.DataFrame([row | dict.fromkeys(COST, "")])
    assert run.recorded_cost(from_cache) == {}
    pd.DataFrame([row]).to_csv(run.TABLES[0], index=False)
    assert run.recorded_cost(from_cache) == {name: row[name] for name in COST}
    assert run.recorded_cost(from_cache.assign(**{"x.y": "2"})) == {}
