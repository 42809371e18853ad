"""Candidates for the recipe, compared patient by patient on one inner fold."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from bootstrap import Bootstrap
from scores import without_few
from stage import Refusal, refuse
from trainings import WAY_OUT, costs, read_tested, refuse_mixed

BASE = "base"  # the candidate that each other one differs from in one thing


def read_candidate(folders: list[Path], patients: Iterable[str] | None) -> pd.DataFrame:
    """Return the Dice of each tested patient, a row each, and a column for each repeat.

    Refuses repeats of other patients than those given, or than those of the first repeat.
    """
    refuse_mixed(folders, "train.repeat")
    columns = {each.name: read_tested(each).set_index("patient_id")["dice"] for each in folders}
    expected = set(patients) if patients is not None else set(next(iter(columns.values())).index)
    problems = [
        f"{folder}: tested on other patients than those of {BASE}"
        for folder in folders
        if set(columns[folder.name].index) != expected
    ]
    if problems:
        refuse(problems, f"Candidates share the split: run them again. {WAY_OUT}")
    return pd.concat(columns, axis="columns").sort_index()


def compare(candidates: dict[str, list[Path]], bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each candidate: Dice by patient, and its difference from BASE.

    `candidates` are folders of repeats by name, empty or with BASE among them. A patient's Dice is
    its mean over the repeats. The difference is over the `n_repeats_difference` that both have,
    and its interval that of the mean of the patients' own differences: how another training would
    come out is not in it, but in `…_repeats_low` and `…_repeats_high`, the least and the greatest
    mean of a repeat.
    """
    if not candidates:
        return pd.DataFrame()
    if BASE not in candidates:
        raise Refusal(f"{BASE} is not among the candidates {', '.join(candidates)}. {WAY_OUT}")
    base = read_candidate(candidates[BASE], None)
    rows: list[dict[str, Any]] = []
    for name, folders in candidates.items():
        table = read_candidate(folders, base.index)
        differences = (table - base).dropna(axis="columns", how="all")
        if differences.empty:
            raise Refusal(
                f"{folders[0].parent}: none of the repeats of {BASE}, "
                f"{', '.join(map(str, base.columns))}. {WAY_OUT}"
            )
        scores = bootstrap.mean(table.mean(axis="columns")).named("dice_patient_mean")
        if name != BASE:
            scores |= bootstrap.mean(differences.mean(axis="columns")).named("difference")
            scores["difference_repeats_low"] = differences.mean().min()
            scores["difference_repeats_high"] = differences.mean().max()
        rows.append(
            {
                "training": f"{folders[0].parent.parent.name}/{name}",
                **without_few(scores, len(base)),
                "dice_repeats_low": table.mean().min(),
                "dice_repeats_high": table.mean().max(),
                "n_repeats": table.shape[1],
                "n_repeats_difference": differences.shape[1] if name != BASE else 0,
                "n_patients": len(base),
                **costs(folders),
            }
        )
    table = pd.DataFrame(rows)
    return table.sort_values("dice_patient_mean", ascending=False, ignore_index=True)
