"""Finding the abnormal slices: each slice's highest probability as the score of a classifier."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bootstrap import Bootstrap, Estimate

SPECIFICITY = 0.95


def sensitivity_at_specificity(abnormal: ArrayLike, scores: ArrayLike) -> float:
    """Return the highest sensitivity of a threshold whose specificity is SPECIFICITY or more."""
    false_alarms, sensitivity, _ = roc_curve(abnormal, scores)
    return float(sensitivity[false_alarms <= 1 - SPECIFICITY + 1e-12].max())


def detection(slices: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return how well abnormal slices are told from healthy ones; NaN where there is one kind.

    The confusion matrix calls a slice abnormal where any of its pixels is predicted as tumor.
    """
    abnormal = slices["abnormal"].to_numpy(dtype=np.bool_)
    scores = slices["max_probability"].to_numpy()
    found = (slices["tp"] + slices["fp"] > 0).to_numpy()
    matrix = {
        "detection_tp": int((found & abnormal).sum()),
        "detection_fp": int((found & ~abnormal).sum()),
        "detection_fn": int((~found & abnormal).sum()),
        "detection_tn": int((~found & ~abnormal).sum()),
    }
    if abnormal.all() or not abnormal.any():
        undefined = Estimate(np.nan, np.nan, np.nan)
        return {
            **undefined.named("detection_auroc"),
            **undefined.named("detection_average_precision"),
            "detection_sensitivity_at_95_specificity": np.nan,
            **matrix,
        }
    rows = list(slices.reset_index(drop=True).groupby("patient_id").indices.values())

    def over_patients(metric: Callable[..., float]) -> Estimate:
        def of_drawn(members: NDArray[np.int64]) -> float:
            chosen = np.concatenate([rows[member] for member in members])
            one_kind = len(np.unique(abnormal[chosen])) == 1
            return np.nan if one_kind else float(metric(abnormal[chosen], scores[chosen]))

        return bootstrap.estimate(len(rows), lambda drawn: [of_drawn(each) for each in drawn])

    return {
        **over_patients(roc_auc_score).named("detection_auroc"),
        **over_patients(average_precision_score).named("detection_average_precision"),
        "detection_sensitivity_at_95_specificity": sensitivity_at_specificity(abnormal, scores),
        **matrix,
    }
