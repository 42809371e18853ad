"""The study's tables: what was trained, which patients it was tested on, and what it scored.

A training's name is `<kind>/<recipe>/<part>`, such as `folds/frozen/0`. It has one row in
`study/trainings.csv`, one for each tested patient in `study/patients.csv`, and in
`study/definitions.csv` its rows of `metrics/evaluate/definitions.csv`.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock

from pipeline.outputs import read_metrics, replacing
from pipeline.params import leaves, read_yaml
from pipeline.refusals import Refusal, refuse

COUNTED = ["n_slices", "n_abnormal", "tp", "fp", "fn", "tn", "fp_healthy"]
SCORED = ["iou", "dice", "precision", "recall", "hd95", "surface_dice", "confidence"]
COST = ["minutes", "images_per_s", "device"]  # blank if the model was cached, or training resumed
TESTED = "n_patients_test"
HINT = "`python study/run.py` writes it; the earlier version is in Git."


class Study(NamedTuple):
    """The tables, each with a column `training`."""

    trainings: pd.DataFrame  # indexed by `training`; its params are `seed` and names with a dot
    patients: pd.DataFrame
    definitions: pd.DataFrame


def read_text(path: Path, *columns: str) -> pd.DataFrame:
    """Return a table of the study, all of it as text; refuse one without these columns."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table[["training", *columns]]
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{path}: not a table of the study ({error}). {HINT}") from None
    return table


def read_table(path: Path, text: list[str], numbers: list[str] | None = None) -> pd.DataFrame:
    """Return a table of the study with columns of text and of numbers, by default all the others.

    Empty fields are NaN.
    """
    table = read_text(path, *text, *(numbers or [])).replace("", np.nan)
    numbers = numbers or [*table.columns.difference(["training", *text])]
    try:
        return table.assign(**table[numbers].apply(pd.to_numeric))
    except ValueError as error:
        raise Refusal(f"{path}: not a table of the study ({error}). {HINT}") from None


def read_study(trainings: Path, patients: Path, definitions: Path) -> Study:
    """Return the study's tables; refuse those that do not fit each other."""
    study = Study(
        read_table(trainings, ["train.repeat", COST[2]], [*COST[:2], TESTED]),
        read_table(patients, ["patient_id"], [*COUNTED, *SCORED]),
        read_table(definitions, ["split", "predictor"]),
    )
    names = study.trainings["training"]
    problems = [f"{trainings}: {name} is listed twice" for name in names[names.duplicated()]]
    for path, table in ((patients, study.patients), (definitions, study.definitions)):
        unlisted = table["training"][~table["training"].isin(names)].unique()
        problems += [f"{path}: {name} is not in {trainings.name}" for name in unlisted]
    found = study.patients["training"].value_counts().reindex(names, fill_value=0)
    problems += [
        f"{patients}: {n} patients of {name}, which tested {wanted:.0f}"
        for (name, n), wanted in zip(found.items(), study.trainings[TESTED], strict=True)
        if n != wanted
    ]
    keys = study.definitions[["training", "split", "predictor"]]
    problems += [
        f"{definitions}: {', '.join(row)} twice" for row in keys[keys.duplicated()].to_numpy()
    ]
    if problems:
        refuse(problems, HINT)
    return study._replace(trainings=study.trainings.set_index("training"))


def recipes(study: Study, kind: str) -> dict[str, list[str]]:
    """Return the names of the trainings of a kind by recipe, both sorted."""
    found: dict[str, list[str]] = {}
    for name in sorted(study.trainings.index):
        if name.startswith(f"{kind}/"):
            found.setdefault(name.split("/")[1], []).append(name)
    return found


