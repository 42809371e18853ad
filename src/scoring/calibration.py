"""Whether probabilities mean what they say, and whether doubt points at the poor cases."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scoring.overlap import ratio

BINS = 20  # of equal width, of probability
COVERAGES = 20  # shares of patients kept, 1/20 to all


def reliability(probability: NDArray[np.float64], counts: NDArray[np.int64]) -> pd.DataFrame:
    """Return mean probability and share of tumor in each bin of probability.

    `counts`, (2, n), holds how many healthy and how many tumor pixels were given each of the n
    values of `probability`. An empty bin is NaN.
    """
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    n_pixels = np.bincount(bins, weights=counts.sum(axis=0), minlength=BINS)
    promised = np.bincount(bins, weights=counts.sum(axis=0) * probability, minlength=BINS)
    observed = np.bincount(bins, weights=counts[1], minlength=BINS)
    return pd.DataFrame(
        {
            "bin": (np.arange(BINS) + 0.5) / BINS,
            "n_pixels": n_pixels.astype(np.int64),
            "probability": ratio(promised, n_pixels),
            "observed": ratio(observed, n_pixels),
        }
    )


def expected_calibration_error(bins: pd.DataFrame) -> float:
    """Return the mean of |probability - observed| over pixels, in [0, 1]; NaN of no pixels.

    As in Guo et al., On Calibration of Modern Neural Networks, ICML 2017, for one class. Leave bins
    out to have it of the pixels in the others.
    """
    gaps = (bins["probability"] - bins["observed"]).abs() * bins["n_pixels"]
    return float(ratio(gaps.sum(), bins["n_pixels"].sum()))


def soft_dice_confidence(
    inside: ArrayLike, total: ArrayLike, n_predicted: ArrayLike
) -> NDArray[np.float64]:
    """Return the Dice that the network itself expects of its predicted mask, in [0, 1].

    From the sums of probability inside the mask and over all pixels, and from the mask's pixels; it
    needs no reference (Borges et al., Soft Dice Confidence, arXiv 2402.10665). 1 where no pixel has
    any probability: the network is sure that there is no tumor.
    """
    expected = ratio(2 * np.asarray(inside), np.asarray(total) + np.asarray(n_predicted))
    return np.nan_to_num(expected, nan=1.0)


def risks(dice: ArrayLike, confidence: ArrayLike) -> NDArray[np.float64]:
    """Return the risk, 1 - mean Dice, of the 1, 2, … n most confident patients.

    Patients whose Dice is undefined are left out. Of equally confident ones any may come first:
    each counts with the mean of them all.
    """
    known = pd.DataFrame({"dice": dice, "confidence": confidence}).dropna(subset="dice")
    known["dice"] = known.groupby("confidence")["dice"].transform("mean")
    kept = known.sort_values("confidence", ascending=False)["dice"].to_numpy()
    return np.asarray(1 - kept.cumsum() / np.arange(1, len(kept) + 1))


def area_under_risk_coverage(dice: ArrayLike, confidence: ArrayLike) -> float:
    """Return the mean risk over all shares of patients kept, in [0, 1]; NaN of no patient.

    Lower is better (Geifman et al., Bias-Reduced Uncertainty Estimation, ICLR 2019).
    """
    by_number = risks(dice, confidence)
    return float(by_number.mean()) if len(by_number) else float("nan")


def risk_coverage(dice: ArrayLike, confidence: ArrayLike) -> pd.DataFrame:
    """Return the risk, and the number of patients, where a share of them is kept.

    The most confident are kept, as many as make up the share at least.
    """
    by_number = risks(dice, confidence)
    coverage = (np.arange(COVERAGES) + 1) / COVERAGES
    n_kept = np.ceil(coverage * len(by_number) - 1e-9).astype(np.int64)
    risk = by_number[n_kept - 1] if len(by_number) else np.full(COVERAGES, np.nan)
    return pd.DataFrame({"coverage": coverage, "n_patients": n_kept, "risk": risk})
