"""Compute the study's results from the tables of its trainings.

    python src/join_folds.py study/trainings.csv study/patients.csv study/definitions.csv \
        study/worst.csv metrics/study.json metrics/study

`study/run.py` writes the tables, which are in Git. A training's name starts with its kind:

- `starting`: the project's original recipe, split by slice.
- `folds/<recipe>/<fold>`: cross-validation by patient.
- `institutions/<recipe>/<fold>`: leave-one-institution-out cross-validation.
- `inner/<candidate>/<inner fold>`: all inner folds, with several candidate recipes.
- `choices/<candidate>/<repeat>`: one inner fold, with several candidate recipes and seeds.

In `folds` and `institutions`, each patient is predicted by a network that was not trained on them.
`study/worst.csv` describes what a review of the worst patients found. All results follow from
these tables, without the data set. No other stage depends on this one.

The recipe was chosen on the training side of fold 0. Only the patients of fold 0 had no influence
on any choice, so their results are also listed separately.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from comparison.candidates import compare
from comparison.out_of_fold import (
    dice_figure,
    join,
    joined_scores,
    scores_by_definition,
    with_dice,
    with_difference,
)
from comparison.study_tables import HINT, Study, costs, read_study, recipes
from comparison.worst import read_reviews, worst
from pipeline.command import run
from pipeline.outputs import replacing, write_metrics, write_tables
from pipeline.params import Seed
from pipeline.refusals import refuse
from scoring.bootstrap import Bootstrap
from scoring.params import EvaluateParams

STARTING = "starting"  # the recipe that the project started from
PREVIOUS = "frozen"  # the recipe before the current one
CURRENT = "context"  # the recipe in params.yaml; others are compared with it
CANDIDATES = ("inner", "choices")  # kinds of training that compare candidate recipes
HELD_OUT_FOLD = "0"  # its patients had no influence on the choice of the recipe

Joined = dict[str, dict[str, pd.DataFrame]]  # patients by kind and recipe


def join_all(study: Study) -> Joined:
    """Return the patients of each cross-validation, with differences between recipes.

    Raises an error if PREVIOUS or CURRENT has no folds.
    """
    joined = {
        kind: {recipe: join(study, names) for recipe, names in recipes(study, kind).items()}
        for kind in ("folds", "institutions")
    }
    if missing := [name for name in (PREVIOUS, CURRENT) if name not in joined["folds"]]:
        refuse([f"no training with a name like folds/{name}/…" for name in missing], HINT)
    joined["institutions"] = {
        recipe: with_difference(
            patients, joined["folds"].get(recipe, patients.head(0)), "dice_out_of_fold"
        )
        for recipe, patients in joined["institutions"].items()
    }
    folds = joined["folds"]
    baselines = {recipe: CURRENT for recipe in folds if recipe != PREVIOUS} | {CURRENT: PREVIOUS}
    joined["folds"] |= {
        recipe: with_difference(folds[recipe], folds[baseline], f"dice_{baseline}")
        for recipe, baseline in baselines.items()
    }
    return joined


def all_scores(study: Study, joined: Joined, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the contents of study.json, except for the worst patients."""
    scores: dict[str, Any] = {
        kind: {
            recipe: joined_scores(joined[kind][recipe], bootstrap) | costs(study, names)
            for recipe, names in recipes(study, kind).items()
        }
        for kind in joined
    }
    scores["untouched"] = {
        recipe: joined_scores(patients[patients["fold"] == HELD_OUT_FOLD], bootstrap)
        for recipe, patients in joined["folds"].items()
        if HELD_OUT_FOLD in set(patients["fold"])
    }
    if STARTING in study.trainings.index:
        scores[STARTING] = scores_by_definition(study, STARTING) | costs(study, [STARTING])
    return scores


def institution_scores(left_out: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return one row of scores for each institution that was left out of training.

    It includes the mean Dice of PREVIOUS on the same patients.
    """
    column = f"dice_{PREVIOUS}"
    return pd.DataFrame(
        {
            "institution": code,
            **joined_scores(patients, bootstrap),
            f"{column}_mean": patients[column].mean(),
        }
        for code, patients in left_out.groupby("institution")
    )


def with_header(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the table; an empty table gets `columns`, which DVC's plots need."""
    return table if len(table) else pd.DataFrame(columns=columns)


def main(
    trainings: Path,
    patients: Path,
    definitions: Path,
    worst_reviews: Path,
    metrics: Path,
    tables: Path,
    *,
    seed: Seed,
    evaluate: EvaluateParams,
) -> None:
    bootstrap = Bootstrap(evaluate.resamples, seed)
    study = read_study(trainings, patients, definitions)
    joined = join_all(study)
    scores = all_scores(study, joined, bootstrap)
    out_of_fold = joined["folds"][CURRENT]
    empty = joined["folds"][PREVIOUS].head(0)
    left_out, before = (joined["institutions"].get(name, empty) for name in (CURRENT, PREVIOUS))
    left_out = with_dice(left_out, before, f"dice_{PREVIOUS}")
    comparisons = [compare(study, kind, bootstrap) for kind in CANDIDATES]
    worst_patients = worst(out_of_fold, read_reviews(worst_reviews))
    scores["worst"] = worst_patients.groupby("kind")["share"].sum().to_dict()
    written = {
        "out_of_fold": out_of_fold,
        "worst": worst_patients,
        "institutions": left_out,
        "by_institution": with_header(
            institution_scores(left_out, bootstrap), "institution", "dice_patient_mean"
        ),
        "choices": with_header(pd.concat(comparisons), "training", "dice_patient_mean"),
    }
    with replacing(tables) as [folder]:
        (folder / "figures").mkdir(parents=True)
        write_tables(folder, written)
        shown = {"current recipe": CURRENT, "previous recipe": PREVIOUS}
        dice_figure({name: joined["folds"][shown[name]] for name in shown}).savefig(
            folder / "figures/dice_by_patient.png", dpi=110, metadata={"Software": None}
        )
    write_metrics(metrics, scores)
    for kind in joined:
        for recipe, values in scores[kind].items():
            print(
                f"{kind}, {recipe}: Dice by patient {values['dice_patient_mean']:.4f} mean, "
                f"{values['dice_patient_median']:.4f} median, n = {values['n_patients_dice']}"
            )


if __name__ == "__main__":
    run(main)
