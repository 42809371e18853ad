"""The tables of explore, computed from the measurements of each patient."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from exploration.findings import KINDS, Finding
from exploration.measurements import (
    HUE_BINS,
    POSITIONS,
    TISSUES,
    Counts,
    Measurements,
    circular_mean,
    concentration,
    image_left_share,
    level_mean,
    level_quantile,
    peak,
)
from scans.cohort import groups, missing_columns
from scans.sequences import channel_of

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
HUE_FIGURES = {"mean": circular_mean, "concentration": concentration, "peak": peak}
CODES = (
    "grade",
    "gender",
    "laterality",
    "tumor_location",
)  # columns of data.csv that patients are grouped by


class Examined(NamedTuple):
    """The results of examining a patient's slices."""

    measured: Measurements
    area: NDArray[np.float64]  # (D,) tumor area as a fraction of each slice
    n_components: int
    findings: list[Finding]
    thumbnails: NDArray[np.float32]  # (D, THUMBNAIL²)
    bone: float  # share of dark voxels where a skull would be, from `skull_share`


def quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Return QUANTILES of the values, NaN if there are none, and their number `n`."""
    found = {
        name: float(np.quantile(values, q)) if len(values) else float("nan")
        for name, q in QUANTILES.items()
    }
    return {**found, "n": len(values)}


def count_nonempty(counts: Iterable[Counts]) -> int:
    """Return the number of histograms that are not empty; a missing sequence leaves one empty."""
    return sum(bool(histogram.any()) for histogram in counts)


def hues(measured: Measurements) -> dict[str, float]:
    """Return the circular mean (degrees), concentration [0, 1] and peak of each tissue's hue."""
    return {
        f"{tissue}_{name}": function(counts)
        for tissue, counts in zip(TISSUES, measured.hue, strict=True)
        for name, function in HUE_FIGURES.items()
    }


def patient_table(patients: pd.DataFrame, examined: list[Examined]) -> pd.DataFrame:
    """Return one row per patient: measurements and columns of patients.csv."""
    tumor = [patient.measured.location.sum() / patient.measured.n_pixels for patient in examined]
    table = patients[["patient_id", "institution", "n_slices", "n_abnormal"]].assign(
        abnormal_fraction=patients["n_abnormal"] / patients["n_slices"],
        tumor_fraction=tumor,
        image_left_share=[image_left_share(patient.measured) for patient in examined],
        n_components=[patient.n_components for patient in examined],
        **pd.DataFrame([hues(patient.measured) for patient in examined]).add_prefix("hue_"),
    )
    joined = [*missing_columns(patients), *CODES, "age"]
    return table.join(patients[[name for name in joined if name in patients]])


def cohort_table(patients: pd.DataFrame, examined: list[Examined]) -> pd.DataFrame:
    """Return one row per group of patients: its size, and the size, side and hue of its tumors."""
    positions = pd.Series(range(len(patients)), index=patients["patient_id"])
    rows = []
    for (attribute, value), group in groups(patients, *CODES).groupby(["attribute", "value"]):
        members = positions[group["patient_id"]].tolist()
        measured = Measurements.sum(examined[member].measured for member in members)
        chosen = patients.iloc[members]
        rows.append(
            {
                "group": f"{attribute}: {value}",
                "n_patients": len(members),
                "n_slices": chosen["n_slices"].sum(),
                "n_abnormal": chosen["n_abnormal"].sum(),
                "slices_median": chosen["n_slices"].median(),
                "abnormal_fraction": chosen["n_abnormal"].sum() / chosen["n_slices"].sum(),
                "tumor_fraction": measured.location.sum() / measured.n_pixels,
                "image_left_share": image_left_share(measured),
                "n_patients_hue": count_nonempty(
                    examined[member].measured.hue for member in members
                ),
                **{f"hue_{name}": degrees for name, degrees in hues(measured).items()},
            }
        )
    return pd.DataFrame(rows)


