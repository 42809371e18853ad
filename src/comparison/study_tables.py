"""The study's tables: the trainings, the patients each was tested on, and their scores.

A training's name is `<kind>/<recipe>/<part>`, such as `folds/frozen/0`. Each training has one row
in `study/trainings.csv` and one row per tested patient in `study/patients.csv`. Its rows in
`study/definitions.csv` are copied from `metrics/evaluate/definitions.csv`.
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
COST = ["minutes", "images_per_s", "device"]  # blank if the model was cached or training resumed
N_TESTED = "n_patients_test"
HINT = "`python study/run.py` writes the study's tables; earlier versions are in Git."


class Study(NamedTuple):
    """The three tables; `training` links their rows."""

    trainings: pd.DataFrame  # indexed by `training`; params are `seed` and columns with a dot
    patients: pd.DataFrame
    definitions: pd.DataFrame


def read_text(path: Path, *columns: str) -> pd.DataFrame:
    """Return one of the study's tables, all as text; raise an error if a column is missing."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table[["training", *columns]]
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{path}: not a table of the study ({error}). {HINT}") from None
    return table


def read_table(path: Path, text: list[str], numbers: list[str] | None = None) -> pd.DataFrame:
    """Return one of the study's tables, with numbers converted and empty fields as NaN.

    `text` lists required columns that stay text. `numbers` lists the columns to convert, by
    default all except `training` and `text`.
    """
    table = read_text(path, *text, *(numbers or [])).replace("", np.nan)
    numbers = numbers or [*table.columns.difference(["training", *text])]
    try:
        return table.assign(**table[numbers].apply(pd.to_numeric))
    except ValueError as error:
        raise Refusal(f"{path}: not a table of the study ({error}). {HINT}") from None


def read_study(trainings: Path, patients: Path, definitions: Path) -> Study:
    """Return the study's tables; raise an error if they do not fit together."""
    study = Study(
        read_table(trainings, ["train.repeat", COST[2]], [*COST[:2], N_TESTED]),
        read_table(patients, ["patient_id"], [*COUNTED, *SCORED]),
        read_table(definitions, ["split", "predictor"]),
    )
    names = study.trainings["training"]
    problems = [f"{trainings}: {name} has two rows" for name in names[names.duplicated()]]
    for path, table in ((patients, study.patients), (definitions, study.definitions)):
        unlisted = table["training"][~table["training"].isin(names)].unique()
        problems += [f"{path}: {name} is not in {trainings.name}" for name in unlisted]
    n_rows = study.patients["training"].value_counts().reindex(names, fill_value=0)
    problems += [
        f"{patients}: {n} rows for {name}, but {trainings.name} lists {n_tested:.0f} test patients"
        for (name, n), n_tested in zip(n_rows.items(), study.trainings[N_TESTED], strict=True)
        if n != n_tested
    ]
    keys = study.definitions[["training", "split", "predictor"]]
    problems += [
        f"{definitions}: {', '.join(row)} has two rows"
        for row in keys[keys.duplicated()].to_numpy()
    ]
    if problems:
        refuse(problems, HINT)
    return study._replace(trainings=study.trainings.set_index("training"))


def recipes(study: Study, kind: str) -> dict[str, list[str]]:
    """Return the names of all trainings of a kind by recipe; recipes and names are sorted."""
    by_recipe: dict[str, list[str]] = {}
    for name in sorted(study.trainings.index):
        if name.startswith(f"{kind}/"):
            by_recipe.setdefault(name.split("/")[1], []).append(name)
    return by_recipe


def check_same_params(study: Study, names: list[str], *free: str) -> None:
    """Raise an error if trainings to be joined differ in params other than the `free` ones.

    A param that only one training has is ignored: it was added to the project between the two.
    """
    first, *rest = (study.trainings.loc[name].dropna() for name in names)
    params = [name for name in first.index if "." in name or name == "seed"]
    problems = [
        f"{training.name}: {param} is {training[param]}; in {first.name} it is {first[param]}"
        for training in rest
        for param in params
        if param not in free and param in training and training[param] != first[param]
    ]
    if problems:
        refuse(
            problems,
            f"Trainings of one recipe must have the same params to be joined. Train them again. "
            f"{HINT}",
        )


def join_tested(study: Study, groups: list[list[str]]) -> list[pd.DataFrame]:
    """Return the patients tested by each group of trainings, sorted by id.

    `fold` is the last part of the training's name. Raises an error if a group tests a patient
    twice.
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
        refuse(
            problems, f"A patient must be in only one test fold. Train these folds again. {HINT}"
        )
    return tables


def costs(study: Study, names: list[str]) -> dict[str, float | str]:
    """Return the mean minutes and images/s of these trainings, and their devices.

    Trainings without a cost are left out: they were interrupted or came from the cache. The result
    is empty if none has a cost.
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
    """Return a param as the text of a field; 1.0 and 1 give the same text."""
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")


def training_rows(name: str, results: Path, cost: dict[str, float | str]) -> list[pd.DataFrame]:
    """Return a training's rows for each of the three tables.

    `results` is the folder with its params.yaml and metrics. `cost` has the values of COST or is
    empty.
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
    """Add a training's rows to the files of the three tables, replacing its earlier rows.

    Several processes may call this at the same time.
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
