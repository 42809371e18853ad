"""Scans and masks are copied into one folder each; damaged data sets are an error."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import restructure
from helpers import Outcome, RunStage
from scans.names import sorted_slices

P1 = "PHANTOM_P1_0001_20000101"
P2 = "PHANTOM_P2_0002_20000101"


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def run_restructure(run_stage: RunStage, raw: Path) -> Outcome:
    folder = raw.parent / "slices"
    return run_stage(restructure.main, [raw, folder / "images", folder / "masks"])


def test_files_are_copied_unchanged_with_one_name_in_both_folders(
    run_stage: RunStage, raw: Path
) -> None:
    assert run_restructure(run_stage, raw).code == 0
    images, masks = raw.parent / "slices/images", raw.parent / "slices/masks"
    names = sorted(path.name for path in images.iterdir())
    assert names == sorted(path.name for path in masks.iterdir())
    scans = [path for path in raw.glob("*/*.tif") if not path.stem.endswith("_mask")]
    assert names == sorted(path.name for path in scans)
    for path in scans:
        assert (images / path.name).read_bytes() == path.read_bytes()
        mask = path.with_name(f"{path.stem}_mask.tif")
        assert (masks / path.name).read_bytes() == mask.read_bytes()


def test_unusual_names_sizes_and_suffixes_work(run_stage: RunStage, raw: Path) -> None:
    """Spaces, Unicode, only a number, and a size that differs from the other patients'."""
    for name in ("Ärztin Größe 1", "007", "a.b_c"):
        (raw / name).mkdir()
        save(raw / name / f"{name}_1.TIF", np.zeros((40, 33, 3), np.uint8))
        save(raw / name / f"{name}_1_mask.tiff", np.zeros((40, 33), np.uint8))
    assert run_restructure(run_stage, raw) == Outcome(0, "")
    slice_ids = {name.slice_id for name in sorted_slices(raw.parent / "slices/images")}
    assert {"Ärztin Größe 1_1", "007_1", "a.b_c_1"} < slice_ids


def remove_mask(raw: Path) -> None:
    (raw / P1 / f"{P1}_3_mask.tif").unlink()


def test_a_patient_without_slices_is_an_error(run_stage: RunStage, raw: Path) -> None:
    (raw / "PHANTOM_P9_0099_20000101").mkdir()
    outcome = run_restructure(run_stage, raw)
    assert (outcome.code, f"patient without slices: {raw}/PHANTOM_P9" in outcome.error) == (1, True)


def test_a_missing_folder_of_patients_is_an_error(run_stage: RunStage, raw: Path) -> None:
    shutil.rmtree(raw)
    outcome = run_restructure(run_stage, raw)
    assert outcome.code == 1
    assert f"no folder of patients at {raw}" in outcome.error
    assert "`dvc repro -f acquire`" in outcome.error
    raw.mkdir()
    assert f"no patient's folder in {raw}" in run_restructure(run_stage, raw).error
    (raw / "labels.xlsx").write_text("")
    assert f"{raw}/labels.xlsx" in run_restructure(run_stage, raw).error


def test_an_error_lists_ten_files_and_counts_the_rest(run_stage: RunStage, raw: Path) -> None:
    masks = sorted(raw.glob("*/*_mask.tif"))[:14]
    for mask in masks:
        mask.unlink()
    outcome = run_restructure(run_stage, raw)
    assert outcome.error.count("scan without mask") == 10
    assert "4 more" in outcome.error
    assert not (raw.parent / "slices").exists()


def test_an_error_keeps_the_earlier_output(run_stage: RunStage, raw: Path) -> None:
    assert run_restructure(run_stage, raw).code == 0
    before = sorted(path.name for path in (raw.parent / "slices").rglob("*"))
    remove_mask(raw)
    assert run_restructure(run_stage, raw).code == 1
    assert sorted(path.name for path in (raw.parent / "slices").rglob("*")) == before
