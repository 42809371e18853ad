"""The manifest against what the phantom's folders hold."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

import build_manifest
from conftest import Data, Outcome, RunStage
from scans.manifest import SPLITS, TEXT, read_manifest
from scans.tiff import read_mask

COLUMNS = [
    "slice_id", "patient_id", "institution", "slice_number", "image", "mask", "abnormal",
    "tumor_area",
]  # fmt: skip


def test_each_slice_has_a_row_that_tells_the_truth(data: Data) -> None:
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


def test_clinical_columns_are_joined_under_readable_names(data: Data) -> None:
    patients = pd.read_csv(data.patients).set_index("case_id")
    clinical = pd.read_csv(data.raw / "data.csv").set_index("Patient").loc[patients.index]
    for theirs, ours in (
        ("neoplasm_histologic_grade", "grade"),
        ("gender", "gender"),
        ("age_at_initial_pathologic", "age"),
        ("death01", "death"),
        ("CNCluster", "copy_number_cluster"),
    ):
        np.testing.assert_array_equal(patients[ours], clinical[theirs])
    assert patients["age"].isna().sum() == 1
    assert "67.0" not in data.patients.read_text()


def run_with(run_stage: RunStage, data: Data, tmp_path: Path, clinical: Path) -> Outcome:
    outputs = [tmp_path / "manifest.csv", tmp_path / "patients.csv"]
    return run_stage(build_manifest.main, [data.images, data.masks, clinical, *outputs])


def test_patient_alone_is_enough_of_a_clinical_table(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    clinical = tmp_path / "data.csv"
    clinical.write_text("Patient\nPHANTOM_P1_0001\n")
    assert run_with(run_stage, data, tmp_path, clinical).code == 0
    assert len(pd.read_csv(tmp_path / "patients.csv")) == 10


def test_names_that_look_like_numbers_or_gaps_stay_names(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    source = sorted(data.images.glob("*_1.tif"))[0].name
    for name in ("0012_1.tif", "x_NA_y_20000101_1.tif"):
        for folder in (data.images, data.masks):
            (tmp_path / folder.name).mkdir(exist_ok=True)
            shutil.copy(folder / source, tmp_path / folder.name / name)
    (tmp_path / "data.csv").write_text("Patient,gender\n0012,2\n")
    paths = [tmp_path / name for name in ("images", "masks", "data.csv", "m.csv", "p.csv")]
    assert run_stage(build_manifest.main, paths).code == 0
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest["patient_id"].tolist() == ["0012", "x_NA_y_20000101"]
    assert manifest["institution"].tolist() == ["unknown", "NA"]
    assert pd.read_csv(tmp_path / "p.csv", dtype=str)["gender"].fillna("").tolist() == ["2", ""]


def test_blank_rows_a_byte_order_mark_and_a_patient_named_na_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfPatient,gender\n NA ,2\n,\n,\n0012,\n")
    clinical = build_manifest.read_clinical(tmp_path / "data.csv")
    assert clinical["case_id"].tolist() == ["NA", "0012"]
    assert clinical["gender"].tolist()[0] == 2


def test_names_stay_text_and_counts_numbers(tmp_path: Path) -> None:
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