def refuse_mixed(study: Study, names: list[str], *free: str) -> None:
    """Refuse trainings that are to be joined and differ in other params than the `free` ones.

    A param that only one of them has was added to the project between the two.
    """
    first, *others = (study.trainings.loc[name].dropna() for name in names)
    params = [name for name in first.index if "." in name or name == "seed"]
    problems = [
        f"{other.name}: {param} is {other[param]}, in {first.name} {first[param]}"
        for other in others
        for param in params
        if param not in free and param in other and other[param] != first[param]
    ]
    if problems:
        refuse(problems, f"Trainings of one recipe are joined: run them again. {HINT}")


def join_tested(study: Study, groups: list[list[str]]) -> list[pd.DataFrame]:
    """Return the patients tested by each group of trainings, by id; `fold` is a training's part.

    Refuses patients who are tested twice in a group.
    """
    tables, problems = [], []
    for names in groups:
        tested = study.patients[study.patients["training"].isin(names)]
        table = tested[["patient_id", *COUNTED, *SCORED]].assign(
            fold=tested["training"].str.rpartition("/")[2]
        )
        table = table.sort_values(["patient_id", "fold"], ignore_index=True)
        twice = table[table["patient_id"].duplicated(keep=False)].groupby("patient_id")["fold"]
        problems += [
            f"{names[0].rpartition('/')[0]}: {patient} is tested in folds {', '.join(folds)}"
            for patient, folds in twice
        ]
        tables.append(table)
    if problems:
        refuse(problems, f"Each fold is to test its own patients: run them again. {HINT}")
    return tables


def costs(study: Study, names: list[str]) -> dict[str, float | str]:
    """Return the minutes and images/s of a training, the means of these, and the devices.

    Those without a cost, which were interrupted, do not count; empty if all were.
    """
    rows = study.trainings.loc[names, COST].dropna()
    if rows.empty:
        return {}
    return {
        "minutes": float(rows["minutes"].mean()),
        "images_per_s": float(rows["images_per_s"].mean()),
        "device": ", ".join(sorted(set(rows["device"]))),
    }


def as_text(value: Any) -> str:
    """Return a param as a field of the tables; 1.0 and 1 are the same."""
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")


def training_rows(name: str, results: Path, cost: dict[str, float | str]) -> list[pd.DataFrame]:
    """Return a training's rows of the three tables.

    `results` holds its params.yaml and metrics; `cost` has the values of COST, or none.
    """
    metrics = results / "metrics"
    scores = read_metrics(metrics / "evaluate.json", HINT)
    kept = read_metrics(metrics / "train/metrics.json", HINT)["kept"]
    training: dict[str, Any] = {
        "training": name,
        **{column: cost.get(column, "") for column in COST},
        "kept_epoch": kept["epoch"],
        "kept_val_iou": kept.get("val_iou", ""),
        **{
            f"{n}_{split}": values[n]
            for n in ("n_patients", "n_slices")
            for split, values in scores.items()
        },
    }
    for param, value in leaves(read_yaml(results / "params.yaml")):
        training[param] = as_text(value)
    tables = [
        pd.read_csv(metrics / f"evaluate/{table}.csv", dtype=str, keep_default_na=False)
        for table in ("per_patient", "definitions")
    ]
    tested = tables[0].query("split == 'test'")[["patient_id", *COUNTED, *SCORED]]
    rows = [pd.DataFrame([training]).astype(str), tested, tables[1].drop(columns="name")]
    for table in rows[1:]:
        table.insert(0, "training", name)
    return rows


def add_training(files: list[Path], rows: list[pd.DataFrame]) -> None:
    """Put a training's rows into the three tables' files, in place of its earlier ones.

    Several processes may do so at once.
    """
    name = rows[0]["training"].iloc[0]
    with FileLock(files[0].with_name(".tables.lock")), replacing(*files) as partials:
        for file, new, partial in zip(files, rows, partials, strict=True):
            parts = [new]
            if file.exists():
                old = read_text(file)
                parts.insert(0, old[old["training"] != name])
            table = pd.concat(parts).fillna("").sort_values("training", kind="stable")
            table.to_csv(partial, index=False)
