"""Print the tables of README.md and docs/; `make docs` writes them into the pages."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from comparison.out_of_fold import (
    PUBLISHED_MEAN,
    PUBLISHED_MEDIAN,
    READERS_MEAN,
    READERS_STD,
    join,
    with_difference,
)
from comparison.study_tables import Study, read_study, recipes
from page.wording import DEFINITIONS
from scoring.bootstrap import Bootstrap

ROOT = Path(__file__).parent.parent
STUDY = json.loads((ROOT / "metrics/study.json").read_text(encoding="utf-8"))
SCORES = ("dice_patient_mean", "dice_patient_median", "iou")
PREVIOUS = "dice_frozen"  # the column with the Dice of the previous recipe
FIVE_FOLDS, SITES = "5 folds, by patient", "{} institutions, each left out in turn"
RECIPES = {
    "folds/context": ("current", FIVE_FOLDS),
    "folds/flips": ("current, with mirrored slices", FIVE_FOLDS),
    "folds/repeat": ("current, another seed", FIVE_FOLDS),
    "folds/repeat_flips": ("current, another seed, with mirrored slices", FIVE_FOLDS),
    "folds/encoder": ("current, encoder trained too", FIVE_FOLDS),
    "folds/encoder_flips": ("current, encoder trained too, with mirrored slices", FIVE_FOLDS),
    "folds/frozen": ("previous", FIVE_FOLDS),
    "institutions/context": ("current", SITES),
    "institutions/frozen": ("previous", SITES),
    "folds/starting": ("starting", "fold 0, by patient"),
}
# The recipes in README.md.
HEADLINE = ("folds/context", "folds/encoder", "folds/frozen", "institutions/context")
CHANGES = {
    "choices/base": "(baseline) the previous recipe, without removing components",
    "choices/unnormalized": "no intensity normalization",
    "choices/native": "256 pixels instead of 128",
    "inner/base": "(baseline) the previous recipe",
    "inner/context": "the current recipe",
}


def rows(name: str) -> list[dict[Any, Any]]:
    """Return the rows of a table in metrics/study/."""
    return pd.read_csv(ROOT / f"metrics/study/{name}.csv").to_dict("records")


def number(value: float) -> str:
    """Return a score to three decimals, with a true minus sign; zero has no sign."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


