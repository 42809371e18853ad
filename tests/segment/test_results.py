"""What the command writes, what it says, and that it never loses or overwrites anything."""

import csv
import json
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


def expected(head: Head) -> np.ndarray:
    """Return the tumor without its lowest slice, which the model of the tests leaves out."""
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
    wanted = {"mask.nii.gz", "probability.nii.gz", "preview.png", "index.html", "result.json"}
    assert names == wanted

    mask = nibabel.load(out / "mask.nii.gz")
    flair = nibabel.load(patient / "flair.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert mask.shape == flair.shape
    np.testing.assert_array_equal(mask.affine, flair.affine)
    assert np.array_equal(read_mask(out), expected(head))
    probability = nibabel.load(out / "probability.nii.gz").get_fdata()
    assert np.array_equal(probability > 0.5, np.asarray(mask.dataobj) > 0)
    with Image.open(out / "preview.png") as preview:
        assert preview.size == (768, 768)

    summary = json.loads((out / "result.json").read_text())
    n_voxels = int(expected(head).sum())
    assert summary["n_voxels"] == n_voxels
    assert summary["volume_ml"] == pytest.approx(n_voxels * np.prod(VOXEL) / 1000, rel=1e-4)
    assert summary["components"] == [
        {"n_voxels": n_voxels, "volume_ml": pytest.approx(summary["volume_ml"])}
    ]
    assert summary["voxel_mm"] == pytest.approx(VOXEL, abs=1e-4)
    places = np.argwhere(expected(head))
    extent = (np.ptp(places, axis=0) + 1) * VOXEL
    assert list(summary["extent_mm"].values()) == pytest.approx(extent.tolist(), rel=1e-4)
    assert summary["warnings"] == summary["missing"] == []
    assert sorted(summary["inputs"]) == sorted(ALL)


def test_slices_in_tiff_get_masks_of_the_same_form(run: Run, head: Head, tmp_path: Path) -> None:
    name = "TCGA_CS_1111_20000101"
    write_slices(tmp_path / name, head, name)
    assert run(tmp_path / name, "--out", tmp_path / "result").code == 0
    found = [
        np.array(Image.open(tmp_path / f"result/masks/{name}_{number}_mask.tif"))
        for number in range(1, DEPTH + 1)
    ]
    assert np.array_equal(np.stack(found), expected(head).astype(np.uint8) * 255)
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["n_voxels"] == expected(head).sum()
    assert summary["volume_ml"] is summary["voxel_mm"] is None
    assert np.array_equal(read_mask(tmp_path / "result"), expected(head))


@pytest.mark.parametrize(
    ("columns", "rows"),
    [((1, 0, 0), (0, 1, 0)), ((-1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, -1, 0))],
)
def test_dicom_and_nifti_agree_and_dicom_seg_is_the_same_mask(
    run: Run, head: Head, tmp_path: Path, columns: tuple[float, ...], rows: tuple[float, ...]
) -> None:
    """Also where columns or rows run the other way, so that slices do, too."""
    turned = [slice(None), slice(None, None, round(rows[1])), slice(None, None, round(columns[0]))]
    if columns[0] * rows[1] < 0:  # the normal points down
        turned[0] = slice(None, None, -1)
    own = Head({name: each[tuple(turned)] for name, each in head.sequences.items()}, head.tumor)
    write_exam(tmp_path / "exam", own, columns=columns, rows=rows)
    ended = run(tmp_path / "exam", "--out", tmp_path / "result")
    assert ended.code == 0, ended.error
    assert np.array_equal(read_mask(tmp_path / "result"), expected(head))

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
    assert np.array_equal(read_mask(tmp_path / "result"), expected(head))
    assert highdicom.imread(tmp_path / "result/mask.dcm").get_volume().array.sum() == (
        expected(head).sum()
    )


def test_flags_win_over_names(run: Run, patient: Path, head: Head, tmp_path: Path) -> None:
    for sequence, name in {"flair": "a", "pre_contrast": "flair_b", "post_contrast": "c"}.items():
        write_head(tmp_path / "odd", head, {sequence: f"{name}.nii.gz"})
    odd = tmp_path / "odd"
    flags = ["--flair", odd / "a.nii.gz", "--pre", odd / "flair_b.nii.gz"]
    assert run(*flags, "--out", tmp_path / "one").code == 0
    assert np.array_equal(read_mask(tmp_path / "one"), expected(head))
    assert run(patient, *flags[:2], "--out", tmp_path / "two").code == 0
    assert json.loads((tmp_path / "two/result.json").read_text())["missing"] == []


def test_flair_stands_in_for_what_is_missing(run: Run, patient: Path, tmp_path: Path) -> None:
    (patient / "t1.nii.gz").unlink()
    ended = run(patient, "--out", tmp_path / "result")
    assert ended.code == 0
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["missing"] == ["pre_contrast"]
    [warning] = [each for each in summary["warnings"] if "stands in" in each]
    assert "Dice 0.700 in the 3 patients of the test without pre-contrast" in warning
    assert warning in ended.output


def test_flair_alone_is_enough(run: Run, patient: Path, tmp_path: Path) -> None:
    assert run(patient / "flair.nii.gz", "--out", tmp_path / "result").code == 0
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["missing"] == ["pre_contrast", "post_contrast"]


def test_a_second_run_finds_the_result(run: Run, patient: Path, tmp_path: Path) -> None:
    out = tmp_path / "result"
    run(patient, "--out", out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert "was done before" in run(patient, "--out", out).output
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert "was done before" not in run(patient, "--out", out, "--threshold", 0.95).output
    assert json.loads((out / "result.json").read_text())["n_voxels"] == 0


def test_the_result_of_another_scan_is_never_overwritten(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    run(patient, "--out", tmp_path / "result")
    before = (tmp_path / "result/result.json").read_bytes()
    write_head(tmp_path / "other", make_head(seed=1), ALL)
    ended = run(tmp_path / "other", "--out", tmp_path / "result")
    assert ended.code == 1
    assert "holds the result of other files" in ended.error
    assert (tmp_path / "result/result.json").read_bytes() == before
    ended = run(patient, "--out", patient)
    assert ended.code == 1
    assert "holds something else than a result" in ended.error
    assert len(list(patient.iterdir())) == len(ALL)


def test_interrupted_it_leaves_nothing_half_written(
    run: Run, patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_page", interrupt)
    ended = run(patient, "--out", tmp_path / "result")
    assert ended.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["patient"]


def test_a_cohort_goes_on_where_it_was_and_one_bad_patient_stops_nobody(
    run: Run, head: Head, tmp_path: Path
) -> None:
    cohort, out = tmp_path / "cohort", tmp_path / "results"
    for name in ("a", "b", "c"):
        write_head(cohort / name, make_head(seed=ord(name)), ALL)
    flair = cohort / "b/flair.nii.gz"
    whole = flair.read_bytes()
    flair.write_bytes(whole[:2000])
    ended = run(cohort, "--out", out)
    assert ended.code == 1
    assert "flair.nii.gz: damaged" in ended.error
    assert "2 of 3 cases done" in ended.output
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [(row["name"], row["status"]) for row in rows] == [
        *(("a", "done"), ("b", "failed"), ("c", "done"))
    ]
    assert "damaged" in rows[1]["message"]
    assert {path.name for path in out.iterdir()} == {"a", "c", "results.csv"}
    flair.write_bytes(whole)
    again = run(cohort, "--out", out)
    assert again.code == 0
    assert again.output.count("was done before") == 2
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    volume = float(np.prod(VOXEL)) * expected(head).sum() / 1000
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


def test_what_is_unlike_the_training_is_warned_of(run: Run, head: Head, tmp_path: Path) -> None:
    """A brain without its skull, in slices of 1 mm."""
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
    assert "slices are 1.0 mm apart" in text
    assert "the skull seems to have been removed" in text


def test_several_studies_are_cases_of_their_own(run: Run, head: Head, tmp_path: Path) -> None:
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


def test_a_dicom_series_is_named_by_its_folder(run: Run, head: Head, tmp_path: Path) -> None:
    write_exam(tmp_path / "exam", head)
    write_dicom(tmp_path / "exam/s4", head.sequences["flair"], "FLAIR again", number=4)
    assert "may be FLAIR" in run(tmp_path / "exam", "--out", tmp_path / "result").error
    named = ["--flair", tmp_path / "exam/s2"]
    assert run(tmp_path / "exam", *named, "--out", tmp_path / "result").code == 0
    assert np.array_equal(read_mask(tmp_path / "result"), expected(head))
    shutil.rmtree(tmp_path / "result")


def test_what_lies_beside_a_result_is_never_removed(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    """Such as a mask that somebody has corrected, or the scan itself."""
    out = tmp_path / "result"
    run(patient, "--out", out)
    shutil.copy(patient / "flair.nii.gz", out / "flair.nii.gz")
    (out / "corrected").mkdir()
    ended = run(patient, "--out", out, "--threshold", 0.4)
    assert ended.code == 1
    assert "holds corrected, flair.nii.gz beside a result" in ended.error
    assert (out / "flair.nii.gz").exists()


def test_a_result_is_completed_where_more_is_asked_for_or_something_is_gone(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result"
    run(patient, "--out", out)
    assert "was done before" not in run(patient, "--out", out, "--probability").output
    assert (out / "probability.nii.gz").exists()
    (out / "mask.nii.gz").unlink()
    assert "was done before" not in run(patient, "--out", out).output
    assert (out / "mask.nii.gz").exists()
    assert not (out / "probability.nii.gz").exists()


def test_cohorts_that_share_a_folder_share_its_table(run: Run, head: Head, tmp_path: Path) -> None:
    for cohort, names in {"one": "ab", "two": "cd"}.items():
        for name in names:
            write_head(tmp_path / cohort / name, head, ALL)
        assert run(tmp_path / cohort, "--out", tmp_path / "results").code == 0
    rows = csv.DictReader((tmp_path / "results/results.csv").read_text().splitlines())
    assert [row["name"] for row in rows] == ["a", "b", "c", "d"]
    (tmp_path / "results/results.csv").write_text("my,own,table\n")
    ended = run(tmp_path / "one", "--out", tmp_path / "results")
    assert "another table than that of the results" in ended.error
    assert (tmp_path / "results/results.csv").read_text() == "my,own,table\n"


def test_a_patient_without_flair_is_a_row_of_the_cohort(
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


def test_an_unexpected_error_stops_nobody_else(
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
    assert "a: unexpected ValueError: never seen before" in ended.error
    assert "1 of 2 cases done" in ended.output


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


def test_a_single_slice_is_as_thick_as_it_says(run: Run, head: Head, tmp_path: Path) -> None:
    write_dicom(tmp_path / "one", head.sequences["flair"][7:8], "AX FLAIR")
    assert run(tmp_path / "one", "--out", tmp_path / "result").code == 0
    header = nibabel.load(tmp_path / "result/mask.nii.gz").header
    assert sorted(header.get_zooms()) == pytest.approx(sorted(VOXEL))


def test_the_mask_says_of_space_what_the_scan_says(run: Run, patient: Path, tmp_path: Path) -> None:
    flair = nibabel.load(patient / "flair.nii.gz")
    flair.set_sform(flair.affine, code="mni")
    flair.set_qform(None, code="unknown")
    nibabel.save(flair, patient / "moved.nii.gz")
    (patient / "moved.nii.gz").replace(patient / "flair.nii.gz")
    run(patient, "--out", tmp_path / "result")
    header = nibabel.load(tmp_path / "result/mask.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (4, 0)


def test_what_cannot_be_used_beside_flair_is_warned_of(
    run: Run, patient: Path, tmp_path: Path
) -> None:
    (patient / "t1.nii.gz").write_bytes(b"damaged")
    assert run(patient, "--out", tmp_path / "result").code == 0
    summary = json.loads((tmp_path / "result/result.json").read_text())
    assert summary["missing"] == ["pre_contrast"]
    assert any("pre-contrast T1 is not used" in warning for warning in summary["warnings"])


def test_a_model_of_t2_and_flair_takes_those(
    monkeypatch: pytest.MonkeyPatch, run: Run, patient: Path, tmp_path: Path
) -> None:
    """T2 is in the first channel; FLAIR fills the last, which is no missing sequence."""
    model = partial(BrightTumor, sequences=("t2", "flair", "flair"))
    monkeypatch.setattr(command, "ReleasedModel", model)
    (patient / "t1.nii.gz").rename(patient / "t2.nii.gz")
    found = run(patient, "--out", tmp_path / "out")
    assert found.code == 0, found.error
    assert "T2: " in found.output
    assert "not used: " in found.output
    summary = json.loads((tmp_path / "out/result.json").read_text())
    assert summary["missing"] == []
    assert summary["n_voxels"] > 0
    page = (tmp_path / "out/index.html").read_text()
    assert "<span>T2</span>" in page
    assert "Post-contrast" not in page


def test_a_model_without_flair_as_its_main_sequence_is_refused() -> None:
    with pytest.raises(Refusal, match="main sequence is T2"):
        BrightTumor(sequences=("t2", "t2", "t2")).check_sequences()
