"""Normalize the slices of a data set with a lookup table for each patient and sequence."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.refusals import Refusal, rebuild_hint, refuse
from scans.intensity import STATISTICS, Normalize, normalized
from scans.tiff import LEVELS, SEQUENCES

HINT = rebuild_hint("measure_tissue")


@dataclass(frozen=True)
class Normalization:
    """A lookup table for each patient, (1, 256, 3) uint8: the new value of each level."""

    tables: dict[str, NDArray[np.uint8]]  # if empty, scans are not changed

    def __call__(self, image: NDArray[np.uint8], patient_id: str) -> NDArray[np.uint8]:
        """Return the patient's scan, (H, W, 3), normalized."""
        if not self.tables:
            return image
        return np.asarray(cv2.LUT(image, self.tables[patient_id]), dtype=np.uint8)


NONE = Normalization({})


def read_normalization(
    intensities: Path, patient_ids: Iterable[str], normalize: Normalize
) -> Normalization:
    """Return the normalization of patients' slices, from the table of `measure_tissue`."""
    if normalize == "none":
        return NONE
    try:
        table = pd.read_csv(intensities, dtype={"patient_id": str}, keep_default_na=False)
        table[list(STATISTICS)] = table[list(STATISTICS)].apply(pd.to_numeric)
        rows = {
            patient_id: rows.to_dict("records") for patient_id, rows in table.groupby("patient_id")
        }
    except (ValueError, KeyError, TypeError) as error:  # pandas' errors derive from these
        reason = " ".join(str(error).split())
        raise Refusal(f"{intensities}: not a table of intensities ({reason}); {HINT}") from None
    patients = sorted(set(patient_ids))
    problems = [
        f"{intensities}: {patient_id} has {len(rows.get(patient_id, []))} rows; expected one for "
        f"each of {len(SEQUENCES)} channels"
        for patient_id in patients
        if len(rows.get(patient_id, [])) != len(SEQUENCES)
    ]
    if problems:
        refuse(problems, HINT)
    levels = np.arange(LEVELS)
    return Normalization(
        {
            patient_id: np.stack(
                [normalized(levels, row, normalize) for row in rows[patient_id]], axis=-1
            )[None]
            for patient_id in patients
        }
    )
