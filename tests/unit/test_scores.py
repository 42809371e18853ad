"""The scores of a split, compared with values by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from scoring.bootstrap import Bootstrap
from scoring.overlap import COUNTS
from scoring.scores import MIN_PATIENTS, agreement, per_patient, subgroups, summarize

NAN = np.nan


def table() -> pd.DataFrame:
    """A: half of the tumor and a false positive; B: all of the tumor; C: empty and predicted so."""
    rows = [
        # split, patient, abnormal, tp, fp, fn, tn, hd95, surface_dice, inside, sum
        ("test", "A", 1, 5, 0, 5, 90, 4.0, 0.5, 4.0, 6.0),
        ("test", "A", 0, 0, 10, 0, 90, NAN, 0.0, 6.0, 8.0),
        ("test", "B", 1, 20, 0, 0, 80, 0.0, 1.0, 20.0, 20.0),
        ("test", "C", 0, 0, 0, 0, 100, NAN, NAN, 0.0, 0.0),
        ("train", "D", 1, 0, 0, 7, 93, NAN, 0.0, 0.0, 1.0),
    ]
    distances = ["hd95", "surface_dice", "probability_inside", "probability_sum"]
    return pd.DataFrame(rows, columns=["split", "patient_id", "abnormal", *COUNTS, *distances])


def test_patients_scores_equal_values_computed_by_hand() -> None:
    patients = per_patient(table())
    assert patients[["split", "patient_id"]].to_numpy().tolist() == [
        ["test", "A"],
        ["test", "B"],
        ["test", "C"],
        ["train", "D"],
    ]
    assert patients["n_slices"].tolist() == [2, 1, 1, 1]
    assert patients["n_abnormal"].tolist() == [1, 1, 0, 1]
    expected: dict[str, list[float]] = {
        "iou": [5 / 20, 1, NAN, 0],
        "dice": [10 / 25, 1, NAN, 0],
        "precision": [5 / 15, 1, NAN, NAN],
        "recall": [5 / 10, 1, NAN, 0],
        "hd95": [4, 0, NAN, NAN],
        "surface_dice": [0.25, 1, NAN, 0],
        "confidence": [20 / 29, 1, 1, 0],
        "fp_healthy": [10, 0, 0, 0],
        "n_slices_hd95": [1, 1, 0, 0],
        "n_slices_surface_dice": [2, 1, 0, 1],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(patients[name], values, err_msg=name)


def test_a_splits_scores_equal_values_computed_by_hand() -> None:
    slices, patients = (rows[rows["split"] == "test"] for rows in (table(), per_patient(table())))
    scores = summarize(slices, patients, Bootstrap(100, 1))
    values = {name: value for name, value in scores.items() if not name.endswith(("_low", "_high"))}
    assert values == pytest.approx(
        {
            "iou": 25 / 40,
            "precision": 25 / 35,
            "recall": 25 / 30,
            "iou_slice_abnormal": (0.5 + 1) / 2,
            "dice_patient_mean": (0.4 + 1) / 2,
            "dice_patient_median": 0.7,
            "iou_patient_mean": (0.25 + 1) / 2,
            "hd95_slice_mean": 2,
            "surface_dice_slice_mean": 0.5,
            "fp_area_slice_healthy": 5,
            "area_bias": -2.5,
            "area_limit_lower": -2.5 - 1.96 * np.std([-5, 0], ddof=1),
            "area_limit_upper": -2.5 + 1.96 * np.std([-5, 0], ddof=1),
            "n_patients": 3,
            "n_patients_dice": 2,
            "n_slices": 4,
            "n_slices_abnormal": 2,
            "n_slices_hd95": 2,
            "n_slices_surface_dice": 3,
        }
    )
    for name in ("iou", "dice_patient_mean", "hd95_slice_mean", "fp_area_slice_healthy"):
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    assert scores["dice_patient_mean_low"] == pytest.approx(0.4)
    assert scores["dice_patient_mean_high"] == 1


def test_limits_of_agreement_equal_values_computed_by_hand() -> None:
    slices = pd.DataFrame(
        {
            "patient_id": ["A", "A", "B", "B"],
            "abnormal": [1, 1, 1, 0],
            "fp": [3, 5, 2, 99],
            "fn": [3, 1, 0, 0],
        }
    )
    result = agreement(slices, Bootstrap(200, 1))
    assert result["area_bias"] == 2
    assert result["area_limit_lower"] == pytest.approx(2 - 1.96 * 2)
    assert result["area_limit_upper"] == pytest.approx(2 + 1.96 * 2)
    assert (result["area_bias_low"], result["area_bias_high"]) == (
        2,
        2,
    )  # A's mean and B's are equal
    of_one_slice = agreement(slices[1:2], Bootstrap(200, 1))
    assert of_one_slice["area_bias"] == 4
    assert np.isnan(of_one_slice["area_limit_lower"])
    assert np.isnan(agreement(slices[3:], Bootstrap(200, 1))["area_bias"])


def test_each_group_of_patients_has_its_scores_and_size() -> None:
    groups = pd.DataFrame(
        [("sex", "x", "A"), ("sex", "x", "B"), ("sex", "y", "C"), ("sex", "y", "D")],
        columns=["attribute", "value", "patient_id"],
    )
    result: Any = subgroups(per_patient(table()), groups, Bootstrap(100, 1)).set_index("group")
    assert result.index.tolist() == ["sex: x (test)", "sex: y (test)", "sex: y (train)"]
    first = result.loc["sex: x (test)"]
    assert (first["n_patients"], first["n_slices"]) == (2, 3)
    assert first["dice_patient_mean"] == pytest.approx(0.7)
    assert first["iou"] == pytest.approx(25 / 40)
    second = result.loc["sex: y (test)"]
    assert (second["n_patients"], second["n_patients_dice"]) == (1, 0)
    assert np.isnan(second["dice_patient_mean"])
    assert result.loc["sex: y (train)", "dice_patient_mean"] == 0
    assert result["dice_patient_mean_low"].isna().all()  # fewer than MIN_PATIENTS


def test_a_group_of_enough_patients_has_intervals() -> None:
    dice = np.linspace(0.1, 0.9, MIN_PATIENTS + 1) ** 2
    patients = pd.DataFrame(
        {"split": "test", "patient_id": [f"P{i}" for i in range(MIN_PATIENTS + 1)]}
    )
    patients = patients.assign(n_slices=2, tp=5, fp=1, fn=2, dice=dice)
    for n, has_interval in (
        (MIN_PATIENTS + 1, True),
        (MIN_PATIENTS, True),
        (MIN_PATIENTS - 1, False),
    ):
        chosen = patients[:n]
        groups = chosen[["patient_id"]].assign(attribute="sex", value="x")
        [row] = subgroups(chosen, groups, Bootstrap(200, 1)).to_dict("records")
        assert row["n_patients"] == n
        assert row["dice_patient_mean"] == pytest.approx(dice[:n].mean())
        assert row["dice_patient_median"] == pytest.approx(np.median(dice[:n]))
        assert row["iou"] == pytest.approx(5 / 8)
        assert (row["dice_patient_mean_low"] < row["dice_patient_mean"]) == has_interval
        assert np.isnan(row["iou_high"]) != has_interval
