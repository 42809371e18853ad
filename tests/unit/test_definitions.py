"""All definitions of IoU and Dice by hand, and the trivial predictors."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import jaccard_score

from scoring.definitions import BATCH, COPIED, definitions, nearest_in_train, trivial_counts
from scoring.overlap import COUNTS, count_pixels


def test_definitions_equal_values_computed_by_hand() -> None:
    """A: half of the tumor and a false positive; B: all of the tumor; C: empty and predicted so."""
    rows = [
        # patient, abnormal, tp, fp, fn, tn
        ("A", 1, 5, 0, 5, 90),
        ("A", 0, 0, 10, 0, 90),
        ("B", 1, 20, 0, 0, 80),
        ("C", 0, 0, 0, 0, 100),
    ]
    slices = pd.DataFrame(rows, columns=["patient_id", "abnormal", *COUNTS])
    assert definitions(slices, seed=1) == pytest.approx(
        {
            "slice_iou_empty_1": (0.5 + 0 + 1 + 1) / 4,
            "slice_iou_empty_0": (0.5 + 0 + 1 + 0) / 4,
            "slice_iou_abnormal": (0.5 + 1) / 2,
            "slice_dice_empty_1": (10 / 15 + 0 + 1 + 1) / 4,
            "slice_dice_abnormal": (10 / 15 + 1) / 2,
            "batch_iou": 25 / 40,  # one batch holds all of them
            "micro_iou": 25 / 40,
            "micro_dice": 50 / 65,
            "mean_iou_with_background": (25 / 40 + 360 / 375) / 2,
            "patient_iou_mean": (5 / 20 + 1) / 2,
            "patient_dice_mean": (10 / 25 + 1) / 2,
            "patient_dice_median": (10 / 25 + 1) / 2,
            "n_slices": 4,
            "n_slices_abnormal": 2,
            "n_patients": 2,
            "n_batches": 1,
        }
    )


def test_definitions_equal_scikit_learns_scores_on_random_masks() -> None:
    rng = np.random.default_rng(0)
    masks, predicted = rng.random((2, 40, 8, 8)) < 0.3
    masks[::3] = False
    predicted[::4] = False
    counts = [count_pixels(*pair) for pair in zip(predicted, masks, strict=True)]
    slices = pd.DataFrame(counts).assign(
        patient_id=[f"P{index // 10}" for index in range(40)],
        abnormal=masks.any(axis=(1, 2)).astype(int),
    )
    scores = definitions(slices, seed=1)
    for zero, name in ((1.0, "slice_iou_empty_1"), (0.0, "slice_iou_empty_0")):
        flat = masks.reshape(40, -1), predicted.reshape(40, -1)
        expected = jaccard_score(*flat, average="samples", zero_division=zero)
        assert scores[name] == pytest.approx(expected)
    flat = masks.ravel(), predicted.ravel()
    assert scores["micro_iou"] == pytest.approx(jaccard_score(*flat))
    macro = jaccard_score(*flat, average="macro")
    assert scores["mean_iou_with_background"] == pytest.approx(macro)
    volumes = masks.reshape(4, -1), predicted.reshape(4, -1)
    assert scores["patient_iou_mean"] == pytest.approx(jaccard_score(*volumes, average="samples"))
    batches = np.random.default_rng(1).permutation(40) // BATCH
    batch_iou = [
        jaccard_score(masks[batches == batch].ravel(), predicted[batches == batch].ravel())
        for batch in range(3)
    ]
    assert scores["batch_iou"] == pytest.approx(np.mean(batch_iou))


def test_scores_of_only_empty_masks_are_nan_unless_the_definition_sets_a_value() -> None:
    slices = pd.DataFrame([("A", 0, 0, 0, 0, 9)], columns=["patient_id", "abnormal", *COUNTS])
    scores = definitions(slices, seed=1)
    assert scores["slice_iou_empty_1"] == 1
    assert scores["slice_iou_empty_0"] == 0
    for name in ("slice_iou_abnormal", "micro_iou", "batch_iou", "patient_dice_median"):
        assert np.isnan(scores[name]), name
    assert (scores["n_slices"], scores["n_slices_abnormal"], scores["n_patients"]) == (1, 0, 0)


def test_the_nearest_train_slice_is_by_number_and_the_lower_if_two_are_equally_near() -> None:
    numbers = [1, 2, 4, 6, 9, 11]
    splits = ["test", "train", "val", "train", "test", "train"]
    assert nearest_in_train(numbers, splits) == [1, None, 1, None, 5, None]
    assert nearest_in_train([3, 2, 1], ["train", "test", "train"])[1] == 2  # the lower number
    assert nearest_in_train([1, 2], ["test", "val"]) == [None, None]


def test_counts_of_trivial_predictors_equal_values_computed_by_hand() -> None:
    square, shifted = np.zeros((2, 9, 9), np.bool_)
    square[3:6, 3:6] = True
    shifted[3:6, 4:7] = True
    counts = trivial_counts([square, shifted], [4, 5], ["train", "test"])
    assert list(counts[0]) == [
        "reference",
        "always empty",
        "reference dilated by 1 px",
        "reference eroded by 1 px",
    ]
    assert counts[0]["reference"] == {"tp": 9, "fp": 0, "fn": 0, "tn": 72}
    assert counts[0]["always empty"] == {"tp": 0, "fp": 0, "fn": 9, "tn": 72}
    # Dilation adds a pixel's four neighbors; erosion keeps pixels that have all four.
    assert counts[0]["reference dilated by 1 px"] == {"tp": 9, "fp": 12, "fn": 0, "tn": 60}
    assert counts[0]["reference eroded by 1 px"] == {"tp": 1, "fp": 0, "fn": 8, "tn": 72}
    copied = counts[1][COPIED]
    assert copied == {"tp": 6, "fp": 3, "fn": 3, "tn": 69}
