"""Assign every slice to train, val or test, and to a cross-validation fold.

    python src/split.py data/manifest.csv data/patients.csv metrics/explore/findings.csv \
        data/splits.csv

`split.by` selects what stays together:

- `patient`: all slices of a person are in one split, even if the person had several exams.
  `case_id` in patients.csv identifies the person.
- `institution`: all slices of an institution are in one fold.
- `slice`: slices of one patient are in several splits, which inflates every score. It exists only
  for comparison with published results that split this way.

With `split.inner_fold`, the test patients are left out and the others are split into folds again,
so that recipes can be compared without using the test set.

The stage also counts near-duplicates in different splits: slices of two patients that explore found
to look alike.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, train_test_split

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.params import Seed
from pipeline.refusals import Refusal, quantity, rebuild_hint, refuse
from scans.cohort import read_patients
from scans.manifest import SPLITS, count_near_duplicates, read_manifest
from scans.params import SplitParams


def abnormal_strata(fractions: NDArray[np.float64], min_size: int) -> NDArray[np.int64]:
    """Return a stratum for each patient: quantile groups of the fraction of abnormal slices.

    There are as many strata as possible with at least `min_size` patients each, so that every part
    of a split gets a patient from each stratum. Patients without tumor are stratified separately.
    """
    strata = np.zeros(len(fractions), dtype=np.int64)
    first = 0
    for group in (np.flatnonzero(fractions == 0), np.flatnonzero(fractions > 0)):
        if len(group):
            n_strata = max(1, len(group) // min_size)
            ranks = np.argsort(np.argsort(fractions[group], kind="stable"), kind="stable")
            strata[group] = first + ranks * n_strata // len(group)
            first += n_strata
    return strata


def assign_folds(
    strata: NDArray[np.int64], abnormal: NDArray[np.bool_], *, folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold in which each unit (person or slice) is tested, 0 to folds - 1.

    If there are fewer abnormal units than folds, the first folds get one each.
    """
    assigned = np.empty(len(strata), dtype=np.int64)
    if abnormal.sum() < folds:
        rng = np.random.default_rng(seed)
        order = [*rng.permutation(np.flatnonzero(abnormal))]
        order += [*rng.permutation(np.flatnonzero(~abnormal))]
        assigned[order] = np.arange(len(order)) % folds
        return assigned
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings(action="ignore"):  # there may be fewer healthy units than folds
        for fold, (_, tested) in enumerate(splitter.split(strata, strata)):
            assigned[tested] = fold
    return assigned


def choose_val(
    strata: NDArray[np.int64], abnormal: NDArray[np.bool_], *, n_val: int, seed: int
) -> NDArray[np.int64]:
    """Return the sorted positions of `n_val` units for validation, stratified if n allows it.

    If at least two units are abnormal, at least one is used for validation and one is not.
    """
    sizes = np.unique(strata, return_counts=True)[1]
    enough = len(sizes) <= min(n_val, len(strata) - n_val) and sizes.min() > 1
    _, val = train_test_split(
        np.arange(len(strata)),
        test_size=n_val,
        stratify=strata if enough else None,
        random_state=seed,
    )
    if abnormal.sum() > 1 and abnormal[val].sum() in (0, abnormal.sum()):
        rng, healthy = np.random.default_rng(seed), np.flatnonzero(~abnormal)
        n_abnormal = min(max(1, round(n_val * abnormal.mean())), int(abnormal.sum()) - 1)
        n_abnormal = max(n_abnormal, n_val - len(healthy))
        chosen = rng.choice(np.flatnonzero(abnormal), n_abnormal, replace=False)
        rest = rng.choice(healthy, n_val - n_abnormal, replace=False)
        val = np.concatenate([chosen, rest])
    return np.sort(val)


