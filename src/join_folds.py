"""Join the tables of the study's trainings: each patient as predicted by who never saw it.

    python src/join_folds.py study/runs study/worst.csv metrics/study.json metrics/study

`study/run.py` fills `study/runs/`, which is in Git: `starting` is the recipe that the project
starts from, split by slice, `folds/<recipe>/<fold>` are cross-validations by patient,
`institutions/<recipe>/<fold>` by institution, `choices/<candidate>/<repeat>` and `longer/…` one
inner fold under several recipes. `study/worst.csv` tells what was seen in the worst patients.
All figures follow from these tables, without the data set. A leaf of the graph.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from bootstrap import Bootstrap
from definitions import COPIED, NETWORK
from outputs import DECIMALS, read_metrics, replacing, write_metrics
from overlap import ratio
from scores import FEWEST
from slices import institution
from stage import Refusal, Seed, refuse, run

STARTING = "starting"
CANDIDATES = ("choices", "longer")  # short trainings of all candidates, long ones of some
DEFAULT = "frozen"  # the recipe that params.yaml holds
BASE = "base"  # the candidate that each other one differs from in one thing
# What others report on these 110 patients, volume Dice in [0, 1]: mean and median of 22 folds by
# patient (Buda et al., Comput. Biol. Med. 109:218, 2019), and of two expert readers, mean and
# standard deviation.
PUBLISHED_MEAN, PUBLISHED_MEDIAN = 0.836, 0.873
READERS_MEAN, READERS_STD = 0.84, 0.02
COUNTED = ["n_slices", "n_abnormal", "tp", "fp", "fn", "tn", "fp_healthy"]
SCORED = ["iou", "dice", "precision", "recall", "hd95", "surface_dice", "confidence"]
N_WORST = 10  # patients whose predictions were looked at
# What is wrong in a patient above all: a sequence that is missing, a lesion of few pixels, a
# reference that another reader would draw otherwise, tumor seen where there is none, tumor missed.
KINDS = ("missing_sequence", "small_lesion", "reference", "false_positive", "missed")
UNSEEN = "not_looked_at"
WAY_OUT = "`python study/run.py` writes it."
MARKERS = ("o", "s", "^", "D", "v")  # of institutions: told apart without color too


def read_tested(folder: Path) -> pd.DataFrame:
    """Return the rows of per_patient.csv of the patients that a training was tested on.

    Refuses what is no such table.
    """
    path = folder / "per_patient.csv"
    try:
        table = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False, na_values=[""])
        tested = table[table["split"] == "test"][["patient_id", *COUNTED, *SCORED]]
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{path}: no table of patients ({error}). {WAY_OUT}") from None
    return tested


def join(folders: Iterable[Path]) -> pd.DataFrame:
    """Return the tested patients of all folds, by id; refuse one that is tested twice."""
    tables = [read_tested(folder).assign(fold=folder.name) for folder in sorted(folders)]
    table = pd.concat(tables).sort_values(["patient_id", "fold"], ignore_index=True)
    twice = table[table["patient_id"].duplicated(keep=False)].groupby("patient_id")["fold"]
    if len(twice):
        problems = [f"{patient} is tested in folds {', '.join(f)}" for patient, f in twice]
        refuse(
            problems, "Folds of one cross-validation share seed and split.folds: run them again."
        )
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
        "n_patients": len(patients),
        "n_folds": patients["fold"].nunique(),
    }
    few = patients["dice"].count() < FEWEST
    return {
        name: value
        for name, value in scores.items()
        if not (few and name.endswith(("_low", "_high")))
    }


def costs(folders: Iterable[Path]) -> dict[str, float | int]:
    """Return minutes of training of all folders together and the mean of their images/s.

    Empty unless all of them were trained for it, at once.
    """
    found = [read_metrics(folder / "cost.json", WAY_OUT) for folder in folders]
    if not all(found):
        return {}
    return {
        "minutes": sum(cost["minutes"] for cost in found),
        "images_per_s": sum(cost["images_per_s"] for cost in found) / len(found),
    }


def starting_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every definition of IoU and Dice by split, of the network and of copied masks.

    Refuses a folder without such a table.
    """
    path = folder / "definitions.csv"
    try:
        table = pd.read_csv(path).set_index(["split", "predictor"]).drop(columns="name")
        rows = table.to_dict("index")
        return {
            "train": {"network": rows["train", NETWORK]},
            "test": {"network": rows["test", NETWORK], "copied_mask": rows["test", COPIED]},
        }
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(f"{path}: no table of definitions ({error}). {WAY_OUT}") from None


