"""Out-of-fold results: patients of all folds, each predicted by a network not trained on them."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from comparison.study_tables import HINT, Study, check_same_params, join_tested
from pipeline.refusals import Refusal
from scans.names import institution
from scoring.bootstrap import Bootstrap
from scoring.definitions import COPIED, EMPTY, NETWORK, REFERENCE
from scoring.overlap import ratio
from scoring.scores import hide_unreliable_intervals, patient_scores

# Volume Dice in [0, 1]: mean and median of 22 folds on the same 110 patients, and mean and standard
# deviation of two expert readers of this kind of tumor, as published by Mateusz Buda
# (https://mateuszbuda.github.io/2017/12/01/brainseg.html). The paper by Buda et al. (Comput. Biol.
# Med. 109:218, 2019) reports a mean of 0.82.
PUBLISHED_MEAN, PUBLISHED_MEDIAN = 0.836, 0.873
READERS_MEAN, READERS_STD = 0.84, 0.02
MARKERS = ("o", "s", "^", "D", "v")  # one per institution, so that color is not needed


def join(study: Study, trainings: list[str]) -> pd.DataFrame:
    """Return the tested patients of all folds, sorted by id.

    Raises an error if a patient is tested twice, or if the trainings differ in their params.
    """
    check_same_params(study, trainings, "split.test_fold")
    [table] = join_tested(study, [trainings])
    table.insert(1, "institution", table["patient_id"].map(institution))
    return table


def joined_scores(patients: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return the scores of joined patients, with intervals by bootstrap over patients.

    Names and definitions are those of `metrics/evaluate.json`. Intervals are NaN for fewer than
    MIN_PATIENTS patients. If the table has a column `difference`, its mean is included, over the
    patients that have a value.
    """
    fp_healthy = float(ratio(patients["fp_healthy"].sum(), patients["fp"].sum()))
    scores = patient_scores(patients, bootstrap)
    scores |= {"false_positives_on_healthy_slices": fp_healthy}
    n_dice = int(patients["dice"].count())
    scores = {
        **hide_unreliable_intervals(scores, n_dice),
        "n_patients": len(patients),
        "n_patients_dice": n_dice,
        "n_folds": patients["fold"].nunique(),
    }
    if "difference" in patients:
        n_difference = int(patients["difference"].count())
        mean = bootstrap.mean(patients["difference"]).named("difference")
        scores |= hide_unreliable_intervals(mean, n_difference)
        scores["n_patients_difference"] = n_difference
    return scores


def scores_by_definition(study: Study, training: str) -> dict[str, dict[str, Any]]:
    """Return a training's scores by every definition of IoU and Dice, by split and predictor.

    An empty prediction and the reference itself are included as the limits of what a network can
    score. Raises an error for a training that was split by patient, because it has no scores of
    copied masks.
    """
    predictors = {"network": NETWORK, "always_empty": EMPTY, "reference": REFERENCE}
    tested = predictors | {"copied_mask": COPIED}
    table = study.definitions[study.definitions["training"] == training]
    scores = table.set_index(["split", "predictor"]).drop(columns="training")
    rows = scores.to_dict("index")
    try:
        return {
            "train": {key: rows["train", name] for key, name in predictors.items()},
            "test": {key: rows["test", name] for key, name in tested.items()},
        }
    except KeyError as error:
        raise Refusal(
            f"study/definitions.csv has no row for {training} with (split, predictor) {error}. "
            f"{HINT}"
        ) from None


def with_dice(table: pd.DataFrame, other: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the table with each patient's Dice in `other` as `column`."""
    dice = other[["patient_id", "dice"]].rename(columns={"dice": column})
    return table.merge(dice, on="patient_id", how="left", validate="one_to_one")


def with_difference(table: pd.DataFrame, other: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the table with each patient's Dice in `other` as `column`, and the `difference`.

    The difference is the patient's Dice in `table` minus that in `other`.
    """
    table = with_dice(table, other, column)
    return table.assign(difference=table["dice"] - table[column])


def dice_figure(recipes: dict[str, pd.DataFrame]) -> Figure:
    """Return a figure of every patient's Dice per recipe, from worst to best, and published Dice.

    Each recipe is one panel.
    """
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
        axes.axhline(mean, color="black", linewidth=1, label=f"mean: {mean:.3f}")
        label = f"published (22 folds): mean {PUBLISHED_MEAN}, median {PUBLISHED_MEDIAN}"
        axes.axhline(PUBLISHED_MEAN, color="gray", linestyle=":", label=label)
        low, high = READERS_MEAN - READERS_STD, READERS_MEAN + READERS_STD
        label = f"two expert readers: {READERS_MEAN} ± {READERS_STD}"
        axes.axhspan(low, high, color="lightgray", zorder=0, label=label)
        axes.legend(loc="lower right", fontsize=8)
        axes.set(
            title=f"{recipe}: mean {mean:.3f}, median {median:.3f}, n = {len(ranked)}",
            xlabel="patients, from worst to best",
            ylim=(0, 1),
        )
        axes.title.set_fontsize(10)
    panels[0].set_ylabel("out-of-fold Dice of the volume")
    return figure
