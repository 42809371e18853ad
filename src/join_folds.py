"""Join the tables of the study's trainings: each patient as predicted by a network new to it.

    python src/join_folds.py study/runs study/worst.csv metrics/study.json metrics/study

`study/run.py` fills `study/runs/`, which is in Git: `starting` is the recipe that the project
starts from, split by slice, `folds/<recipe>/<fold>` are cross-validations by patient,
`institutions/<recipe>/<fold>` by institution, `choices/<candidate>/<repeat>` and `longer/…` one
inner fold under several recipes, `inner/<candidate>/<inner fold>` all of them. `study/worst.csv`
tells what was seen in the worst patients.
All figures follow from these tables, without the data set. A leaf of the graph.

The recipe was chosen on the training side of fold 0, so that the patients of fold 0 alone had no
part in anything: its figures stand by themselves too.
"""

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from comparison.candidates import compare
from comparison.study_tables import WAY_OUT, costs, join_tested, refuse_mixed, subfolders
from pipeline.command import Refusal, Seed, refuse, run
from pipeline.outputs import DECIMALS, replacing, write_metrics
from scans.slices import institution
from scoring.bootstrap import Bootstrap
from scoring.definitions import COPIED, EMPTY, NETWORK, REFERENCE
from scoring.overlap import ratio
from scoring.scores import without_few

STARTING = "starting"
DEFAULT = "frozen"  # the recipe that params.yaml holds
CANDIDATES = ("choices", "inner", "longer")  # one inner fold, all of them, one with more epochs
UNTOUCHED = "0"  # the fold whose patients had no part in choosing the recipe
# Volume Dice in [0, 1] on the same 110 patients, mean and median of 22 folds (Buda et al., Comput.
# Biol. Med. 109:218, 2019), and of two expert readers of this kind of tumor, as the same authors
# quote it: mean and standard deviation.
PUBLISHED_MEAN, PUBLISHED_MEDIAN = 0.836, 0.873
READERS_MEAN, READERS_STD = 0.84, 0.02
N_WORST = 10  # patients whose predictions were looked at
# What is wrong in a patient above all: a sequence that is missing, a lesion of few pixels, a
# reference that another reader would draw otherwise, tumor seen where there is none, tumor missed.
KINDS = ("missing_sequence", "small_lesion", "reference", "false_positive", "missed")
UNSEEN = "not_looked_at"
MARKERS = ("o", "s", "^", "D", "v")  # of institutions: told apart without color too


def join(folders: list[Path]) -> pd.DataFrame:
    """Return the tested patients of all folds, by id; refuse one that is tested twice."""
    refuse_mixed(folders, "split.test_fold")
    [table] = join_tested([folders])
    table.insert(1, "institution", table["patient_id"].map(institution))
    return table


