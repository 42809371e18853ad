"""Assign every slice to train, val or test, and to a fold of the cross-validation.

    python src/split.py data/manifest.csv data/splits.csv

By patient, all slices of a patient are on one side. By institution too, and a fold is one of them.
By slice, slices of one patient are on both sides, which inflates every score: kept to compare with
results that were reached that way. With an inner fold what is tested otherwise is left out, and
the rest is folded once more: to choose between recipes without a look at the test.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.params import Seed
from pipeline.refusals import Refusal, refuse
from scans.manifest import SPLITS, read_manifest
from scans.params import SplitParams


def abnormal_strata(fractions: NDArray[np.float64], members: int) -> NDArray[np.int64]:
    """Return a stratum for each patient: ranks of the abnormal fraction, cut into equal parts.

    As many strata as can have at least `members` patients each, so that every part of a split
    holds one of each.
    """
    n_strata = max(1, len(fractions) // members)
    ranks = np.argsort(np.argsort(fractions, kind="stable"), kind="stable")
    return ranks * n_strata // len(fractions)


def assign_folds(strata: NDArray[np.int64], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold in which each unit (patient or slice) is tested, 0 to folds - 1."""
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    assigned = np.empty(len(strata), dtype=np.int64)
    for fold, (_, tested) in enumerate(splitter.split(strata, strata)):
        assigned[tested] = fold
    return assigned


def choose_val(strata: NDArray[np.int64], *, n_val: int, seed: int) -> NDArray[np.int64]:
    """Return the sorted positions of `n_val` units for validation, stratified where n allows."""
    sizes = np.unique(strata, return_counts=True)[1]
    enough = len(sizes) <= min(n_val, len(strata) - n_val) and sizes.min() > 1
    _, val = train_test_split(
        np.arange(len(strata)),
        test_size=n_val,
        stratify=strata if enough else None,
        random_state=seed,
    )
    return np.sort(val)


def split_units(
    units: pd.DataFrame, split: SplitParams, *, test_fold: int, seed: int
) -> pd.DataFrame:
    """Return `split` and `fold` for each unit, whose column `abnormal` is a fraction in [0, 1].

    Folds depend on the seed alone, so that over all values of `test_fold` every unit is tested
    exactly once; by `institution` they are those of that column, in the order of their names.
    """

    def strata(chosen: pd.DataFrame, members: int) -> NDArray[np.int64]:
        abnormal = chosen["abnormal"].to_numpy(dtype=np.float64)
        by_slice = split.by == "slice"
        return abnormal.astype(np.int64) if by_slice else abnormal_strata(abnormal, members)

    if split.by == "institution":
        fold = np.unique(units["institution"], return_inverse=True)[1]
    else:
        fold = assign_folds(strata(units, split.folds), folds=split.folds, seed=seed)
    rest = np.flatnonzero(fold != test_fold)
    n_val = min(max(1, round(split.val_fraction * len(rest))), len(rest) - 1)
    members = -(-len(rest) // min(n_val, len(rest) - n_val))
    val = rest[choose_val(strata(units.iloc[rest], members), n_val=n_val, seed=seed)]
    side = np.full(len(units), "train", dtype=object)
    side[fold == test_fold] = "test"
    side[val] = "val"
    return pd.DataFrame({"split": side, "fold": fold}, index=units.index)


def check_split(splits: pd.DataFrame, *, by: str) -> None:
    """Refuse a split with a patient on two sides, or without an abnormal slice on one of them."""
    problems = []
    if by != "slice":
        sides = splits.groupby("patient_id")["split"].unique()
        problems += [
            f"patient on two sides: {patient_id} in {' and '.join(sorted(names))}"
            for patient_id, names in sides.items()
            if len(names) > 1
        ]
    for name in SPLITS:
        if not splits.loc[splits["split"] == name, "abnormal"].any():
            problems.append(f"no abnormal slice in {name}")
    if problems:
        refuse(problems, "Choose another seed, or fewer split.folds, or more patients.")


def split_manifest(
    manifest: pd.DataFrame,
    split: SplitParams,
    *,
    test_fold: int,
    seed: int,
    name: str = "split.test_fold",
) -> pd.DataFrame:
    """Return the manifest's rows in their order with the columns `split` and `fold`.

    `name` is the param that `test_fold` comes from.
    """
    key, unit = ("slice_id", "slice") if split.by == "slice" else ("patient_id", "patient")
    grouped, folds = manifest.groupby(key), split.folds
    units = grouped[["abnormal"]].mean()
    if split.by == "institution":
        units = units.join(grouped["institution"].first())
        folds = units["institution"].nunique()
        if folds < 2:
            raise Refusal(
                f"split.by is institution, and all {len(units)} patients are of "
                f"{units['institution'].iloc[0]}; split them by patient"
            )
    if test_fold >= folds:
        raise Refusal(f"{name} is {test_fold}; with {folds} folds use 0 to {folds - 1}")
    if split.by != "institution" and len(units) <= folds:
        raise Refusal(
            f"split.folds is {folds}, with {len(units)} {unit}s only; "
            f"use fewer folds or more {unit}s"
        )
    splits = manifest.join(split_units(units, split, test_fold=test_fold, seed=seed), on=key)
    check_split(splits, by=split.by)
    return splits


def main(manifest: Path, splits: Path, *, seed: Seed, split: SplitParams) -> None:
    rows = read_manifest(manifest, *(["institution"] if split.by == "institution" else []))
    table = split_manifest(rows, split, test_fold=split.test_fold, seed=seed)
    if split.inner_fold != "none":
        rest, inner_fold = rows[table["split"] != "test"], split.inner_fold
        table = split_manifest(
            rest, split, test_fold=inner_fold, seed=seed, name="split.inner_fold"
        )
    with replacing(splits) as [partial]:
        table.to_csv(partial, index=False)
    counts = table.groupby("split").agg(
        n_slices=("slice_id", "size"),
        n_patients=("patient_id", "nunique"),
        abnormal=("abnormal", "mean"),
    )
    print(counts.round(3).to_string())


if __name__ == "__main__":
    run(main)
