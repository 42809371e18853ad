"""Intensity: MRI has no units, so patients and sequences are brought to one scale of brightness.

Tissue is what is brighter than the mean of all pixels of the sequence in the patient's volume, air
included: the mask that TorchIO's ZNormalization offers (Pérez-García et al., Comput. Methods
Programs Biomed. 208:106236, 2021). It moves with the brightness, so that a volume twice as bright
comes out the same, but for rounding and what was clipped at 255.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.refusals import Refusal, refuse, remake
from scans.tiff import LEVELS, SEQUENCES

STATISTICS = ("tissue_mean", "tissue_std", "tissue_median", "tissue_p99")
HINT = remake("measure_tissue")
Normalize = Literal["none", "percentile", "median", "z_score"]

# percentile: of each sequence, the 99th percentile of tissue becomes 191, three quarters of the
# scale, for tumors may be brighter. median: that of tissue becomes 75, where percentile brings it
# in most patients, but not in those whose scalp is bright. z_score: tissue gets mean 115 and
# standard deviation 57, those of the photographs that ImageNet's encoders have learned from.
# none: intensities stay.
P99, MEDIAN, MEAN, STD = 191, 75, 115, 57


def tissue_statistics(counts: NDArray[np.int64]) -> dict[str, float]:
    """Return mean, standard deviation, median and 99th percentile of the tissue of one sequence.

    `counts`, (256,), has how many pixels of the volume have which level. NaN where all are alike.
    """
    levels = np.arange(LEVELS)
    tissue = np.where(levels > np.average(levels, weights=counts), counts, 0)
    if not tissue.any():
        return dict.fromkeys(STATISTICS, np.nan)
    mean = np.average(levels, weights=tissue)
    std = np.sqrt(np.average((levels - mean) ** 2, weights=tissue))
    median, p99 = np.searchsorted(tissue.cumsum(), [0.5 * tissue.sum(), 0.99 * tissue.sum()])
    return dict(zip(STATISTICS, map(float, (mean, std, median, p99)), strict=True))


def normalizing_levels(statistics: Mapping[Any, float], normalize: Normalize) -> NDArray[np.uint8]:
    """Return the level that each of the 256 levels of a sequence becomes, clipped to 0 and 255.

    A sequence without contrast, whose statistics say nothing, stays as it is.
    """
    levels = np.arange(LEVELS, dtype=np.float64)
    if normalize == "percentile" and statistics["tissue_p99"] > 0:
        levels *= P99 / statistics["tissue_p99"]
    if normalize == "median" and statistics["tissue_median"] > 0:
        levels *= MEDIAN / statistics["tissue_median"]
    if normalize == "z_score" and statistics["tissue_std"] > 0:
        levels = MEAN + (levels - statistics["tissue_mean"]) * STD / statistics["tissue_std"]
    return np.clip(np.rint(levels), 0, LEVELS - 1).astype(np.uint8)


@dataclass(frozen=True)
class Normalization:
    """How scans are normalized: for each patient what every level becomes, (1, 256, 3) uint8."""

    tables: dict[str, NDArray[np.uint8]]  # empty: scans stay as they are

    def __call__(self, image: NDArray[np.uint8], patient_id: str) -> NDArray[np.uint8]:
        """Return the patient's scan, (H, W, 3), normalized."""
        if not self.tables:
            return image
        return np.asarray(cv2.LUT(image, self.tables[patient_id]), dtype=np.uint8)


NONE = Normalization({})


def read_normalization(
    intensities: Path, patient_ids: Iterable[str], normalize: Normalize
) -> Normalization:
    """Return how to normalize patients' slices, from the table of the stage `measure_tissue`."""
    if normalize == "none":
        return NONE
    try:
        table = pd.read_csv(intensities, dtype={"patient_id": str}, keep_default_na=False)
        table[list(STATISTICS)] = table[list(STATISTICS)].apply(pd.to_numeric)
        rows = table.set_index(["patient_id", "sequence"]).to_dict("index")
    except (ValueError, KeyError, TypeError) as error:  # pandas' own kinds among them
        reason = " ".join(str(error).split())
        raise Refusal(f"{intensities}: no table of intensities ({reason}); {HINT}") from None
    patients = sorted(set(patient_ids))
    problems = [
        f"{intensities}: {patient_id} has no {sequence}"
        for patient_id in patients
        for sequence in SEQUENCES
        if (patient_id, sequence) not in rows
    ]
    if problems:
        refuse(problems, HINT)
    return Normalization(
        {
            patient_id: np.stack(
                [normalizing_levels(rows[patient_id, each], normalize) for each in SEQUENCES],
                axis=-1,
            )[None]
            for patient_id in patients
        }
    )
