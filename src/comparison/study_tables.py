"""The folder of tables that a training of the study leaves, as `study/run.py` keeps it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pipeline.command import Refusal, refuse
from pipeline.dotted import leaves
from pipeline.outputs import read_metrics

COUNTED = ["n_slices", "n_abnormal", "tp", "fp", "fn", "tn", "fp_healthy"]
SCORED = ["iou", "dice", "precision", "recall", "hd95", "surface_dice", "confidence"]
WAY_OUT = "`python study/run.py` writes it."


def subfolders(folder: Path) -> dict[str, list[Path]]:
    """Return the folders within each folder that has some, by name."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*/")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def read_tested(folder: Path) -> pd.DataFrame:
    """Return the rows of per_patient.csv of the patients that a training was tested on.

    Refuses what is no such table.
    """
    path = folder / "per_patient.csv"
    try:
        table = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False, na_values=[""])
        tested = table[table["split"] == "test"].set_index("patient_id")
        numeric: pd.DataFrame = tested[[*COUNTED, *SCORED]].apply(pd.to_numeric)
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{path}: no table of patients ({error}). {WAY_OUT}") from None
    return numeric.reset_index()


def read_recipe(folder: Path) -> dict[str, Any]:
    """Return the params of a training by dotted name; refuse a folder without them."""
    path = folder / "params.yaml"
    try:
        return dict(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise Refusal(f"{path}: no params ({error}). {WAY_OUT}") from None


def refuse_mixed(folders: list[Path], *free: str) -> None:
    """Refuse trainings that are to be joined and differ in more than the `free` params.

    A param that only one of them has came to the project between them.
    """
    problems = []
    first = read_recipe(folders[0])
    for folder in folders[1:]:
        other = read_recipe(folder)
        problems += [
            f"{folder}: {name} is {other[name]}, in {folders[0].name} {first[name]}"
            for name in sorted(first.keys() & other.keys() - {*free})
            if first[name] != other[name]
        ]
    if problems:
        refuse(problems, f"Trainings of one recipe are joined: run them again. {WAY_OUT}")


def join_tested(groups: list[list[Path]]) -> list[pd.DataFrame]:
    """Return the tested patients of each group of folders, by id, `fold` being the folder's name.

    Refuses patients who are tested twice in a group.
    """
    tables, problems = [], []
    for folders in groups:
        found = [read_tested(folder).assign(fold=folder.name) for folder in folders]
        table = pd.concat(found).sort_values(["patient_id", "fold"], ignore_index=True)
        twice = table[table["patient_id"].duplicated(keep=False)].groupby("patient_id")["fold"]
        problems += [
            f"{folders[0].parent}: {patient} is tested in folds {', '.join(f)}"
            for patient, f in twice
        ]
        tables.append(table)
    if problems:
        refuse(problems, f"Each fold is to test its own patients: run them again. {WAY_OUT}")
    return tables


def costs(folders: Iterable[Path]) -> dict[str, float | str]:
    """Return minutes of training of all folders together, the mean of their images/s, the devices.

    Empty unless all of them were trained for it, at once.
    """
    found = [read_metrics(folder / "cost.json", WAY_OUT) for folder in folders]
    if not all(found):
        return {}
    try:
        return {
            "minutes": sum(cost["minutes"] for cost in found),
            "images_per_s": sum(cost["images_per_s"] for cost in found) / len(found),
            "device": ", ".join(sorted({cost["device"] for cost in found})),
        }
    except (KeyError, TypeError) as error:
        names = ", ".join(str(folder / "cost.json") for folder in folders)
        raise Refusal(f"one of {names} is no table of costs ({error!r}). {WAY_OUT}") from None
