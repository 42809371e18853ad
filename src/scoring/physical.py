"""Scores in millimeters and milliliters, for patients whose voxel spacing is known.

Each patient is scored as one volume. Distances are measured in 3-D between the borders of the
predicted and the reference mask.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scoring.bootstrap import Bootstrap
from scoring.scores import limits_of_agreement
from scoring.surface import QUANTILE, border_distances

COLUMNS = ("hd95_mm", "surface_distance_mm", "reference_ml", "predicted_ml")


def physical_scores(
    predicted: NDArray[np.bool_], mask: NDArray[np.bool_], voxel: Sequence[float]
) -> dict[str, float]:
    """Return COLUMNS for two masks (D, H, W); `voxel` has the mm between slices, rows and columns.

    `hd95_mm` is the larger of the two directed 95th-percentile Hausdorff distances.
    `surface_distance_mm` is the average symmetric surface distance: the mean distance to the other
    border, over the voxels of both borders. Both are NaN if a mask is empty. A border consists of
    the voxels with at least one of their six neighbors outside the mask (Maier-Hein et al., Metrics
    Reloaded, Nature Methods 21, 2024).
    """
    milliliters = float(np.prod(voxel)) / 1000
    volumes = {
        "reference_ml": float(mask.sum() * milliliters),
        "predicted_ml": float(predicted.sum() * milliliters),
    }
    if not (predicted.any() and mask.any()):
        return {"hd95_mm": np.nan, "surface_distance_mm": np.nan, **volumes}
    distances = border_distances(predicted, mask, voxel)
    directed = [np.quantile(one_way.astype(np.float64), QUANTILE) for one_way in distances]
    return {
        "hd95_mm": float(max(directed)),
        "surface_distance_mm": float(np.concatenate(distances).mean()),
        **volumes,
    }


def is_complete_volume(numbers: Sequence[int], splits: Sequence[str]) -> bool:
    """Return whether a patient's slices are all in one split, without gaps in their numbers."""
    return len(set(splits)) == 1 and bool((np.diff(numbers) == 1).all())


def summarize_physical(patients: pd.DataFrame, bootstrap: Bootstrap) -> dict[str, float | int]:
    """Return the scores of one split from its patients' rows; none if no voxel spacing is known.

    They are the mean distances with 95 % intervals, and for volumes the bias (predicted -
    reference) and the limits of agreement (Bland and Altman, Lancet 327:307, 1986). Patients
    without a value are left out.
    """
    if "reference_ml" not in patients:
        return {}
    scores: dict[str, float | int] = {}
    for name in ("hd95_mm", "surface_distance_mm"):
        scores |= bootstrap.mean(patients[name]).named(f"{name}_mean")
        scores[f"n_patients_{name}"] = int(patients[name].count())
    differences = patients["predicted_ml"] - patients["reference_ml"]
    bias = bootstrap.mean(differences)
    return {
        **scores,
        **limits_of_agreement("volume_ml", bias, differences),
        "n_patients_volume_ml": int(differences.count()),
    }


def with_physical_scores(
    patients: pd.DataFrame, physical: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Return the patients' table with COLUMNS added, or unchanged if no patient has them."""
    if not physical:
        return patients
    table = pd.DataFrame(physical, index=list(COLUMNS)).T
    return patients.join(table, on="patient_id")
