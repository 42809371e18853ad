"""The manifest and the patients' table, compared with the files in the phantom's folders."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import build_manifest
from helpers import Data, Outcome, RunStage, section
from scans.clinical import clean_code, parse_age, read_clinical
from scans.manifest import SPLITS, TEXT, read_manifest
from scans.params import AcquireParams
from scans.tiff import read_mask

COLUMNS = [
    "slice_id", "patient_id", "institution", "slice_number", "image", "mask", "abnormal",
    "tumor_area",
]  # fmt: skip


def test_each_slice_has_a_row_that_agrees_with_its_files(data: Data) -> None:
    manifest = read_manifest(data.manifest)
    assert list(manifest) == COLUMNS
    assert len(manifest) == len(list(data.raw.glob("*/*_mask.tif")))
    for row in manifest.to_dict("records"):
        mask = read_mask(data.raw / row["patient_id"] / f"{row['slice_id']}_mask.tif")
        assert (row["abnormal"], row["tumor_area"]) == (int(mask.any()), mask.sum())
        assert Path(row["image"]).is_file()
        assert Path(row["mask"]).is_file()
        assert row["institution"] == row["patient_id"].split("_")[1]
    for _, patient in manifest.groupby("patient_id"):
        assert patient["slice_number"].tolist() == list(range(1, len(patient) + 1))


def test_each_patient_has_a_row_with_counts_and_missing_sequences(data: Data) -> None:
    manifest, patients = read_manifest(data.manifest), pd.read_csv(data.patients)
    assert patients["patient_id"].tolist() == sorted(set(manifest["patient_id"]))
    assert patients["n_slices"].sum() == len(manifest)
    assert patients["n_abnormal"].sum() == manifest["abnormal"].sum()
    assert patients["tumor_volume"].sum() == manifest["tumor_area"].sum()
    missing = {
        row["case_id"]: (row["missing_pre_contrast"], row["missing_post_contrast"])
        for row in patients.to_dict("records")
    }
    assert missing["PHANTOM_P1_0001"] == (1, 1)
    assert missing["PHANTOM_P2_0002"] == (0, 1)
    assert patients["missing_pre_contrast"].sum() == 1
    assert patients["missing_post_contrast"].sum() == 2


def test_clinical_columns_are_joined_with_readable_names(data: Data) -> None:
    patients = pd.read_csv(data.patients).set_index("case_id")
    clinical = pd.read_csv(data.raw / "data.csv").set_index("Patient").loc[patients.index]
    for column, name in (
        ("neoplasm_histologic_grade", "grade"),
        ("gender", "gender"),
        ("age_at_initial_pathologic", "age"),
        ("death01", "death"),
        ("CNCluster", "copy_number_cluster"),
    ):
        np.testing.assert_array_equal(patients[name], clinical[column])
    assert patients["age"].isna().sum() == 1
    assert "67.0" not in data.patients.read_text()


def run_with(run_stage: RunStage, data: Data, tmp_path: Path, clinical: Path) -> Outcome:
    outputs = [tmp_path / "manifest.csv", tmp_path / "patients.csv"]
    return run_stage(build_manifest.main, [data.images, data.masks, clinical, *outputs])


def test_a_clinical_table_needs_only_the_column_patient(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    clinical = tmp_path / "data.csv"
    clinical.write_text("Patient\nPHANTOM_P1_0001\n")
    assert run_with(run_stage, data, tmp_path, clinical).code == 0
    assert len(pd.read_csv(tmp_path / "patients.csv")) == 10


def test_names_that_look_like_numbers_or_missing_values_stay_text(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    for number, name in enumerate(("0012_1.tif", "TCGA_NA_0001_20000101_1.tif"), start=1):
        source = f"PHANTOM_P1_0001_20000101_{number}.tif"
        for folder in (data.images, data.masks):
            (tmp_path / folder.name).mkdir(exist_ok=True)
            shutil.copy(folder / source, tmp_path / folder.name / name)
    (tmp_path / "data.csv").write_text("Patient,gender\n0012,2\n")
    paths = [tmp_path / name for name in ("images", "masks", "data.csv", "m.csv", "p.csv")]
    assert run_stage(build_manifest.main, paths).code == 0
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest["patient_id"].tolist() == ["0012", "TCGA_NA_0001_20000101"]
    assert manifest["institution"].tolist() == ["unknown", "NA"]
    assert pd.read_csv(tmp_path / "p.csv", dtype=str)["gender"].fillna("").tolist() == ["2", ""]


def test_blank_rows_a_byte_order_mark_and_a_patient_named_na_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfPatient,gender\n NA ,2\n,\n,\n0012,\n")
    clinical = read_clinical(tmp_path / "data.csv")
    assert clinical["case_id"].tolist() == ["NA", "0012"]
    assert clinical["gender"].tolist()[0] == 2


def test_names_are_read_as_text_and_counts_as_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "slice_id": ["0012_1", "NA_2"],
            "patient_id": ["0012", "NA"],
            "institution": ["NA", "1e5"],
            "image": ["a", "null"],
            "mask": ["a", "nan"],
            "abnormal": [0, 1],
            "tumor_area": [0, 12],
            "split": list(SPLITS[:2]),
        }
    )
    table.to_csv(tmp_path / "splits.csv", index=False)
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "splits.csv"), table)
    assert set(TEXT) <= set(table)


def folders(tmp_path: Path, data: Data, *names: str, clinical: str = "Patient\n") -> list[Path]:
    """Return the stage's arguments after writing one different slice per name, and data.csv."""
    for number, name in enumerate(names, start=1):
        for folder in (data.images, data.masks):
            target = tmp_path / folder.name / f"{name}_1.tif"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(folder / f"PHANTOM_P1_0001_20000101_{number}.tif", target)
    (tmp_path / "data.csv").write_text(clinical, encoding="utf-8")
    return [tmp_path / name for name in ("images", "masks", "data.csv", "m.csv", "p.csv")]


