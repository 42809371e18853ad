"""Compare candidate recipes patient by patient on inner folds."""

from typing import Any

import pandas as pd

from comparison.study_tables import HINT, Study, check_same_params, costs, join_tested, recipes
from pipeline.refusals import Refusal, refuse
from scoring.bootstrap import Bootstrap
from scoring.scores import hide_unreliable_intervals

BASE = "base"  # every other candidate differs from this one in one respect


def read_dice(study: Study, candidates: dict[str, list[str]]) -> dict[str, pd.DataFrame]:
    """Return each candidate's Dice: one row per tested patient, one column per repeat.

    The inner folds of a repeat are joined. Raises an error if trainings of one candidate differ in
    their params, test a patient twice, or test other patients than BASE.
    """
    repeats = study.trainings["train.repeat"].fillna("0")
    groups: dict[tuple[str, str], list[str]] = {}
    for name, trainings in candidates.items():
        check_same_params(study, trainings, "train.repeat", "split.inner_fold")
        for training in trainings:
            groups.setdefault((name, repeats[training]), []).append(training)
    tables = join_tested(study, [groups[key] for key in sorted(groups)])
    dice: dict[str, dict[str, pd.Series[float]]] = {name: {} for name in candidates}
    for (name, repeat), table in zip(sorted(groups), tables, strict=True):
        dice[name][repeat] = table.set_index("patient_id")["dice"]
    patients = set(next(iter(dice[BASE].values())).index)
    problems = [
        f"{candidates[name][0].rpartition('/')[0]}: repeat {repeat} does not test the same "
        f"patients as {BASE}"
        for name, columns in dice.items()
        for repeat, column in columns.items()
        if set(column.index) != patients
    ]
    if problems:
        refuse(problems, f"All candidates must use the same split. Train them again. {HINT}")
    return {name: pd.DataFrame(columns).sort_index() for name, columns in dice.items()}


def compare(study: Study, kind: str, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return one row per candidate, best first: Dice by patient, and its difference from BASE.

    Candidates are the recipes of this kind of training. The table is empty if there are none;
    otherwise BASE must be one of them. A patient's Dice is its mean over the repeats. The
    difference uses only the `n_repeats_difference` repeats that both candidates have. Its interval
    is a bootstrap over the patients' paired differences, so it does not include the variation
    between trainings. `…_repeats_low` and `…_repeats_high` show that: they are the lowest and the
    highest mean of a single repeat.
    """
    candidates = recipes(study, kind)
    if not candidates:
        return pd.DataFrame()
    if BASE not in candidates:
        raise Refusal(
            f"no training with a name like {kind}/{BASE}/…, which the candidates "
            f"{', '.join(candidates)} are compared with. {HINT}"
        )
    dice = read_dice(study, candidates)
    base = dice[BASE]
    rows: list[dict[str, Any]] = []
    for name, trainings in candidates.items():
        table = dice[name]
        differences = (table - base).dropna(axis="columns", how="all")
        if differences.empty:
            raise Refusal(
                f"{kind}/{name} and {BASE} have no repeat in common; {BASE} has the repeats "
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
                **hide_unreliable_intervals(scores, len(base)),
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
