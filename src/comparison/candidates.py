"""Candidates for the recipe, compared patient by patient on inner folds."""

from typing import Any

import pandas as pd

from comparison.study_tables import HINT, Study, costs, join_tested, recipes, refuse_mixed
from pipeline.refusals import Refusal, refuse
from scoring.bootstrap import Bootstrap
from scoring.scores import without_few

BASE = "base"  # the candidate that each other one differs from in one thing


def read_dice(study: Study, candidates: dict[str, list[str]]) -> dict[str, pd.DataFrame]:
    """Return the Dice of each tested patient by candidate, a row each, a column for each repeat.

    Inner folds of one repeat are joined. Refuses trainings that are of two recipes, that test a
    patient twice, or other patients than those of BASE.
    """
    repeats = study.trainings["train.repeat"].fillna("0")
    groups: dict[tuple[str, str], list[str]] = {}
    for name, trainings in candidates.items():
        refuse_mixed(study, trainings, "train.repeat", "split.inner_fold")
        for training in trainings:
            groups.setdefault((name, repeats[training]), []).append(training)
    tables = join_tested(study, [groups[key] for key in sorted(groups)])
    dice: dict[str, dict[str, pd.Series[float]]] = {name: {} for name in candidates}
    for (name, repeat), table in zip(sorted(groups), tables, strict=True):
        dice[name][repeat] = table.set_index("patient_id")["dice"]
    patients = set(next(iter(dice[BASE].values())).index)
    problems = [
        f"{candidates[name][0].rpartition('/')[0]}: repeat {repeat} tests other patients than "
        f"{BASE}"
        for name, columns in dice.items()
        for repeat, column in columns.items()
        if set(column.index) != patients
    ]
    if problems:
        refuse(problems, f"Candidates share the split: run them again. {HINT}")
    return {name: pd.DataFrame(columns).sort_index() for name, columns in dice.items()}


def compare(study: Study, kind: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each candidate, best first: Dice by patient, and its difference from BASE.

    Candidates are the recipes of a kind of training, none or BASE among them. A patient's Dice is
    its mean over the repeats. The difference is over the `n_repeats_difference` that both have,
    and its interval that of the mean of the patients' own differences: how another training would
    come out is not in it, but in `…_repeats_low` and `…_repeats_high`, the least and the greatest
    mean of a repeat.
    """
    candidates = recipes(study, kind)
    if not candidates:
        return pd.DataFrame()
    if BASE not in candidates:
        raise Refusal(f"{BASE} is not among the candidates {', '.join(candidates)}. {HINT}")
    dice = read_dice(study, candidates)
    base = dice[BASE]
    rows: list[dict[str, Any]] = []
    for name, trainings in candidates.items():
        table = dice[name]
        differences = (table - base).dropna(axis="columns", how="all")
        if differences.empty:
            raise Refusal(
                f"{kind}/{name}: none of the repeats of {BASE}, "
                f"{', '.join(map(str, base.columns))}. {HINT}"
            )
        scores = bootstrap.mean(table.mean(axis="columns")).named("dice_patient_mean")
        if name != BASE:
            scores |= bootstrap.mean(differences.mean(axis="columns")).named("difference")
            scores["difference_repeats_low"] = differences.mean().min()
            scores["difference_repeats_high"] = differences.mean().max()
        rows.append(
            {
                "training": f"{kind}/{name}",
                **without_few(scores, len(base)),
                "dice_repeats_low": table.mean().min(),
                "dice_repeats_high": table.mean().max(),
                "n_repeats": table.shape[1],
                "n_repeats_difference": differences.shape[1] if name != BASE else 0,
                "n_patients": len(base),
                **costs(study, trainings),
            }
        )
    rows.sort(key=lambda row: -row.get("difference", 0.0))
    return pd.DataFrame(rows)
