"""Detection of abnormal slices: the highest probability in a slice is its classifier score.

The areas under curves equal scikit-learn's; a test checks this. They are computed here because the
bootstrap needs thousands of them, and scikit-learn spends 2 ms on each to validate its input.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from scoring.bootstrap import Bootstrap, Estimate
from scoring.overlap import ratio

SPECIFICITY = 0.95

Curve = NDArray[np.float64]  # cumulative counts of slices as the threshold falls, starting at 0


def descending_ranks(scores: ArrayLike) -> NDArray[np.int64]:
    """Return the rank of each score, 0 for the highest; equal scores have the same rank."""
    return np.unique(-np.asarray(scores), return_inverse=True)[1]


def threshold_curves(
    abnormal: NDArray[np.bool_], ranks: NDArray[np.int64], weights: ArrayLike
) -> tuple[Curve, Curve]:
    """Return true and false positives, as sums of weights, from the highest threshold down.

    Both curves start at 0. Slices of equal rank share a threshold.
    """
    true, false = (
        np.bincount(1 + ranks, np.where(kind, weights, 0)) for kind in (abnormal, ~abnormal)
    )
    return true.cumsum(), false.cumsum()


def auroc(tp: Curve, fp: Curve) -> float:
    """Return the area under the ROC curve, by the trapezoidal rule.

    NaN if all slices are abnormal or all are healthy.
    """
    return float(ratio(np.trapezoid(tp, fp), tp[-1] * fp[-1]))


def average_precision(tp: Curve, fp: Curve) -> float:
    """Return the mean of the precision over thresholds, weighted by the gain in recall.

    NaN if all slices are abnormal or all are healthy.
    """
    precision = np.nan_to_num(ratio(tp, tp + fp))
    return float(ratio((np.diff(tp) * precision[1:]).sum(), tp[-1])) if fp[-1] else float("nan")


def sensitivity_at_specificity(tp: Curve, fp: Curve) -> float:
    """Return the highest sensitivity among thresholds with a specificity of at least SPECIFICITY.

    NaN if all slices are abnormal or all are healthy.
    """
    if not tp[-1] * fp[-1]:
        return float("nan")
    return float((tp / tp[-1])[fp / fp[-1] <= 1 - SPECIFICITY + 1e-12].max())


def detection(slices: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return how well abnormal slices are separated from healthy ones.

    In the confusion matrix, a slice is predicted abnormal if any of its pixels is predicted as
    tumor. Scores of the curves are NaN if all slices are abnormal or all are healthy.
    """
    abnormal = slices["abnormal"].to_numpy(dtype=np.bool_)
    detected = (slices["tp"] + slices["fp"] > 0).to_numpy()
    matrix = {
        "detection_tp": int((detected & abnormal).sum()),
        "detection_fp": int((detected & ~abnormal).sum()),
        "detection_fn": int((~detected & abnormal).sum()),
        "detection_tn": int((~detected & ~abnormal).sum()),
    }
    ranks = descending_ranks(slices["max_probability"])
    patient, patient_ids = pd.factorize(slices["patient_id"], sort=True)
    n_patients = len(patient_ids)

    def over_patients(metric: Callable[[Curve, Curve], float]) -> Estimate:
        def of_resample(drawn: NDArray[np.int64]) -> float:
            times_drawn = np.bincount(drawn, minlength=n_patients)
            return metric(*threshold_curves(abnormal, ranks, times_drawn[patient]))

        return bootstrap.estimate(
            n_patients, lambda resamples: [of_resample(drawn) for drawn in resamples]
        )

    curves = threshold_curves(abnormal, ranks, np.ones(len(slices)))
    return {
        **over_patients(auroc).named("detection_auroc"),
        **over_patients(average_precision).named("detection_average_precision"),
        "detection_sensitivity_at_95_specificity": sensitivity_at_specificity(*curves),
        **matrix,
    }
