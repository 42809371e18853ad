"""Assign every slice to train, val or test, and to a fold of the cross-validation.

    python src/split.py data/manifest.csv data/splits.csv

By patient, all slices of a patient are on one side. By slice, slices of one patient are on both
sides, which inflates every score: kept to compare with results that were reached that way.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from sklearn.model_selection import StratifiedKFold, train_test_split

from manifest import SPLITS, read_manifest
from outputs import replacing
from stage import Refusal, Seed, refuse, run


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
    units: pd.DataFrame, *, by: str, folds: int, test_fold: int, val_fraction: float, seed: int
) -> pd.DataFrame:
    """Return `split` and `fold` for each unit, whose column `abnormal` is a fraction in [0, 1].

    Folds depend on the seed alone, so that over all values of `test_fold` every unit is tested
    exactly once.
    """

    def strata(chosen: pd.DataFrame, members: int) -> NDArray[np.int64]:
        abnormal = chosen["abnormal"].to_numpy(dtype=np.float64)
        return abnormal_strata(abnormal, members) if by == "patient" else abnormal.astype(np.int64)

    fold = assign_folds(strata(units, folds), folds=folds, seed=seed)
    rest = np.flatnonzero(fold != test_fold)
    n_val = min(max(1, round(val_fraction * len(rest))), len(rest) - 1)
    members = -(-len(rest) // min(n_val, len(rest) - n_val))
    val = rest[choose_val(strata(units.iloc[rest], members), n_val=n_val, seed=seed)]
    split = np.full(len(units), "train", dtype=object)
    split[fold == test_fold] = "test"
    split[val] = "val"
    return pd.DataFrame({"split": split, "fold": fold}, index=units.index)


def check_split(splits: pd.DataFrame, *, by: str) -> None:
    """Refuse a split with a patient on two sides, or without an abnormal slice on one of them."""
    problems = []
    if by == "patient":
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
    manifest: pd.DataFrame, *, by: str, folds: int, test_fold: int, val_fraction: float, seed: int
) -> pd.DataFrame:
    """Return the manifest's rows in their order with the columns `split` and `fold`."""
    key = "patient_id" if by == "patient" else "slice_id"
    units = manifest.groupby(key)[["abnormal"]].mean()
    if test_fold >= folds:
        raise Refusal(f"split.test_fold is {test_fold}; with {folds} folds use 0 to {folds - 1}")
    if len(units) <= folds:
        raise Refusal(
            f"split.folds is {folds}, with {len(units)} {by}s only; use fewer folds or more {by}s"
        )
    assigned = split_units(
        units, by=by, folds=folds, test_fold=test_fold, val_fraction=val_fraction, seed=seed
    )
    splits = manifest.join(assigned, on=key)
    check_split(splits, by=by)
    return splits


def main(
    manifest: Path,
    splits: Path,
    *,
    seed: Seed,
    by: Literal["patient", "slice"],
    folds: Annotated[int, Field(ge=2)],
    test_fold: Annotated[int, Field(ge=0)],
    val_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> None:
    table = split_manifest(
        read_manifest(manifest),
        by=by,
        folds=folds,
        test_fold=test_fold,
        val_fraction=val_fraction,
        seed=seed,
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
    run(main, "seed", "split")
