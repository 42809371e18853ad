"""The subgroups of patients."""

from pathlib import Path

import pandas as pd
import pytest

from helpers import Data
from scans.cohort import age_band, groups, missing_sequence, read_patients


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("20", "under 40"),
        ("39.9", "under 40"),
        ("40", "40 to 59"),
        ("60", "60 and over"),
        ("", "unknown"),
        ("old", "unknown"),
    ],
)
def test_age_bands(age: str, band: str) -> None:
    assert age_band(age) == band


def test_missing_sequences_are_named() -> None:
    rows = [(0, 0, "none"), (1, 0, "pre-contrast"), (0, 1, "post-contrast")]
    for pre, post, phrase in [*rows, (1, 1, "pre and post-contrast")]:
        patient = pd.Series({"missing_pre_contrast": pre, "missing_post_contrast": post})
        assert missing_sequence(patient) == phrase


def test_every_patient_is_in_one_group_of_each_attribute(data: Data) -> None:
    patients = read_patients(data.patients)
    table = groups(patients, "grade", "gender", "no_such_column")
    assert list(table) == ["attribute", "value", "patient_id"]
    assert table["attribute"].unique().tolist() == [
        "institution",
        "missing sequence",
        "age",
        "grade",
        "gender",
    ]
    assert (table.groupby("attribute")["patient_id"].nunique() == len(patients)).all()
    assert not table.duplicated(["attribute", "patient_id"]).any()
    missing = table[table["attribute"] == "missing sequence"]["value"].value_counts()
    assert missing.to_dict() == {"none": 8, "pre and post-contrast": 1, "post-contrast": 1}
    # The phantom's last patient has no clinical values.
    last = table[table["patient_id"].str.contains("_0010_")].set_index("attribute")["value"]
    assert last[["age", "grade", "gender"]].tolist() == ["unknown"] * 3


def test_a_data_set_without_clinical_columns_still_has_the_other_groups(
    data: Data, tmp_path: Path
) -> None:
    bare = tmp_path / "patients.csv"
    table = pd.read_csv(data.patients, dtype=str, keep_default_na=False)
    table.loc[:, :"missing_post_contrast"].to_csv(bare, index=False)
    attributes = groups(read_patients(bare), "grade")["attribute"]
    assert attributes.unique().tolist() == ["institution", "missing sequence"]