def sequence_table(
    patients: pd.DataFrame, examined: list[Examined], sequences: Sequence[str]
) -> pd.DataFrame:
    """Return intensity statistics, 0 to 255, by institution, sequence and tissue.

    `sequences` are those of the three channels. Patients without a sequence are not counted for it.
    """
    institutions = {"all": patients.index} | dict(patients.groupby("institution").groups)
    rows = []
    for institution, members in institutions.items():
        measured = Measurements.sum(examined[member].measured for member in members)
        for sequence, channel in channel_of(sequences).items():
            tissues = measured.levels[channel]
            for tissue, counts in zip(TISSUES, tissues, strict=True):
                rows.append(
                    {
                        "group": f"{institution}: {tissue} in {sequence}",
                        "n_patients": count_nonempty(
                            examined[m].measured.levels[channel] for m in members
                        ),
                        "n_pixels": counts.sum(),
                        "mean": level_mean(counts),
                        **{q: level_quantile(counts, QUANTILES[q]) for q in QUANTILES},
                    }
                )
    return pd.DataFrame(rows)


def position_table(measured: Measurements) -> pd.DataFrame:
    """Return slices, abnormal slices and tumor share at each of POSITIONS along the volume."""
    n_slices, n_abnormal, tumor = measured.position.T
    return pd.DataFrame(
        {
            "position": (np.arange(POSITIONS) + 0.5) / POSITIONS,
            "n_slices": n_slices,
            "n_abnormal": n_abnormal,
            "abnormal_fraction": n_abnormal / np.maximum(1, n_slices),
            "tumor_share": tumor / max(1, tumor.sum()),
        }
    )


def hue_table(measured: Measurements) -> pd.DataFrame:
    """Return the hue histogram of each tissue, as fractions of the tissue's colored pixels."""
    shares = measured.hue / np.maximum(1, measured.hue.sum(axis=1, keepdims=True))
    degrees = np.arange(HUE_BINS) * 360 // HUE_BINS
    return pd.DataFrame({"hue": degrees, **dict(zip(TISSUES, shares, strict=True))})


def finding_table(findings: list[Finding]) -> pd.DataFrame:
    """Return one row per finding, sorted by kind and file."""
    return pd.DataFrame(findings, columns=Finding._fields).sort_values(["kind", "file", "other"])


def summary(
    patients: pd.DataFrame,
    examined: list[Examined],
    measured: Measurements,
    area: NDArray[np.float64],
    findings: pd.DataFrame,
    sequences: Sequence[str],
) -> dict[str, object]:
    """Return the values of explore.json; areas are fractions of a slice, hues are in degrees.

    `measured` and `area` cover all patients together.
    """
    abnormal = area[area > 0]
    missing = patients[missing_columns(patients)]
    return {
        "n_patients": len(patients),
        "n_slices": len(area),
        "n_slices_abnormal": len(abnormal),
        "abnormal_fraction": len(abnormal) / len(area),
        "tumor_pixel_fraction": int(measured.location.sum()) / measured.n_pixels,
        "tumor_area": quantiles(abnormal),
        "tumor_share_of_patient": quantiles(
            np.array([patient.area.mean() for patient in examined])
        ),
        "slices_of_patient": quantiles(patients["n_slices"].to_numpy(dtype=np.float64)),
        "abnormal_of_patient": quantiles(patients["n_abnormal"].to_numpy(dtype=np.float64)),
        "tumor_share_image_left": image_left_share(measured),
        "hue": {
            **hues(measured),
            "n_patients": count_nonempty(patient.measured.hue for patient in examined),
        },
        "intensity": {
            sequence: {
                "tumor_mean": level_mean(tumor),
                "healthy_mean": level_mean(healthy),
                "n_patients": count_nonempty(
                    patient.measured.levels[channel] for patient in examined
                ),
            }
            for sequence, channel in channel_of(sequences).items()
            for tumor, healthy in [measured.levels[channel]]
        },
        **{f"n_{name}": int(flags.sum()) for name, flags in missing.items()},
        "n_complete": int((missing.sum(axis=1) == 0).sum()),
        "n_several_components": sum(patient.n_components > 1 for patient in examined),
        "findings": {kind: int((findings["kind"] == kind).sum()) for kind in KINDS},
    }
