"""The README's results are those of the study's tables, digit by digit, and no others."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import ROOT

FIGURE = "metrics/study/figures/dice_by_patient.png"


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    """Return the cells of the rows of trainings in the README, by the training's name."""
    rows = re.findall(r"^\| `([a-z]+/[a-z_]+)` \|(.*)\|$", (ROOT / "README.md").read_text(), re.M)
    found = {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}
    assert len(found) == len(rows)
    return found


def interval(scores: Any, name: str) -> str:
    low, high = scores[f"{name}_low"], scores[f"{name}_high"]
    return f"{scores[name]:.3f} ({low:.3f} to {high:.3f})".replace("-", "−")


def test_trainings_are_told_as_they_came_out(told: dict[str, list[str]]) -> None:
    study = json.loads((ROOT / "metrics/study.json").read_text())
    wanted = {}
    for kind in ("folds", "institutions"):
        for recipe, scores in study[kind].items():
            names = ("dice_patient_mean", "dice_patient_median", "iou")
            figures = [interval(scores, name) for name in names]
            wanted[f"{kind}/{recipe}"] = [str(scores["n_patients_dice"]), *figures]
    for row in pd.read_csv(ROOT / "metrics/study/choices.csv").to_dict("records"):
        difference = "" if row["training"].endswith("/base") else interval(row, "difference")
        mean = f"{row['dice_patient_mean']:.3f}"
        wanted[row["training"]] = [mean, difference, str(row["n_repeats"])]
    assert {
        name: cells[1:5] if name.startswith(("folds/", "institutions/")) else cells[1:4]
        for name, cells in told.items()
    } == wanted


def test_the_figure_is_there() -> None:
    assert f"]({FIGURE})" in re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    assert Path(ROOT / FIGURE).is_file()
