"""Calibration of the probabilities, and how well low confidence predicts a low Dice."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scoring.overlap import ratio

BINS = 20  # probability bins of equal width
COVERAGES = 20  # coverages from 1/20 to 1: the fraction of patients that is kept


def reliability(probability: NDArray[np.float64], counts: NDArray[np.int64]) -> pd.DataFrame:
    """Return the mean probability and the fraction of tumor pixels in each probability bin.

    `counts` (2, n) holds, for each of the n values of `probability`, the number of healthy and of
    tumor pixels with that value. An empty bin is NaN.
    """
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    n_pixels = np.bincount(bins, weights=counts.sum(axis=0), minlength=BINS)
    summed = np.bincount(bins, weights=counts.sum(axis=0) * probability, minlength=BINS)
    observed = np.bincount(bins, weights=counts[1], minlength=BINS)
    return pd.DataFrame(
        {
            "bin": (np.arange(BINS) + 0.5) / BINS,
            "n_pixels": n_pixels.astype(np.int64),
            "probability": ratio(summed, n_pixels),
            "observed": ratio(observed, n_pixels),
        }
    )


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Return the mean of |probability - observed| over pixels, in [0, 1]; NaN without pixels.

    The definition is that of Guo et al., On Calibration of Modern Neural Networks, ICML 2017, for
    one class. Pass only some of the bins to get the error of the pixels in them.
    """
    gaps = (bins["probability"] - bins["observed"]).abs() * bins["n_pixels"]
    return float(ratio(gaps.sum(), bins["n_pixels"].sum()))


def soft_dice_confidence(
    inside: ArrayLike, total: ArrayLike, n_predicted: ArrayLike
) -> NDArray[np.float64]:
    """Return the Dice that the network expects for its predicted mask, in [0, 1].

    `inside` is the sum of probabilities inside the predicted mask, `total` their sum over all
    pixels, and `n_predicted` the number of pixels in the mask. No reference is needed (Borges et
    al., Soft Dice Confidence, arXiv 2402.10665). The result is 1 if all probabilities are 0: the
    network is sure that there is no tumor.
    """
    expected = ratio(2 * np.asarray(inside), np.asarray(total) + np.asarray(n_predicted))
    return np.nan_to_num(expected, nan=1.0)


def risks(dice: ArrayLike, confidence: ArrayLike) -> NDArray[np.float64]:
    """Return the risk, 1 - mean Dice, of the 1, 2, … n most confident patients.

    Patients without a defined Dice are left out. Patients with equal confidence have no order among
    themselves, so each of them counts with their mean Dice.
    """
    defined = pd.DataFrame({"dice": dice, "confidence": confidence}).dropna(subset="dice")
    defined["dice"] = defined.groupby("confidence")["dice"].transform("mean")
    ranked = defined.sort_values("confidence", ascending=False)["dice"].to_numpy()
    return np.asarray(1 - ranked.cumsum() / np.arange(1, len(ranked) + 1))


def area_under_risk_coverage(dice: ArrayLike, confidence: ArrayLike) -> float:
    """Return the mean risk over all coverages, in [0, 1]; NaN without patients.

    Lower is better (Geifman et al., Bias-Reduced Uncertainty Estimation, ICLR 2019).
    """
    by_n_kept = risks(dice, confidence)
    return float(by_n_kept.mean()) if len(by_n_kept) else float("nan")


def risk_coverage(dice: ArrayLike, confidence: ArrayLike) -> pd.DataFrame:
    """Return the risk and the number of patients at each coverage.

    The most confident patients are kept. Their number is the coverage times all patients, rounded
    up.
    """
    by_n_kept = risks(dice, confidence)
    coverage = (np.arange(COVERAGES) + 1) / COVERAGES
    n_kept = np.ceil(coverage * len(by_n_kept) - 1e-9).astype(np.int64)
    risk = by_n_kept[n_kept - 1] if len(by_n_kept) else np.full(COVERAGES, np.nan)
    return pd.DataFrame({"coverage": coverage, "n_patients": n_kept, "risk": risk})