def joined_scores(patients: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return the scores of joined patients, with intervals by bootstrap over them.

    Names and definitions are those of `metrics/evaluate.json`; of fewer than FEWEST patients there
    is no interval.
    """
    tp, fp, fn = (patients[name] for name in ("tp", "fp", "fn"))
    scores = {
        **bootstrap.mean(patients["dice"]).named("dice_patient_mean"),
        **bootstrap.median(patients["dice"]).named("dice_patient_median"),
        **bootstrap.mean(patients["iou"]).named("iou_patient_mean"),
        **bootstrap.ratio(tp, tp + fp + fn).named("iou"),
        **bootstrap.ratio(tp, tp + fp).named("precision"),
        **bootstrap.ratio(tp, tp + fn).named("recall"),
        "false_positives_on_healthy_slices": float(ratio(patients["fp_healthy"].sum(), fp.sum())),
    }
    n_dice = int(patients["dice"].count())
    return {
        **without_few(scores, n_dice),
        "n_patients": len(patients),
        "n_patients_dice": n_dice,
        "n_folds": patients["fold"].nunique(),
    }


def starting_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every definition of IoU and Dice by split and predictor.

    Between those of an empty answer and of the reference itself lies what a network can score.
    Refuses a folder without such a table.
    """
    predictors = {"network": NETWORK, "always_empty": EMPTY, "reference": REFERENCE}
    tested = predictors | {"copied_mask": COPIED}
    path = folder / "definitions.csv"
    try:
        table = pd.read_csv(path).set_index(["split", "predictor"]).drop(columns="name")
        rows = table.to_dict("index")
        return {
            "train": {key: rows["train", name] for key, name in predictors.items()},
            "test": {key: rows["test", name] for key, name in tested.items()},
        }
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{path}: no table of definitions ({error}). {WAY_OUT}") from None


def with_dice(table: pd.DataFrame, other: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return `table` with one more column: the Dice that its patients have in `other`."""
    dice = other[["patient_id", "dice"]].rename(columns={"dice": column})
    return table.merge(dice, on="patient_id", how="left", validate="one_to_one")


def side_by_side(recipes: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the joined patients of DEFAULT, with the Dice of each other recipe beside its own."""
    table = recipes[DEFAULT]
    for recipe, other in recipes.items():
        if recipe != DEFAULT:
            table = with_dice(table, other, f"dice_{recipe}")
    return table


def beside_out_of_fold(left_out: pd.DataFrame, out_of_fold: pd.DataFrame) -> pd.DataFrame:
    """Return the patients of left-out institutions, `difference` being what that costs them.

    It is their Dice less `dice_out_of_fold`, that by a network which knew others of the same place.
    """
    table = with_dice(left_out, out_of_fold, "dice_out_of_fold")
    return table.assign(difference=table["dice"] - table["dice_out_of_fold"])


def left_out_scores(patients: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return `joined_scores`, and the mean of `difference` over the patients who have one."""
    difference = bootstrap.mean(patients["difference"]).named("difference")
    n_difference = int(patients["difference"].count())
    return {
        **joined_scores(patients, bootstrap),
        **without_few(difference, n_difference),
        "n_patients_difference": n_difference,
    }


def read_seen(path: Path) -> pd.DataFrame:
    """Return what somebody saw who looked at patients: `patient_id`, `dice`, `kind`, `seen`.

    `dice` is that of the prediction looked at. Refuses what is no such table.
    """
    try:
        table = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)
        table = table[["patient_id", "dice", "kind", "seen"]].astype({"dice": float})
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(
            f"{path}: no table of patients looked at ({error}); restore it from Git"
        ) from None
    problems = [
        f"{path}: {patient} is of the kind {kind!r}"
        for patient, kind in zip(table["patient_id"], table["kind"], strict=True)
        if kind not in KINDS
    ]
    twice = table["patient_id"][table["patient_id"].duplicated()]
    problems += [f"{path}: {patient} stands there twice" for patient in twice]
    if problems:
        refuse(problems, f"Kinds are {', '.join(KINDS)}; a patient has one.")
    return table


def worst(patients: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return the patients of the lowest Dice, and what was seen in each.

    `share` is the patient's part of what all patients together lack to a Dice of 1. What was seen
    in a prediction of another Dice, or in a patient who is not there, says nothing: refused.
    """
    found = patients.set_index("patient_id")["dice"].round(DECIMALS)
    problems = [
        f"{patient} was looked at with a Dice of {dice}; it is {found.get(patient, 'not there')}"
        for patient, dice in zip(seen["patient_id"], seen["dice"], strict=True)
        if found.get(patient) != dice
    ]
    if problems:
        refuse(problems, "Look at their predictions and correct the table, or drop the rows.")
    lacking = 1 - patients["dice"]
    table = patients.assign(share=lacking / lacking.sum()).nsmallest(N_WORST, "dice", keep="all")
    table = table.merge(seen.drop(columns="dice"), "left", "patient_id", validate="one_to_one")
    table["kind"] = table["kind"].fillna(UNSEEN)
    counted = ["n_abnormal", "tp", "fp", "fn", "fp_healthy"]
    return table[["patient_id", "fold", "dice", "share", "kind", "seen", *counted]]


def dice_figure(recipes: dict[str, pd.DataFrame]) -> Figure:
    """Return the Dice of every patient by recipe, worst to best, beside what is published."""
    figure = Figure(figsize=(4.2 * len(recipes) + 1, 3.8), layout="constrained")
    codes = sorted({code for table in recipes.values() for code in table["institution"]})
    panels = figure.subplots(1, len(recipes), sharey=True, squeeze=False)[0]
    for axes, (recipe, table) in zip(panels, recipes.items(), strict=True):
        ranked = table.dropna(subset="dice").sort_values("dice", ignore_index=True)
        for number, code in enumerate(codes):
            rows = ranked[ranked["institution"] == code]
            style = {"marker": MARKERS[number % len(MARKERS)], "color": f"C{number}"}
            label = f"{code}, n = {len(rows)}"
            axes.plot(
                rows.index + 1, rows["dice"], linestyle="", markersize=4, label=label, **style
            )
        mean, median = ranked["dice"].mean(), ranked["dice"].median()
        axes.axhline(mean, color="black", linewidth=1, label=f"mean, {mean:.3f}")
        label = f"published, 22 folds: mean {PUBLISHED_MEAN}, median {PUBLISHED_MEDIAN}"
        axes.axhline(PUBLISHED_MEAN, color="gray", linestyle=":", label=label)
        low, high = READERS_MEAN - READERS_STD, READERS_MEAN + READERS_STD
        label = f"two readers, {READERS_MEAN} ± {READERS_STD}"
        axes.axhspan(low, high, color="lightgray", zorder=0, label=label)
        axes.legend(loc="lower right", fontsize=8)
        axes.set(
            title=f"{recipe}: mean {mean:.3f}, median {median:.3f}, n = {len(ranked)}",
            xlabel="patients, worst to best",
            ylim=(0, 1),
        )
        axes.title.set_fontsize(10)
    panels[0].set_ylabel("Dice of the volume, out of fold")
    return figure


def main(
    runs: Path,
    worst_seen: Path,
    metrics: Path,
    tables: Path,
    *,
    seed: Seed,
    evaluate_resamples: Annotated[int, Field(ge=100)],
) -> None:
    bootstrap = Bootstrap(evaluate_resamples, seed)
    kinds = {kind: subfolders(runs / kind) for kind in ("folds", "institutions")}
    if DEFAULT not in kinds["folds"]:
        raise Refusal(f"{runs}/folds/{DEFAULT}: no training there. {WAY_OUT}")
    joined = {
        kind: {recipe: join(folders) for recipe, folders in recipes.items()}
        for kind, recipes in kinds.items()
    }
    joined["institutions"] = {
        recipe: beside_out_of_fold(patients, joined["folds"].get(recipe, patients.head(0)))
        for recipe, patients in joined["institutions"].items()
    }
    scored = {"folds": joined_scores, "institutions": left_out_scores}
    scores: dict[str, Any] = {
        kind: {
            recipe: scored[kind](joined[kind][recipe], bootstrap) | costs(folders)
            for recipe, folders in recipes.items()
        }
        for kind, recipes in kinds.items()
    }
    scores["untouched"] = {
        recipe: joined_scores(patients[patients["fold"] == UNTOUCHED], bootstrap)
        for recipe, patients in joined["folds"].items()
        if UNTOUCHED in set(patients["fold"])
    }
    if (runs / STARTING).is_dir():
        starting = runs / STARTING
        scores[STARTING] = starting_scores(starting) | costs([starting])
    failed = worst(joined["folds"][DEFAULT], read_seen(worst_seen))
    scores["worst"] = failed.groupby("kind")["share"].sum().to_dict()
    out_of_fold = side_by_side(joined["folds"])
    left_out = joined["institutions"].get(DEFAULT, out_of_fold.head(0))
    groups = [
        {"institution": code, **left_out_scores(patients, bootstrap)}
        for code, patients in left_out.groupby("institution")
    ]
    compared = [compare(subfolders(runs / kind), bootstrap) for kind in CANDIDATES]
    found = [table for table in compared if len(table)]
    written = {
        "out_of_fold": out_of_fold,
        "worst": failed,
        "institutions": left_out,
        "by_institution": pd.DataFrame(
            groups, columns=None if groups else ["institution", "dice_patient_mean"]
        ),
        "choices": pd.concat(found)
        if found
        else pd.DataFrame(columns=["training", "dice_patient_mean"]),
    }
    with replacing(tables) as [folder]:
        (folder / "figures").mkdir(parents=True)
        for name, table in written.items():
            table.round(DECIMALS).to_csv(folder / f"{name}.csv", index=False)
        dice_figure(joined["folds"]).savefig(
            folder / "figures/dice_by_patient.png", dpi=110, metadata={"Software": None}
        )
    write_metrics(metrics, scores)
    for kind, recipes in kinds.items():
        for recipe in recipes:
            values = scores[kind][recipe]
            print(
                f"{kind}, {recipe}: Dice by patient {values['dice_patient_mean']:.4f} mean, "
                f"{values['dice_patient_median']:.4f} median, n = {values['n_patients_dice']}"
            )


if __name__ == "__main__":
    run(main, "seed", "evaluate.resamples")