def split_units(
    units: pd.DataFrame, split: SplitParams, *, test_fold: int, seed: int
) -> pd.DataFrame:
    """Return `split` and `fold` for each unit; its column `abnormal` is a fraction in [0, 1].

    The folds do not depend on `test_fold`, so that over all its values every unit is tested exactly
    once. By institution, the folds are the institutions in alphabetical order.
    """

    def strata(chosen: pd.DataFrame, members: int) -> NDArray[np.int64]:
        fractions = chosen["abnormal"].to_numpy(dtype=np.float64)
        by_slice = split.by == "slice"
        return fractions.astype(np.int64) if by_slice else abnormal_strata(fractions, members)

    abnormal = units["abnormal"].to_numpy() > 0
    if split.by == "institution":
        fold = np.unique(units["institution"], return_inverse=True)[1]
    else:
        groups = strata(units, split.folds)
        fold = assign_folds(groups, abnormal, folds=split.folds, seed=seed)
    rest = np.flatnonzero(fold != test_fold)
    side = np.full(len(units), "train", dtype=object)
    side[fold == test_fold] = "test"
    if split.val_fraction:
        n_val = min(max(1, round(split.val_fraction * len(rest))), len(rest) - 1)
        members = -(-len(rest) // min(n_val, len(rest) - n_val))
        groups = strata(units.iloc[rest], members)
        side[rest[choose_val(groups, abnormal[rest], n_val=n_val, seed=seed)]] = "val"
    return pd.DataFrame({"split": side, "fold": fold}, index=units.index)


def check_split(splits: pd.DataFrame, unit: str, names: Sequence[str] = SPLITS) -> None:
    """Raise an error if a unit is in two splits, or if a split in `names` has no abnormal slice.

    `unit` is the column that identifies the units.
    """
    noun = "slice" if unit == "slice_id" else "patient"
    sides = splits.groupby(unit)["split"].unique()
    problems = [
        f"{noun} {name} is in {' and in '.join(sorted(found))}"
        for name, found in sides.items()
        if len(found) > 1
    ]
    with_tumor = set(splits.loc[splits["abnormal"] == 1, "split"])
    problems += [f"no abnormal slice in {name}" for name in names if name not in with_tumor]
    if problems:
        units = splits.groupby(unit)
        by_fold = units["abnormal"].max().groupby(units["fold"].first()).sum()
        counts = ", ".join(f"{fold}: {n}" for fold, n in by_fold.items())
        refuse(
            problems,
            f"{', '.join(names[:-1])} and {names[-1]} must each contain a {noun} with tumor. "
            f"Number of such {noun}s by fold: {counts}. Choose a test fold that has some, reduce "
            "split.folds, or add patients.",
        )


def split_manifest(
    manifest: pd.DataFrame,
    persons: pd.Series,
    split: SplitParams,
    *,
    test_fold: int,
    seed: int,
    name: str = "split.test_fold",
) -> pd.DataFrame:
    """Return the manifest's rows in the same order, with the columns `split` and `fold`.

    `persons` has the person's `case_id` for each `patient_id`. `name` is the param that sets
    `test_fold`.
    """
    key, unit = ("slice_id", "slice") if split.by == "slice" else ("case_id", "patient")
    rows = manifest.assign(case_id=manifest["patient_id"].map(persons))
    grouped, folds = rows.groupby(key), split.folds
    units = grouped[["abnormal"]].mean()
    if split.by == "institution":
        units = units.join(grouped["institution"].first())
        folds = units["institution"].nunique()
        if folds < 2:
            raise Refusal(
                f"split.by is institution, but all {len(units)} patients are from "
                f"{units['institution'].iloc[0]}; set split.by to patient"
            )
    if test_fold >= folds:
        raise Refusal(f"{name} is {test_fold}; with {folds} folds, use 0 to {folds - 1}")
    if split.by != "institution" and len(units) <= folds:
        raise Refusal(
            f"split.folds is {folds}, but the data set has only {quantity(len(units), unit)}; "
            f"use fewer folds or more {unit}s"
        )
    splits = rows.join(split_units(units, split, test_fold=test_fold, seed=seed), on=key)
    check_split(splits, key, SPLITS if split.val_fraction else ("train", "test"))
    return splits.drop(columns="case_id")


def read_persons(patients: Path, rows: pd.DataFrame) -> pd.Series:
    """Return the person for each `patient_id`, which is its `case_id` in patients.csv."""
    persons = read_patients(patients).set_index("patient_id")["case_id"]
    if set(persons.index) != set(rows["patient_id"]):
        raise Refusal(
            f"{patients}: the patients are not those of the manifest; "
            f"{rebuild_hint('build_manifest')}"
        )
    return persons


def main(
    manifest: Path, patients: Path, findings: Path, splits: Path, *, seed: Seed, split: SplitParams
) -> None:
    rows = read_manifest(manifest, *(["institution"] if split.by == "institution" else []))
    persons = read_persons(patients, rows)
    table = split_manifest(rows, persons, split, test_fold=split.test_fold, seed=seed)
    if split.inner_fold != "none":
        rest, inner_fold = rows[table["split"] != "test"], split.inner_fold
        table = split_manifest(
            rest, persons, split, test_fold=inner_fold, seed=seed, name="split.inner_fold"
        )
    n_alike = count_near_duplicates(table, findings)
    with replacing(splits) as [partial]:
        table.to_csv(partial, index=False)
    counts = table.groupby("split").agg(
        n_slices=("slice_id", "size"),
        n_patients=("patient_id", "nunique"),
        abnormal=("abnormal", "mean"),
    )
    print(counts.round(3).to_string())
    print(f"near-duplicate pairs in different splits: {n_alike} (listed in {findings})")


if __name__ == "__main__":
    run(main)