def patients(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "p.csv", dtype=str, keep_default_na=False).set_index("patient_id")


def test_folders_of_a_person_share_a_case_id_and_a_row_in_data_csv(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    names = ("P7_20000131", "p-7_20010131", "sub-01_ses-01", "sub-01_ses-02", "Q")
    clinical = "Patient,gender\nP 7,1\nsub-01_ses-02,2\n"
    assert (
        run_stage(build_manifest.main, folders(tmp_path, data, *names, clinical=clinical)).code == 0
    )
    table = patients(tmp_path)
    assert table["case_id"].groupby(table["case_id"]).size().tolist() == [2, 1, 2]
    assert table.loc[list(names[:2]), "case_id"].tolist() == ["P7", "P7"]
    assert table["gender"].to_dict() == dict(zip(names, ["1", "1", "", "2", ""], strict=True))


@pytest.mark.parametrize("column", ["subject", "Subject"])
def test_the_column_subject_identifies_persons(
    run_stage: RunStage, data: Data, tmp_path: Path, column: str
) -> None:
    clinical = f"Patient,{column},institution\nA_1,s1,X\nB,S-1,\nA_20000101,s2,Y\n"
    names = ("A_1", "A_20000101", "B", "TCGA_CS_0001")
    assert (
        run_stage(build_manifest.main, folders(tmp_path, data, *names, clinical=clinical)).code == 0
    )
    table = patients(tmp_path)
    assert table["case_id"].tolist() == ["s1", "s2", "s1", "TCGA_CS_0001"]
    assert table["institution"].tolist() == ["X", "Y", "unknown", "CS"]
    assert read_manifest(tmp_path / "m.csv")["institution"].tolist() == ["X", "Y", "unknown", "CS"]
    assert not {"subject", "Subject"} & set(table)


def test_the_same_scan_of_two_persons_is_an_error(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    paths = folders(tmp_path, data, "A", "B", "C_20000101", "C_20010101")
    for copy, source in (("B", "A"), ("C_20010101", "C_20000101")):
        pixels = Image.open(tmp_path / f"images/{source}_1.tif")
        pixels.save(tmp_path / f"images/{copy}_1.tif", compression="tiff_lzw")  # different bytes
    outcome = run_stage(build_manifest.main, paths)
    expected = f"{tmp_path}/images/A_1.tif, {tmp_path}/images/B_1.tif\n"
    assert (outcome.code, expected in outcome.error, "C_2" in outcome.error) == (1, True, False)
    (tmp_path / "data.csv").write_text("Patient,subject\nA,1\nB,1\n")
    assert run_stage(build_manifest.main, paths).code == 0


def test_blank_scans_of_two_persons_are_not_duplicates(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    paths = folders(tmp_path, data, "A", "B")
    for name in "AB":
        Image.fromarray(np.full((9, 9, 3), 3, np.uint8)).save(tmp_path / f"images/{name}_1.tif")
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / f"masks/{name}_1.tif")
    assert run_stage(build_manifest.main, paths).code == 0


def test_unmatched_rows_unmatched_folders_and_changed_cells_are_printed(
    run_stage: RunStage, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clinical = 'Patient,age_at_initial_pathologic,gender\nA,30 months,=1+1\n\nB,"30,5",2\nGone,7,\n'
    paths = folders(tmp_path, data, "A", "B", "C", "C_20010101", clinical=clinical)
    build_manifest.main(*paths, acquire=section(AcquireParams))
    printed = capsys.readouterr().out
    assert "row 2, age_at_initial_pathologic: '30 months'" in printed
    assert re.search("row 2, gender: '=1\\+1' .*'_1\\+1'", printed)
    assert re.search(
        r"rows .*data.csv.*\b1\b.*:\n  Gone\n"
        r"patients .*data.csv.*\b2\b.*:\n  C\n  C_20010101\n"
        r"persons .*\b1\b.*:\n  C: C, C_20010101\n",
        printed,
    )
    assert patients(tmp_path)["age"].tolist() == ["", "30.5", "", ""]


def test_names_in_another_unicode_form_match_their_row(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    composed, decomposed = "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}", "Zoe\N{COMBINING DIAERESIS}"
    paths = folders(tmp_path, data, composed, clinical=f"Patient,gender\n{decomposed},2\n")
    assert run_stage(build_manifest.main, paths).code == 0
    assert patients(tmp_path)["gender"].tolist() == ["2"]


@pytest.mark.parametrize(
    ("age", "value"),
    [("30", 30), ("30.5", 30.5), ("30,5", 30.5), ("30 y", 30), ("030Y", 30), ("7 years", 7)],
)
def test_ages_are_read(age: str, value: float) -> None:
    assert parse_age(age) == value


@pytest.mark.parametrize("age", ["", "thirty", "-3", "121", "30 months", "1960-01-01"])
def test_invalid_ages_become_nan(age: str) -> None:
    assert np.isnan(parse_age(age))


@pytest.mark.parametrize(
    "code",
    ["</script><script>alert(1)</script>", "![x](http://e.org/x.png)", "=HYPERLINK(1)", "@SUM(1)",
     "+cmd|' /C calc'!A0", "-2+3", "\t=1", "a\u202eb", "<b>"],
)  # fmt: skip
def test_markup_and_formulas_are_removed_from_codes(code: str) -> None:
    cleaned = clean_code(code)
    assert not set(cleaned) & set("<>[]!|=@'\t\u202e:")
    assert cleaned[0] not in "=+-@"
    assert clean_code(cleaned) == cleaned


@pytest.mark.parametrize("code", ["2", "-1", "+1.5", "G2/3", "left (upper)", "Ödem", "n/a"])
def test_valid_codes_are_unchanged(code: str) -> None:
    assert clean_code(code) == code


def test_column_names_are_cleaned_too(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("Patient,</script>,=A1\nA,1,2\n")
    assert list(read_clinical(tmp_path / "data.csv")) == ["case_id", "_/script_", "_A1"]
