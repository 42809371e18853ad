"""The command's files and messages; it never loses or overwrites other files."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset

import segment as command
from application import page, results
from heads import (
    ALL,
    DEPTH,
    HEIGHT,
    VOXEL,
    WIDTH,
    BrightTumor,
    Head,
    axial_affine,
    join_frames,
    make_head,
    read_mask,
    write_dicom,
    write_exam,
    write_head,
    write_slices,
)
from pipeline.refusals import Refusal

Run = Callable[..., Any]


def expected_mask(head: Head) -> np.ndarray:
    """Return the tumor without its lowest slice, which BrightTumor omits."""
    tumor = head.tumor.copy()
    tumor[np.flatnonzero(tumor.any(axis=(1, 2)))[0]] = False
    return tumor


def test_a_patient_in_nifti(run: Run, patient: Path, head: Head, tmp_path: Path) -> None:
    out = tmp_path / "result"
    ended = run(patient, "--out", out, "--probability")
    assert ended.code == 0
    for name, words in {"flair": "FLAIR", "t1": "pre-contrast", "t1ce": "post-contrast"}.items():
        [line] = [each for each in ended.output.splitlines() if f"/{name}.nii.gz" in each]
        assert words in line
    assert str(out / "index.html") in ended.output
    names = {path.name for path in out.iterdir()}
    expected = {"mask.nii.gz", "probability.nii.gz", "preview.png", "index.html", "result.json"}
    assert names == expected

    mask = nibabel.load(out / "mask.nii.gz")
    flair = nibabel.load(patient / "flair.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == flair.shape
    np.testing.assert_array_equal(mask.affine, flair.affine)
    assert np.array_equal(read_mask(out), expected_mask(head))
    probability = nibabel.load(out / "probability.nii.gz").get_fdata()
    assert np.array_equal(probability > 0.5, np.asarray(mask.dataobj) > 0)
    with Image.open(out / "preview.png") as preview:
        assert preview.size == (768, 768)

    summary = json.loads((out / "result.json").read_text())
    n_voxels = int(expected_mask(head).sum())
    assert summary["n_voxels"] == n_voxels
    assert summary["volume_ml"] == pytest.approx(n_voxels * np.prod(VOXEL) / 1000, rel=1e-4)
    assert summary["components"] == [
        {"n_voxels": n_voxels, "volume_ml": pytest.approx(summary["volume_ml"])}
    ]
    assert summary["voxel_mm"] == pytest.approx(VOXEL, abs=1e-4)
    places = np.argwhere(expected_mask(head))
    extent = (np.ptp(places, axis=0) + 1) * VOXEL
    assert list(summary["extent_mm"].values()) == pytest.approx(extent.tolist(), rel=1e-4)
    assert summary["warnings"] == summary["missing"] == []
    assert sorted(summary["inputs"]) == sorted(ALL)


def test_tiff_slices_get_tiff_masks(run: Run, head: Head, tmp_path: Path) -> None:
    name = "TCGA_CS_1111_20000101"
    write_slices(tmp_path / name, head, name)
    assert run(tmp_path / name, "--out", tmp_path / "result").code == 0
    found = [
        np.array(Image.open(tmp_path / f"result/masks/{name}_{number}_mask.tif"))
        for number in range(1, DEPTH + 1)
    ]
    assert np.array_equal(np.stack(found), expected_mask(head).astype(np.uint8) * 255)
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["n_voxels"] == expected_mask(head).sum()
    assert summary["volume_ml"] is summary["voxel_mm"] is None
    assert np.array_equal(read_mask(tmp_path / "result"), expected_mask(head))


@pytest.mark.parametrize(
    ("columns", "rows"),
    [((1, 0, 0), (0, 1, 0)), ((-1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, -1, 0))],
)
def test_dicom_input_gives_the_same_mask_in_nifti_and_dicom_seg(
    run: Run, head: Head, tmp_path: Path, columns: tuple[float, ...], rows: tuple[float, ...]
) -> None:
    """Also if columns or rows are reversed, which reverses the slices."""
    turned = [slice(None), slice(None, None, round(rows[1])), slice(None, None, round(columns[0]))]
    if columns[0] * rows[1] < 0:  # the normal points down
        turned[0] = slice(None, None, -1)
    sequences = {name: slices[tuple(turned)] for name, slices in head.sequences.items()}
    write_exam(tmp_path / "exam", Head(sequences, head.tumor), columns=columns, rows=rows)
    ended = run(tmp_path / "exam", "--out", tmp_path / "result")
    assert ended.code == 0, ended.error
    assert np.array_equal(read_mask(tmp_path / "result"), expected_mask(head))

    mask = nibabel.load(tmp_path / "result/mask.nii.gz")
    volume = highdicom.imread(tmp_path / "result/mask.dcm").get_volume()
    segmented = np.argwhere(volume.array.reshape(volume.spatial_shape))
    in_dicom = segmented @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    voxels = np.argwhere(np.asarray(mask.dataobj))
    in_nifti = voxels @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    flipped = in_dicom * [-1, -1, 1]
    assert {tuple(p) for p in flipped.round(2)} == {tuple(p) for p in in_nifti.round(2)}


def test_dicom_with_all_slices_in_one_file(run: Run, head: Head, tmp_path: Path) -> None:
    write_exam(tmp_path / "exam", head)
    for folder in (tmp_path / "exam").iterdir():
        join_frames(folder)
    ended = run(tmp_path / "exam", "--out", tmp_path / "result")
    assert ended.code == 0, ended.error
    assert np.array_equal(read_mask(tmp_path / "result"), expected_mask(head))
    assert highdicom.imread(tmp_path / "result/mask.dcm").get_volume().array.sum() == (
        expected_mask(head).sum()
    )


def test_flags_override_file_names(run: Run, patient: Path, head: Head, tmp_path: Path) -> None:
    for sequence, name in {"flair": "a", "pre_contrast": "flair_b", "post_contrast": "c"}.items():
        write_head(tmp_path / "odd", head, {sequence: f"{name}.nii.gz"})
    odd = tmp_path / "odd"
    flags = ["--flair", odd / "a.nii.gz", "--pre", odd / "flair_b.nii.gz"]
    assert run(*flags, "--out", tmp_path / "one").code == 0
    assert np.array_equal(read_mask(tmp_path / "one"), expected_mask(head))
    assert run(patient, *flags[:2], "--out", tmp_path / "two").code == 0
    assert json.loads((tmp_path / "two/result.json").read_text())["missing"] == []


def test_flair_replaces_a_missing_sequence(run: Run, patient: Path, tmp_path: Path) -> None:
    (patient / "t1.nii.gz").unlink()
    ended = run(patient, "--out", tmp_path / "result")
    assert ended.code == 0
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["missing"] == ["pre_contrast"]
    [warning] = [line for line in summary["warnings"] if "pre-contrast T1" in line]
    assert re.search(r"0\.700 in 3 .*pre-contrast", warning)
    assert warning in ended.output


def test_only_flair_is_required(run: Run, patient: Path, tmp_path: Path) -> None:
    assert run(patient / "flair.nii.gz", "--out", tmp_path / "result").code == 0
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["missing"] == ["pre_contrast", "post_contrast"]


def test_a_second_run_reuses_the_result(run: Run, patient: Path, tmp_path: Path) -> None:
    out = tmp_path / "result"
    run(patient, "--out", out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert str(out) in run(patient, "--out", out).output
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert run(patient, "--out", out, "--threshold", 0.95).code == 0
    assert json.loads((out / "result.json").read_text())["n_voxels"] == 0


def test_the_result_of_another_scan_is_never_overwritten(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    run(patient, "--out", tmp_path / "result")
    before = (tmp_path / "result/result.json").read_bytes()
    write_head(tmp_path / "other", make_head(seed=1), ALL)
    ended = run(tmp_path / "other", "--out", tmp_path / "result")
    assert ended.code == 1
    assert f"{tmp_path / 'result'}: " in ended.error
    assert (tmp_path / "result/result.json").read_bytes() == before
    ended = run(patient, "--out", patient)
    assert ended.code == 1
    assert f"{patient}: " in ended.error
    assert len(list(patient.iterdir())) == len(ALL)


def test_an_interrupted_run_leaves_no_partial_result(
    run: Run, patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_page", interrupt)
    ended = run(patient, "--out", tmp_path / "result")
    assert ended.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["patient"]


def test_a_cohort_resumes_and_one_bad_patient_does_not_stop_the_others(
    run: Run, head: Head, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "results"
    for name in ("a", "b", "c"):
        write_head(cohort / name, make_head(seed=ord(name)), ALL)
    flair = cohort / "b/flair.nii.gz"
    content = flair.read_bytes()
    flair.write_bytes(content[:2000])
    ended = run(cohort, "--out", out)
    assert ended.code == 1
    assert f"{flair}: damaged" in ended.error
    assert "2 of 3" in ended.output
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["name"], row["status"]) for row in rows] == [
        *(("a", "done"), ("b", "failed"), ("c", "done"))
    ]
    assert "damaged" in rows[1]["message"]
    assert {path.name for path in out.iterdir()} == {"a", "c", "results.csv"}
    flair.write_bytes(content)
    times = [(out / name / "result.json").stat().st_mtime_ns for name in "ac"]
    assert run(cohort, "--out", out).code == 0
    assert [(out / name / "result.json").stat().st_mtime_ns for name in "ac"] == times
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    volume = float(np.prod(VOXEL)) * expected_mask(head).sum() / 1000
    assert [float(row["volume_ml"]) for row in rows] == pytest.approx([volume] * 3, rel=1e-3)


def test_the_same_scan_gives_the_same_files(run: Run, patient: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        assert run(patient, "--out", tmp_path / name).code == 0
        summary = json.loads((tmp_path / name / "result.json").read_text())
        del summary["seconds"]
        files = ("mask.nii.gz", "preview.png", "index.html")
        contents.append([summary, *((tmp_path / name / each).read_bytes() for each in files)])
    assert contents[0] == contents[1]


def test_scans_unlike_the_training_data_get_warnings(run: Run, head: Head, tmp_path: Path) -> None:
    """A skull-stripped brain with slices 1 mm apart."""
    for name, slices in head.sequences.items():
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        stripped = slices * (np.hypot((y - 31) / 27, (x - 27) / 22) < 0.6)
        image = nibabel.Nifti1Image(
            np.ascontiguousarray(stripped.transpose(2, 1, 0)),
            axial_affine() @ np.diag([1, 1, 0.2, 1]),
        )
        (tmp_path / "thin").mkdir(exist_ok=True)
        nibabel.save(image, tmp_path / "thin" / ALL[name])
    assert run(tmp_path / "thin", "--out", tmp_path / "result").code == 0
    text = " ".join(json.loads((tmp_path / "result/result.json").read_text())["warnings"])
    assert "1.0 mm" in text
    assert "skull" in text


def test_each_study_is_a_case(run: Run, head: Head, tmp_path: Path) -> None:
    for exam, day in (("first", "20200131"), ("second", "20210131")):
        write_exam(
            tmp_path / "exams" / exam,
            head,
            exam=exam,
            change=lambda dataset, at, day=day: setattr(dataset, "StudyDate", day),
        )
    assert run(tmp_path / "exams", "--out", tmp_path / "results").code == 0
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        *("P1_20200131", "P1_20210131", "results.csv")
    }


def test_a_flag_accepts_the_folder_of_a_dicom_series(run: Run, head: Head, tmp_path: Path) -> None:
    write_exam(tmp_path / "exam", head)
    write_dicom(tmp_path / "exam/s4", head.sequences["flair"], "FLAIR again", number=4)
    ended = run(tmp_path / "exam", "--out", tmp_path / "result")
    assert "'FLAIR again'" in ended.error
    assert "--flair" in ended.error
    named = ["--flair", tmp_path / "exam/s2"]
    assert run(tmp_path / "exam", *named, "--out", tmp_path / "result").code == 0
    assert np.array_equal(read_mask(tmp_path / "result"), expected_mask(head))
    shutil.rmtree(tmp_path / "result")


def test_other_files_in_the_result_folder_are_never_removed(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    """For example a corrected mask, or the scan itself."""
    out = tmp_path / "result"
    run(patient, "--out", out)
    shutil.copy(patient / "flair.nii.gz", out / "flair.nii.gz")
    (out / "corrected").mkdir()
    ended = run(patient, "--out", out, "--threshold", 0.4)
    assert ended.code == 1
    assert "corrected, flair.nii.gz" in ended.error
    assert (out / "flair.nii.gz").exists()


def test_a_result_is_computed_again_if_a_file_is_missing(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result"
    run(patient, "--out", out)
    assert run(patient, "--out", out, "--probability").code == 0
    assert (out / "probability.nii.gz").exists()
    (out / "mask.nii.gz").unlink()
    assert run(patient, "--out", out).code == 0
    assert (out / "mask.nii.gz").exists()
    assert not (out / "probability.nii.gz").exists()


def test_cohorts_in_the_same_folder_share_its_table(run: Run, head: Head, tmp_path: Path) -> None:
    for cohort, names in {"one": "ab", "two": "cd"}.items():
        for name in names:
            write_head(tmp_path / cohort / name, head, ALL)
        assert run(tmp_path / cohort, "--out", tmp_path / "results").code == 0
    rows = csv.DictReader((tmp_path / "results/results.csv").read_text().splitlines())
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    table = tmp_path / "results/results.csv"
    table.write_text("another,kind,of,table\n")
    ended = run(tmp_path / "one", "--out", tmp_path / "results")
    assert f"{table}: " in ended.error
    assert table.read_text() == "another,kind,of,table\n"


def test_a_patient_without_flair_is_a_failed_row_of_the_table(
    run: Run, head: Head, tmp_path: Path
) -> None:
    write_head(tmp_path / "cohort/a", head, ALL)
    write_head(tmp_path / "cohort/b", head, {"flair": "unknown.nii.gz"})
    (tmp_path / "elsewhere").mkdir()
    write_head(tmp_path / "elsewhere/c", head, ALL)
    (tmp_path / "cohort/c").symlink_to(tmp_path / "elsewhere/c")
    assert run(tmp_path / "cohort", "--out", tmp_path / "results").code == 1
    rows = csv.DictReader((tmp_path / "results/results.csv").read_text().splitlines())
    assert [row["status"] for row in rows] == ["done", "failed", "done"]


def test_an_unexpected_error_does_not_stop_the_others(
    run: Run, head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = page.write_page

    def fail(path: Path, found: Any, summary: dict[str, Any]) -> None:
        if summary["name"] == "a":
            raise ValueError("never seen before")
        usual(path, found, summary)

    monkeypatch.setattr(results, "write_page", fail)
    for name in "ab":
        write_head(tmp_path / "cohort" / name, head, ALL)
    ended = run(tmp_path / "cohort", "--out", tmp_path / "results")
    assert ended.code == 1
    assert "ValueError: never seen before" in ended.error
    assert "1 of 2" in ended.output


def test_anonymous_dicom_gets_a_dicom_seg_too(run: Run, head: Head, tmp_path: Path) -> None:
    tags = [
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
        *("StudyID", "AccessionNumber", "ReferringPhysicianName"),
        "SliceThickness",
    ]

    def forget(dataset: Dataset, _: int) -> None:
        for tag in tags:
            delattr(dataset, tag)

    for exam in ("first", "second"):
        write_exam(tmp_path / "exams" / exam, head, exam=exam, change=forget)
    ended = run(tmp_path / "exams", "--out", tmp_path / "results")
    assert ended.code == 0, ended.error
    for name in ("patient", "patient-2"):
        assert (tmp_path / "results" / name / "mask.dcm").exists()


def test_a_single_slice_has_the_thickness_of_its_header(
    run: Run, head: Head, tmp_path: Path
) -> None:
    write_dicom(tmp_path / "one", head.sequences["flair"][7:8], "AX FLAIR")
    assert run(tmp_path / "one", "--out", tmp_path / "result").code == 0
    header = nibabel.load(tmp_path / "result/mask.nii.gz").header
    assert sorted(header.get_zooms()) == pytest.approx(sorted(VOXEL))


def test_the_mask_keeps_the_coordinate_space_of_the_scan(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    flair = nibabel.load(patient / "flair.nii.gz")
    flair.set_sform(flair.affine, code="mni")
    flair.set_qform(None, code="unknown")
    nibabel.save(flair, patient / "moved.nii.gz")
    (patient / "moved.nii.gz").replace(patient / "flair.nii.gz")
    run(patient, "--out", tmp_path / "result")
    header = nibabel.load(tmp_path / "result/mask.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 0)


def test_an_unreadable_sequence_other_than_flair_is_a_warning(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    (patient / "t1.nii.gz").write_bytes(b"damaged")
    assert run(patient, "--out", tmp_path / "result").code == 0
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["missing"] == ["pre_contrast"]
    assert any(str(patient / "t1.nii.gz") in warning for warning in summary["warnings"])


def test_a_model_of_t2_and_flair_uses_these_sequences(
    monkeypatch: pytest.MonkeyPatch, run: Run, patient: Path, tmp_path: Path
) -> None:
    """T2 is in the first channel. FLAIR fills the last, which does not count as missing."""
    model = partial(BrightTumor, sequences=("t2", "flair", "flair"))
    monkeypatch.setattr(command, "ReleasedModel", model)
    (patient / "t1.nii.gz").rename(patient / "t2.nii.gz")
    found = run(patient, "--out", tmp_path / "out")
    assert found.code == 0, found.error
    assert re.search(r"T2: .*t2\.nii\.gz", found.output)
    assert str(patient / "t1ce.nii.gz") in found.output
    summary = json.loads((tmp_path / "out/result.json").read_text())
    assert summary["missing"] == []
    assert summary["n_voxels"] > 0
    page = (tmp_path / "out/index.html").read_text()
    assert "<span>T2</span>" in page
    assert "Post-contrast" not in page


def test_a_model_without_flair_as_its_main_sequence_is_an_error() -> None:
    with pytest.raises(Refusal, match=r"T2.*FLAIR"):
        BrightTumor(sequences=("t2", "t2", "t2")).check_sequences()
