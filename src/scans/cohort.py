"""The cohort: data/patients.csv, with one row per patient, and the subgroups for scores.

Clinical values are the codes from data.csv, which comes without a codebook. Other data sets may
have no clinical values.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from scans.sequences import missing_phrase

AGE_BANDS = {"under 40": (0, 40), "40 to 59": (40, 60), "60 and over": (60, 200)}  # years
UNKNOWN = "unknown"
MISSING = "missing_"  # prefix of the columns that flag a sequence as missing


def missing_columns(columns: Iterable[Any]) -> list[str]:
    """Return the columns that flag a sequence as missing, in order."""
    return [name for name in columns if name.startswith(MISSING)]


def read_patients(path: Path) -> pd.DataFrame:
    """Return data/patients.csv; names and codes stay text, "" if missing."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    counts = ["n_slices", "n_abnormal", "tumor_volume", *missing_columns(table)]
    return table.astype(dict.fromkeys(counts, int))


def age_band(age: str) -> str:
    """Return the age band of an age in years; UNKNOWN if it is not such a number."""
    years = pd.to_numeric(age, errors="coerce")
    bands = [band for band, (lowest, end) in AGE_BANDS.items() if lowest <= years < end]
    return bands[0] if bands else UNKNOWN


def missing_sequence(patient: pd.Series) -> str:
    """Return a phrase that names the patient's missing sequences, or `none`."""
    flagged = [name for name in missing_columns(patient.index) if patient[name]]
    return missing_phrase([name.removeprefix(MISSING) for name in flagged]) or "none"


def groups(patients: pd.DataFrame, *codes: str) -> pd.DataFrame:
    """Return `attribute`, `value` and `patient_id`, one row for each group a patient is in.

    Attributes are the institution, missing sequence, age band and the columns `codes`. Columns that
    the table does not have are skipped.
    """
    values = {
        "institution": patients["institution"],
        "missing sequence": patients.apply(missing_sequence, axis="columns"),
    }
    if "age" in patients:
        values["age"] = patients["age"].map(age_band)
    values |= {name: patients[name].replace("", UNKNOWN) for name in codes if name in patients}
    table = pd.DataFrame(values).set_index(patients["patient_id"])
    return (
        table.melt(var_name="attribute", value_name="value", ignore_index=False)
        .reset_index()
        .loc[:, ["attribute", "value", "patient_id"]]
    )