def side_by_side(recipes: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the joined patients of DEFAULT, with the Dice of each other recipe beside its own."""
    table = recipes[DEFAULT]
    for recipe, other in recipes.items():
        if recipe != DEFAULT:
            dice = other[["patient_id", "dice"]].rename(columns={"dice": f"dice_{recipe}"})
            table = table.merge(dice, on="patient_id", how="left", validate="one_to_one")
    return table


def compare(kind: str, candidates: dict[str, list[Path]], bootstrap: Bootstrap) -> pd.DataFrame:
    """Return a row for each candidate of a kind: Dice by patient, and its difference from BASE.

    A patient's Dice is its mean over the repeats. The difference is that of the repeats which both
    have, its interval that of the mean of the patients' own differences; `repeats_low` and
    `repeats_high` are the least and the greatest mean of a repeat. Refuses candidates without BASE,
    or without a repeat in common with it, or of other patients.
    """
    if candidates and BASE not in candidates:
        raise Refusal(f"study/runs/{kind}/{BASE}: no such folder. {WAY_OUT}")
    dice = {  # a row for each patient, a column for each repeat
        name: pd.concat(
            {each.name: read_tested(each).set_index("patient_id")["dice"] for each in folders},
            axis="columns",
        )
        for name, folders in candidates.items()
    }
    rows: list[dict[str, Any]] = []
    for name, table in dice.items():
        base = dice[BASE]
        shared = base.columns.intersection(table.columns)
        if set(table.index) != set(base.index) or shared.empty:
            raise Refusal(
                f"study/runs/{kind}/{name}: no repeat, or other patients, of those of {BASE}"
            )
        difference = (table[shared] - base[shared]).mean(axis="columns").loc[base.index]
        rows.append(
            {
                "kind": kind,
                "candidate": name,
                **bootstrap.mean(table.mean(axis="columns").loc[base.index]).named(
                    "dice_patient_mean"
                ),
                "repeats_low": table.mean().min(),
                "repeats_high": table.mean().max(),
                **(bootstrap.mean(difference).named("difference") if name != BASE else {}),
                "n_repeats": table.shape[1],
                "n_patients": len(table),
                **costs(candidates[name]),
            }
        )
    table = pd.DataFrame(rows, columns=None if rows else ["kind", "candidate", "dice_patient_mean"])
    return table.sort_values("dice_patient_mean", ascending=False, ignore_index=True)


def read_seen(path: Path) -> pd.DataFrame:
    """Return `patient_id`, `kind` and `seen` of the patients that somebody has looked at."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[["patient_id", "kind", "seen"]]
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

    `share` is the patient's part of what all patients together lack to a Dice of 1.
    """
    lacking = 1 - patients["dice"]
    table = patients.assign(share=lacking / lacking.sum()).nsmallest(N_WORST, "dice", keep="all")
    table = table.merge(seen, on="patient_id", how="left", validate="one_to_one")
    table["kind"] = table["kind"].fillna(UNSEEN)
    counted = ["n_abnormal", "tp", "fp", "fn", "fp_healthy"]
    return table[["patient_id", "fold", "dice", "share", "kind", "seen", *counted]]


def dice_figure(recipes: dict[str, pd.DataFrame]) -> Figure:
    """Return the Dice of every patient by recipe, worst to best, beside what is published."""
    figure = Figure(figsize=(4.2 * len(recipes) + 1, 3.8), layout="constrained")
    panels = figure.subplots(1, len(recipes), sharey=True, squeeze=False)[0]
    for axes, (recipe, table) in zip(panels, recipes.items(), strict=True):
        ranked = table.dropna(subset="dice").sort_values("dice", ignore_index=True)
        for marker, (code, rows) in zip(MARKERS, ranked.groupby("institution"), strict=False):
            label = f"{code}, n = {len(rows)}"
            axes.plot(rows.index + 1, rows["dice"], marker, markersize=4, label=label)
        mean, median = ranked["dice"].mean(), ranked["dice"].median()
        axes.axhline(mean, color="black", linewidth=1, label=f"mean, {mean:.3f}")
        axes.axhline(
            PUBLISHED_MEAN, color="gray", linestyle=":", label=f"published mean, {PUBLISHED_MEAN}"
        )
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


def subfolders(folder: Path) -> dict[str, list[Path]]:
    """Return the folders within each folder, by name; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    return {
        each.name: sorted(path for path in each.iterdir() if path.is_dir())
        for each in sorted(folder.iterdir())
        if each.is_dir()
    }


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
        raise Refusal(f"{runs}/folds/{DEFAULT}: no such folder. {WAY_OUT}")
    joined = {
        kind: {recipe: join(folders) for recipe, folders in recipes.items()}
        for kind, recipes in kinds.items()
    }
    scores = {
        kind: {
            recipe: joined_scores(joined[kind][recipe], bootstrap) | costs(folders)
            for recipe, folders in recipes.items()
        }
        for kind, recipes in kinds.items()
    }
    metrics_written: dict[str, Any] = dict(scores)
    if (runs / STARTING).is_dir():
        starting = runs / STARTING
        metrics_written[STARTING] = starting_scores(starting) | costs([starting])
    failed = worst(joined["folds"][DEFAULT], read_seen(worst_seen))
    metrics_written["worst"] = failed.groupby("kind")["share"].sum().to_dict()
    left_out = joined["institutions"].get(DEFAULT, pd.DataFrame(columns=["institution"]))
    written = {
        "out_of_fold": side_by_side(joined["folds"]),
        "worst": failed,
        "institutions": left_out,
        "by_institution": pd.DataFrame(
            [
                {"institution": code, **joined_scores(patients, bootstrap)}
                for code, patients in left_out.groupby("institution")
            ]
        ),
        "choices": pd.concat(
            [compare(kind, subfolders(runs / kind), bootstrap) for kind in CANDIDATES]
        ),
    }
    with replacing(tables) as [folder]:
        (folder / "figures").mkdir(parents=True)
        for name, table in written.items():
            table.round(DECIMALS).to_csv(folder / f"{name}.csv", index=False)
        dice_figure(joined["folds"]).savefig(
            folder / "figures/dice_by_patient.png", dpi=110, metadata={"Software": None}
        )
    write_metrics(metrics, metrics_written)
    for kind, recipes in scores.items():
        for recipe, values in recipes.items():
            print(
                f"{kind}, {recipe}: Dice by patient {values['dice_patient_mean']:.4f} mean, "
                f"{values['dice_patient_median']:.4f} median, n = {values['n_patients']}"
            )


if __name__ == "__main__":
    run(main, "seed", "evaluate.resamples")
