"""The split: no unit in two splits, each tested once, similar fractions of abnormal slices."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import split
from helpers import Data, RunStage, section
from pipeline.refusals import Refusal
from scans.manifest import count_near_duplicates, read_manifest
from scans.params import SplitParams
from split import check_split

DEFAULTS: dict[str, Any] = {
    "by": "patient",
    "folds": 5,
    "test_fold": 0,
    "val_fraction": 0.15,
    "seed": 1,
}

COUNTS = ("n_slices", "n_abnormal", "tumor_volume", "missing_pre_contrast", "missing_post_contrast")


def split_manifest(
    manifest: pd.DataFrame, *, seed: int, test_fold: int = 0, **changes: Any
) -> pd.DataFrame:
    params, ids = section(SplitParams, **changes), manifest["patient_id"]
    persons = pd.Series(ids.to_numpy(), ids).groupby(level=0).first()
    return split.split_manifest(manifest, persons, params, test_fold=test_fold, seed=seed)


def make_manifest(n_patients: int, seed: int = 0) -> pd.DataFrame:
    """Return a manifest with different numbers of slices and abnormal slices per patient."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(n_patients):
        n_slices = int(rng.integers(20, 60))
        abnormal = int(rng.integers(3, n_slices // 2 + 4))
        rows += [
            {
                "slice_id": f"P{patient:03d}_{number}",
                "patient_id": f"P{patient:03d}",
                "image": f"P{patient:03d}_{number}.tif",
                "abnormal": int(number < abnormal),
            }
            for number in range(n_slices)
        ]
    return pd.DataFrame(rows)


@settings(max_examples=40, deadline=None)
@given(
    n_patients=st.integers(8, 60),
    folds=st.integers(2, 6),
    val_fraction=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_by_patient_each_patient_is_in_one_split_and_tested_once(
    n_patients: int, folds: int, val_fraction: float, seed: int
) -> None:
    manifest = make_manifest(n_patients)
    tested: Counter[str] = Counter()
    for test_fold in range(folds):
        splits = split_manifest(
            manifest,
            by="patient",
            folds=folds,
            test_fold=test_fold,
            val_fraction=val_fraction,
            seed=seed,
        )
        pd.testing.assert_frame_equal(splits[list(manifest)], manifest)
        assert (splits.groupby("patient_id")["split"].nunique() == 1).all()
        assert set(splits["split"]) == {"train", "val", "test"}
        assert ((splits["split"] == "test") == (splits["fold"] == test_fold)).all()
        patients = splits.groupby("patient_id")["split"].first()
        tested.update(patients[patients == "test"].index)
        n_tested, n_val = (patients == "test").sum(), (patients == "val").sum()
        assert n_tested in (n_patients // folds, -(-n_patients // folds))
        n_rest = n_patients - n_tested
        assert n_val == min(max(1, round(val_fraction * n_rest)), n_rest - 1)
    assert tested == Counter(set(manifest["patient_id"]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), folds=st.integers(2, 10))
def test_by_slice_each_slice_is_tested_once_and_labels_are_stratified(
    seed: int, folds: int
) -> None:
    manifest = make_manifest(30)
    share = manifest["abnormal"].mean()
    tested: Counter[str] = Counter()
    for test_fold in range(folds):
        splits = split_manifest(
            manifest, by="slice", folds=folds, test_fold=test_fold, val_fraction=0.2, seed=seed
        )
        tested.update(splits.loc[splits["split"] == "test", "slice_id"])
        for _, part in splits.groupby("split"):
            assert part["abnormal"].mean() == pytest.approx(share, abs=1.01 / len(part))
    assert tested == Counter(manifest["slice_id"])


@pytest.mark.parametrize("val_fraction", [0.0005, 0.002, 0.5, 0.9, 0.9999])
def test_by_slice_any_val_fraction_gives_abnormal_slices_in_all_splits_or_an_error(
    val_fraction: float,
) -> None:
    arguments = {**DEFAULTS, "by": "slice", "val_fraction": val_fraction}
    try:
        splits = split_manifest(make_manifest(10), **arguments)
    except Refusal as refusal:
        assert "no abnormal slice in" in str(refusal)  # noqa: PT017
    else:
        assert splits.groupby("split")["abnormal"].sum().min() > 0


@pytest.mark.parametrize("seed", range(5))
def test_by_patient_all_folds_have_similar_abnormal_fractions(seed: int) -> None:
    manifest = make_manifest(110)
    splits = split_manifest(manifest, **{**DEFAULTS, "seed": seed})
    per_patient = splits.groupby(["fold", "patient_id"])["abnormal"].mean()
    assert per_patient.groupby("fold").size().tolist() == [22] * 5
    np.testing.assert_allclose(per_patient.groupby("fold").mean(), per_patient.mean(), atol=0.01)


def test_folds_depend_on_the_seed_and_not_on_the_test_fold() -> None:
    manifest = make_manifest(40)
    folds = [
        split_manifest(manifest, **{**DEFAULTS, "test_fold": k, "seed": s})["fold"].tolist()
        for k, s in ((0, 1), (3, 1), (0, 2))
    ]
    assert folds[0] == folds[1] != folds[2]


def test_the_order_of_rows_does_not_change_the_split() -> None:
    manifest = make_manifest(20)
    shuffled = manifest.sample(frac=1, random_state=0)
    ordered = split_manifest(manifest, **DEFAULTS).set_index("slice_id")["split"]
    from_shuffled = split_manifest(shuffled, **DEFAULTS).set_index("slice_id")["split"]
    pd.testing.assert_series_equal(ordered, from_shuffled.loc[ordered.index])


def test_the_table_is_the_manifest_with_two_more_columns(data: Data) -> None:
    manifest, splits = read_manifest(data.manifest), read_manifest(data.splits)
    assert list(splits) == [*manifest, "split", "fold"]
    pd.testing.assert_frame_equal(splits[list(manifest)], manifest)


def test_a_patient_in_two_splits_is_an_error() -> None:
    splits = split_manifest(make_manifest(10), **DEFAULTS)
    first = splits["patient_id"] == "P000"
    splits.loc[first, "split"] = ["train", "test"] * (first.sum() // 2) + ["train"] * (
        first.sum() % 2
    )
    with pytest.raises(Refusal, match=r"\bP000\b.*\btest\b.*\btrain\b"):
        check_split(splits, "patient_id")


@pytest.mark.parametrize(
    ("overrides", "facts"),
    [
        ({"split__test_fold": 5}, ("split.test_fold is 5", "5 folds", "0 to 4")),
        ({"split__folds": 10}, ("split.folds is 10", "10 patients")),
    ],
)
def test_impossible_folds_are_an_error(
    run_stage: RunStage,
    data: Data,
    tmp_path: Path,
    overrides: dict[str, Any],
    facts: tuple[str, ...],
) -> None:
    paths = [data.manifest, data.patients, data.findings, tmp_path / "splits.csv"]
    outcome = run_stage(split.main, paths, **overrides)
    assert outcome.code == 1
    for fact in facts:
        assert fact in outcome.error
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "splits.csv").exists()


def test_a_split_without_tumor_is_an_error(run_stage: RunStage, data: Data, tmp_path: Path) -> None:
    manifest = read_manifest(data.manifest)
    manifest["abnormal"] = 0
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    paths = [tmp_path / "manifest.csv", data.patients, data.findings, tmp_path / "splits.csv"]
    outcome = run_stage(split.main, paths, split__val_fraction=0.15)
    assert outcome.code == 1
    assert ": 0: 0, 1: 0, 2: 0, 3: 0, 4: 0." in outcome.error
    assert "no abnormal slice in train\nno abnormal slice in val\nno abnormal slice in test\n" in (
        outcome.error
    )


def with_institutions(n_patients: int) -> pd.DataFrame:
    manifest = make_manifest(n_patients)
    number = manifest["patient_id"].str[1:].astype(int)
    return manifest.assign(institution=np.array(["HT", "DU", "CS"])[number % 3])


def test_by_institution_each_fold_is_one_institution() -> None:
    manifest = with_institutions(20)
    for test_fold, name in enumerate(["CS", "DU", "HT"]):
        options = {**DEFAULTS, "by": "institution", "test_fold": test_fold}
        splits = split_manifest(manifest, **options)
        assert (splits["institution"][splits["split"] == "test"] == name).all()
        assert set(splits["institution"][splits["split"] == "train"]) == {"CS", "DU", "HT"} - {name}
        assert splits.groupby("patient_id")["split"].nunique().max() == 1
        assert splits.groupby("institution")["fold"].nunique().max() == 1
    with pytest.raises(Refusal, match=r"split\.test_fold is 3.* 3 folds.* 0 to 2"):
        split_manifest(manifest, **{**DEFAULTS, "by": "institution", "test_fold": 3})
    with pytest.raises(Refusal, match=r"split\.by is institution.* 20 patients .* X\b"):
        split_manifest(manifest.assign(institution="X"), **{**DEFAULTS, "by": "institution"})


def test_inner_folds_leave_out_the_test_patients_and_test_all_others_once(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    manifest = make_manifest(25)
    manifest.to_csv(tmp_path / "manifest.csv", index=False)
    patients = manifest[["patient_id"]].drop_duplicates()
    patients = patients.assign(case_id=patients["patient_id"], **dict.fromkeys(COUNTS, 0))
    patients.to_csv(tmp_path / "patients.csv", index=False)
    outer = split_manifest(manifest, **{**DEFAULTS, "test_fold": 2})
    left_out = set(outer["patient_id"][outer["split"] == "test"])
    tested: Counter[str] = Counter()
    for inner_fold in range(5):
        paths = [tmp_path / name for name in ("manifest.csv", "patients.csv", "splits.csv")]
        paths.insert(2, data.findings)
        overrides = {"split__test_fold": 2, "split__inner_fold": inner_fold}
        assert run_stage(split.main, paths, **overrides).code == 0
        splits = read_manifest(tmp_path / "splits.csv")
        assert set(splits["patient_id"]) == set(manifest["patient_id"]) - left_out
        assert splits.groupby("patient_id")["split"].nunique().max() == 1
        tested.update(splits["patient_id"][splits["split"] == "test"].unique())
    assert set(tested.values()) == {1}
    assert set(tested) == set(manifest["patient_id"]) - left_out
    outcome = run_stage(split.main, paths, split__inner_fold=5)
    for fact in ("split.inner_fold is 5", "5 folds", "0 to 4"):
        assert fact in outcome.error


@pytest.mark.parametrize("n_with_tumor", [3, 4, 5, 7])
@pytest.mark.parametrize("by", ["patient", "slice"])
def test_every_split_has_tumor_even_if_few_units_do(n_with_tumor: int, by: str) -> None:
    """Three units are enough for train, val and test, with any seed and five folds."""
    manifest = make_manifest(22)
    if by == "slice":
        manifest = manifest.groupby("patient_id").head(2).assign(abnormal=0)
        manifest.loc[manifest.index[:n_with_tumor], "abnormal"] = 1
    else:
        manifest.loc[manifest["patient_id"] >= f"P{n_with_tumor:03d}", "abnormal"] = 0
    for seed in range(40):
        splits = split_manifest(manifest, **{**DEFAULTS, "by": by, "seed": seed})
        assert (splits.groupby("split")["abnormal"].sum() > 0).tolist() == [True] * 3
        n_units = splits.groupby("fold")["patient_id" if by == "patient" else "slice_id"].nunique()
        assert n_units.max() - n_units.min() <= 1


def test_a_test_fold_without_tumor_is_an_error_that_lists_the_folds_with_tumor() -> None:
    manifest = make_manifest(22)
    manifest.loc[manifest["patient_id"] >= "P003", "abnormal"] = 0
    with pytest.raises(Refusal, match=": 0: 1, 1: 1, 2: 1, 3: 0, 4: 0"):
        split_manifest(manifest, **{**DEFAULTS, "test_fold": 4})


def test_all_exams_of_a_person_are_in_one_split() -> None:
    manifest = make_manifest(20)
    ids = manifest["patient_id"].unique()
    persons = pd.Series([f"person {number // 2}" for number in range(20)], ids)
    for seed in range(20):
        table = split.split_manifest(
            manifest, persons, section(SplitParams), test_fold=0, seed=seed
        )
        assert list(table) == [*manifest, "split", "fold"]
        sides = table.groupby(table["patient_id"].map(persons))[["split", "fold"]].nunique()
        assert (sides == 1).all(axis=None)


def test_near_duplicates_in_different_splits_are_counted(data: Data, tmp_path: Path) -> None:
    slices = read_manifest(data.splits, "image", "split")
    image = slices.groupby("split")["image"].first()
    other = slices.groupby("split")["image"].last()
    pairs = [("train", "test"), ("val", "train"), ("test", "test"), ("train", "train")]
    rows = [["near_duplicate", image[a], "", 0.99, other[b]] for a, b in pairs]
    rows += [
        ["speck", image["train"], "", 7, ""],
        ["near_duplicate", image["train"], "", 0.99, "left out"],
    ]
    columns = ["kind", "file", "patient_id", "value", "other"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "findings.csv", index=False)
    assert count_near_duplicates(slices, tmp_path / "findings.csv") == 2
    (tmp_path / "findings.csv").write_text("kind\n")
    with pytest.raises(Refusal, match="findings.csv: .*`dvc repro explore`"):
        count_near_duplicates(slices, tmp_path / "findings.csv")


def test_without_val_all_other_patients_are_in_train() -> None:
    manifest = make_manifest(20)
    with_val = split_manifest(manifest, **DEFAULTS)
    without_val = split_manifest(manifest, **{**DEFAULTS, "val_fraction": 0})
    assert set(without_val["split"]) == {"train", "test"}
    assert ((without_val["split"] == "test") == (with_val["split"] == "test")).all()
    assert (without_val["fold"] == with_val["fold"]).all()
