"""Join the tables of the study's trainings: each patient as predicted by a network new to it.

    python src/join_folds.py study/trainings.csv study/patients.csv study/definitions.csv \
        study/worst.csv metrics/study.json metrics/study

`study/run.py` fills the tables, which are in Git. The kinds of training, by their names:

- `starting`: the recipe that the project starts from, split by slice;
- `folds/<recipe>/<fold>`: a cross-validation by patient;
- `institutions/<recipe>/<fold>`: a cross-validation by institution;
- `inner/<candidate>/<inner fold>`: the inner folds under several recipes;
- `choices/<candidate>/<repeat>`: one of them with several seeds.

`study/worst.csv` says what was seen in the worst patients.
All figures follow from these tables, without the data set. A leaf of the graph.

The recipe was chosen on the training side of fold 0, so that the patients of fold 0 alone had no
part in anything: its figures stand by themselves too.
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from comparison.candidates import compare
from comparison.out_of_fold import (
    dice_figure,
    join,
    joined_scores,
    starting_scores,
    with_difference,
)
from comparison.study_tables import HINT, Study, costs, read_study, recipes
from comparison.worst import read_seen, worst
from pipeline.command import run
from pipeline.outputs import replacing, write_metrics, write_tables
from pipeline.params import Seed
from pipeline.refusals import refuse
from scoring.bootstrap import Bootstrap
from scoring.params import EvaluateParams

STARTING = "starting"
EARLIER = "frozen"  # the first edition's recipe, which the others are compared with
CURRENT = "context"  # that of params.yaml
CANDIDATES = ("inner", "choices")  # all inner folds, one of them
UNTOUCHED = "0"  # the fold whose patients had no part in choosing the recipe

Joined = dict[str, dict[str, pd.DataFrame]]  # patients by kind and recipe


def join_all(study: Study) -> Joined:
    """Return the patients of each cross-validation; refuse a study without the two recipes."""
    joined = {
        kind: {recipe: join(study, names) for recipe, names in recipes(study, kind).items()}
        for kind in ("folds", "institutions")
    }
    if lacking := [name for name in (EARLIER, CURRENT) if name not in joined["folds"]]:
        refuse([f"folds/{name}: no training of that name" for name in lacking], HINT)
    joined["institutions"] = {
        recipe: with_difference(
            patients, joined["folds"].get(recipe, patients.head(0)), "dice_out_of_fold"
        )
        for recipe, patients in joined["institutions"].items()
    }
    joined["folds"] |= {
        recipe: with_difference(patients, joined["folds"][EARLIER], f"dice_{EARLIER}")
        for recipe, patients in joined["folds"].items()
        if recipe != EARLIER
    }
    return joined


def all_scores(study: Study, joined: Joined, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return what study.json holds, but for the worst patients."""
    scores: dict[str, Any] = {
        kind: {
            recipe: joined_scores(joined[kind][recipe], bootstrap) | costs(study, names)
            for recipe, names in recipes(study, kind).items()
        }
        for kind in joined
    }
    scores["untouched"] = {
        recipe: joined_scores(patients[patients["fold"] == UNTOUCHED], bootstrap)
        for recipe, patients in joined["folds"].items()
        if UNTOUCHED in set(patients["fold"])
    }
    if STARTING in study.trainings.index:
        scores[STARTING] = starting_scores(study, STARTING) | costs(study, [STARTING])
    return scores


def institution_scores(left_out: pd.DataFrame, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return the scores of each institution that was left out."""
    return pd.DataFrame(
        {"institution": code, **joined_scores(patients, bootstrap)}
        for code, patients in left_out.groupby("institution")
    )


def with_header(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the table; an empty one with the columns that DVC's plots ask for."""
    return table if len(table) else pd.DataFrame(columns=columns)


def main(
    trainings: Path,
    patients: Path,
    definitions: Path,
    worst_seen: Path,
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
    left_out = joined["institutions"].get(EARLIER, out_of_fold.head(0))
    compared = [compare(study, kind, bootstrap) for kind in CANDIDATES]
    failed = worst(out_of_fold, read_seen(worst_seen))
    scores["worst"] = failed.groupby("kind")["share"].sum().to_dict()
    written = {
        "out_of_fold": out_of_fold,
        "worst": failed,
        "institutions": left_out,
        "by_institution": with_header(
            institution_scores(left_out, bootstrap), "institution", "dice_patient_mean"
        ),
        "choices": with_header(pd.concat(compared), "training", "dice_patient_mean"),
    }
    with replacing(tables) as [folder]:
        (folder / "figures").mkdir(parents=True)
        write_tables(folder, written)
        shown = {recipe: joined["folds"][recipe] for recipe in (CURRENT, EARLIER)}
        dice_figure(shown).savefig(
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