def interval(scores: Mapping[Any, Any], name: str) -> str:
    """Return the 95 % interval of a score in parentheses; "" if there is none."""
    low, high = (scores.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
    if math.isnan(low):
        return ""
    return f" ({number(low)}{'–' if low >= 0 else ' to '}{number(high)})"


def score(scores: Mapping[Any, Any], name: str) -> str:
    """Return a score with its interval; "" if it has no value."""
    value = scores.get(name, math.nan)
    return "" if math.isnan(value) else number(value) + interval(scores, name)


def show(header: str, cells: Iterable[Iterable[object]]) -> None:
    """Print a Markdown table; `header` names its columns, separated by |."""
    print(f"| {header} |")
    print(f"|{'---|' * len(header.split('|'))}")
    for row in cells:
        print(f"| {' | '.join(map(str, row))} |")


def cost(scores: Mapping[Any, Any]) -> str:
    """Return how long a training took and where; not if the networks are those of another row."""
    if "minutes" not in scores:
        return "(same networks)"
    devices = re.findall(r"× (?:NVIDIA )?(\w+)", scores["device"])
    return f"{scores['minutes']:.0f} min, {', '.join(sorted(set(devices))).replace('cpu', 'CPU')}"


def results(*, every_recipe: bool) -> None:
    """Print the results of all recipes or of the most important ones, and the published ones."""
    cells: list[list[object]] = []
    for name, (recipe, tested) in RECIPES.items():
        if not every_recipe and name not in HEADLINE:
            continue
        kind, key = name.split("/")
        scores = STUDY[kind][key]
        where = tested.format(scores["n_folds"])
        figures = [score(scores, each) for each in SCORES]
        cells.append([recipe, where, scores["n_patients_dice"], *figures, cost(scores)])
    paper = "[published by Buda](https://mateuszbuda.github.io/2017/12/01/brainseg.html)"
    readers = f"{READERS_MEAN} ± {READERS_STD}"
    cells += [
        [paper, "22 folds, by patient", 110, PUBLISHED_MEAN, PUBLISHED_MEDIAN, "–", "–"],
        ["two expert readers, quoted there", "–", "–", readers, "–", "–", "–"],
    ]
    header = "recipe | tested on | patients | Dice, mean | Dice, median | IoU | training time"
    show(header, cells)


def stages() -> dict[str, Any]:
    """Return the stages of dvc.yaml."""
    stages: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
    return stages


def graph() -> None:
    """Print the stages."""
    show("stage | task", ([f"`{name}`", each["desc"]] for name, each in stages().items()))


def outputs() -> None:
    """Print the stages with their outputs."""
    cells = []
    for name, stage in stages().items():
        paths = [
            each if isinstance(each, str) else next(iter(each))
            for kind in ("outs", "metrics", "plots")
            for each in stage.get(kind, [])
        ]
        cells.append([f"`{name}`", ", ".join(f"`{path}`" for path in paths)])
    show("stage | outputs", cells)


def definitions() -> None:
    """Print the starting recipe's scores under every definition."""
    train, test = (STUDY["starting"][split] for split in ("train", "test"))
    predictors = [train["network"]]
    predictors += [test[name] for name in ("network", "copied_mask", "always_empty", "reference")]
    cells = [
        [label, *(number(each[key]) for each in predictors)] for key, label in DEFINITIONS.items()
    ]
    show("definition | train | test | test, copied mask | test, empty | test, perfect", cells)


def candidates(kind: str) -> None:
    """Print the recipes that were compared on inner folds."""
    cells = []
    for row in sorted(rows("choices"), key=lambda row: not row["training"].endswith("/base")):
        name = row["training"]
        if name.startswith(f"{kind}/"):
            seeds = str(row["n_repeats"])
            if row["n_repeats_difference"] > 1:
                seeds += interval(row, "difference_repeats")
            figures = [number(row["dice_patient_mean"]), score(row, "difference")]
            cells.append([f"`{name}`", CHANGES[name], *figures, seeds])
    header = "training | change | Dice, mean | difference from the baseline"
    show(f"{header} | seeds (lowest to highest difference)", cells)


@cache
def five_folds() -> dict[str, pd.DataFrame]:
    """Return the tested patients of the five folds by recipe."""
    study = read_study(*(ROOT / f"study/{name}.csv" for name in Study._fields))
    return {recipe: join(study, names) for recipe, names in recipes(study, "folds").items()}


def variants() -> None:
    """Print the differences of other recipes from both seeds of the current one."""
    folds = five_folds()
    params = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    bootstrap = Bootstrap(params["evaluate"]["resamples"], params["seed"])
    cells = []
    for name, (label, tested) in RECIPES.items():
        recipe, change = name.removeprefix("folds/"), label.removeprefix("current, ")
        if tested != FIVE_FOLDS or change == label:
            continue
        differences = []
        for baseline in ("context", "repeat"):
            joined = with_difference(folds[recipe], folds[baseline], f"dice_{baseline}")
            estimate = bootstrap.mean(joined["difference"]).named("difference")
            differences.append("" if recipe == baseline else score(estimate, "difference"))
        cells.append([f"`{name}`", change, *differences])
    show("training | change | difference from `folds/context` | from `folds/repeat`", cells)


def institutions() -> None:
    """Print the scores of each institution, tested by a network that never saw it."""
    cells = [
        [
            row["institution"],
            row["n_patients_dice"],
            *(score(row, name) for name in (*SCORES, "difference")),
            score(row, f"{PREVIOUS}_mean"),
        ]
        for row in rows("by_institution")
    ]
    header = "institution | patients | Dice, mean | Dice, median | IoU | difference"
    show(f"{header} | previous recipe", cells)


def worst() -> None:
    """Print the patients with the lowest Dice."""
    scored = pd.read_csv(ROOT / "metrics/study/out_of_fold.csv").set_index("patient_id")
    cells = [
        [
            row["patient_id"],
            row["fold"],
            number(row["dice"]),
            number(scored.loc[row["patient_id"], PREVIOUS]),
            f"{100 * row['share']:.1f} %",
            row["kind"].replace("_", " "),
            row["seen"],
        ]
        for row in rows("worst")
    ]
    show("patient | fold | Dice | previous recipe | share | kind | description", cells)


def kinds() -> None:
    """Print how much each kind of failure costs."""
    counts = pd.DataFrame(rows("worst"))["kind"].value_counts()
    cells = [
        [kind.replace("_", " "), counts[kind], f"{100 * share:.1f} %"]
        for kind, share in STUDY["worst"].items()
    ]
    show("kind | patients | share", cells)


def sequences() -> None:
    """Print Dice by the sequences that patients have."""
    known = pd.read_csv(ROOT / "metrics/explore/per_patient.csv").set_index("patient_id")
    scored = pd.read_csv(ROOT / "metrics/study/out_of_fold.csv").set_index("patient_id")
    scored = scored.assign(encoder=five_folds()["encoder"].set_index("patient_id")["dice"])
    missing = known["missing_pre_contrast"] + known["missing_post_contrast"]
    labels = ("all three", "pre-contrast and FLAIR", "only FLAIR")
    cells = [
        [
            labels[n_missing],
            len(patients),
            *(number(patients["dice"].agg(each)) for each in ("mean", "median")),
            *(number(patients[each].mean()) for each in (PREVIOUS, "encoder")),
        ]
        for n_missing, patients in scored.groupby(missing)
    ]
    header = "sequences | patients | Dice, mean | Dice, median | previous recipe, mean"
    show(f"{header} | encoder trained too, mean", cells)
