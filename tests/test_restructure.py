"""One folder of scans, one of masks; and what makes restructure refuse a data set."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import restructure
from conftest import SIZE, Outcome, RunStage
from slices import sorted_slices

P1 = "PHANTOM_P1_0001_20000101"
P2 = "PHANTOM_P2_0002_20000101"


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def restructured(run_stage: RunStage, raw: Path) -> Outcome:
    folder = raw.parent / "slices"
    return run_stage(restructure.main, [raw, folder / "images", folder / "masks"])


def test_bytes_are_kept_under_one_name_in_both_folders(run_stage: RunStage, raw: Path) -> None:
    assert restructured(run_stage, raw).code == 0
    images, masks = raw.parent / "slices/images", raw.parent / "slices/masks"
    names = sorted(path.name for path in images.iterdir())
    assert names == sorted(path.name for path in masks.iterdir())
    scans = [path for path in raw.glob("*/*.tif") if not path.stem.endswith("_mask")]
    assert names == sorted(path.name for path in scans)
    for path in scans:
        assert (images / path.name).read_bytes() == path.read_bytes()
        mask = path.with_name(f"{path.stem}_mask.tif")
        assert (masks / path.name).read_bytes() == mask.read_bytes()


def test_odd_names_sizes_and_suffixes_work(run_stage: RunStage, raw: Path) -> None:
    """Spaces, unicode, a number alone, and a size of a patient's own."""
    for name in ("Ärztin Größe 1", "007", "a.b_c"):
        (raw / name).mkdir()
        save(raw / name / f"{name}_1.TIF", np.zeros((40, 33, 3), np.uint8))
        save(raw / name / f"{name}_1_mask.tiff", np.zeros((40, 33), np.uint8))
    assert restructured(run_stage, raw) == Outcome(0, "")
    found = {name.slice_id for name in sorted_slices(raw.parent / "slices/images")}
    assert {"Ärztin Größe 1_1", "007_1", "a.b_c_1"} < found


def remove_mask(raw: Path) -> None:
    (raw / P1 / f"{P1}_3_mask.tif").unlink()


def remove_scan(raw: Path) -> None:
    (raw / P1 / f"{P1}_3.tif").unlink()


def add_foreign_file(raw: Path) -> None:
    (raw / P1 / "notes.txt").write_text("left here")


def add_foreign_file_beside_patients(raw: Path) -> None:
    (raw / "labels.xlsx").write_text("left here")


def add_slice_of_another(raw: Path) -> None:
    shutil.copy(raw / P2 / f"{P2}_1.tif", raw / P1)


def repeat_number(raw: Path) -> None:
    shutil.copy(raw / P1 / f"{P1}_3.tif", raw / P1 / f"{P1}_03.tif")


def repeat_patient(raw: Path) -> None:
    again = "PHANTOM_P1_0001_20010101"
    (raw / again).mkdir()
    for path in (raw / P1).iterdir():
        shutil.copy(path, raw / again / path.name.replace(P1, again))


def empty_patient(raw: Path) -> None:
    (raw / "PHANTOM_P9_0099_20000101").mkdir()


def cut_off(raw: Path) -> None:
    path = raw / P1 / f"{P1}_3.tif"
    path.write_bytes(path.read_bytes()[:999])


def empty_file(raw: Path) -> None:
    (raw / P1 / f"{P1}_3.tif").write_bytes(b"")


def mask_of_another_size(raw: Path) -> None:
    save(raw / P1 / f"{P1}_3_mask.tif", np.zeros((SIZE, SIZE + 1), np.uint8))


def mask_in_color(raw: Path) -> None:
    save(raw / P1 / f"{P1}_3_mask.tif", np.zeros((SIZE, SIZE, 3), np.uint8))


def scan_in_gray(raw: Path) -> None:
    save(raw / P1 / f"{P1}_3.tif", np.zeros((SIZE, SIZE), np.uint8))


def scan_of_16_bits(raw: Path) -> None:
    save(raw / P1 / f"{P1}_3.tif", np.zeros((SIZE, SIZE), np.uint16))


def mask_of_other_values(raw: Path) -> None:
    save(raw / P1 / f"{P1}_3_mask.tif", np.full((SIZE, SIZE), 1, np.uint8))


def link_out_of_the_tree(raw: Path) -> None:
    (raw / P1 / f"{P1}_99.tif").symlink_to(raw / P2 / f"{P2}_1.tif")


def pipe(raw: Path) -> None:
    os.mkfifo(raw / P1 / f"{P1}_99.tif")


def no_patient(raw: Path) -> None:
    for folder in raw.glob("PHANTOM*"):
        shutil.rmtree(folder)


def no_folder(raw: Path) -> None:
    shutil.rmtree(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_mask, f"scan without mask: {{raw}}/{P1}/{P1}_3.tif"),
        (remove_scan, f"mask without scan: {{raw}}/{P1}/{P1}_3_mask.tif"),
        (add_foreign_file, f"not a slice: {{raw}}/{P1}/notes.txt"),
        (add_foreign_file_beside_patients, "nor data.csv: {raw}/labels.xlsx"),
        (add_slice_of_another, f"slice of another patient: {{raw}}/{P1}/{P2}_1.tif"),
        (repeat_number, f"slice number twice: {{raw}}/{P1}/{P1}_03.tif, {{raw}}/{P1}/{P1}_3.tif"),
        (
            repeat_patient,
            "patient twice, but for the date of the scan: "
            f"PHANTOM_P1_0001 in {P1}, PHANTOM_P1_0001_20010101",
        ),
        (empty_patient, "patient without slices: {raw}/PHANTOM_P9_0099_20000101"),
        (cut_off, f"{P1}_3.tif: damaged TIFF image"),
        (empty_file, f"{P1}_3.tif: not a TIFF image that can be read"),
        (mask_of_another_size, f"{P1}_3_mask.tif: mask of 48x49 for a scan of 48x48"),
        (
            mask_in_color,
            f"{P1}_3_mask.tif: expected 1 channel of uint8 in one page, found mode RGB",
        ),
        (scan_in_gray, f"{P1}_3.tif: expected 3 channels of uint8 in one page, found mode L"),
        (scan_of_16_bits, f"{P1}_3.tif: expected 3 channels of uint8 in one page, found mode I;16"),
        (mask_of_other_values, f"{P1}_3_mask.tif: mask values are 0 and 255, found also [1]"),
        (link_out_of_the_tree, f"not a slice: {{raw}}/{P1}/{P1}_99.tif"),
        (pipe, f"not a slice: {{raw}}/{P1}/{P1}_99.tif"),
        (no_patient, "no patient's folder in {raw}"),
        (no_folder, "no folder of patients at {raw}"),
    ],
)
def test_a_damaged_data_set_is_refused_and_nothing_written(
    run_stage: RunStage, raw: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(raw)
    outcome = restructured(run_stage, raw)
    assert outcome.code == 1
    assert message.format(raw=raw) in outcome.error
    assert "Correct the files, then `dvc repro -f acquire`." in outcome.error
    assert "Traceback" not in outcome.error
    assert not list(raw.parent.rglob("slices/*/*.tif"))


def test_all_offenders_are_listed_ten_shown(run_stage: RunStage, raw: Path) -> None:
    masks = sorted(raw.glob("*/*_mask.tif"))[:14]
    for mask in masks:
        mask.unlink()
    outcome = restructured(run_stage, raw)
    assert outcome.error.count("scan without mask") == 10
    assert "… and 4 more" in outcome.error
    assert not (raw.parent / "slices").exists()


def test_a_refusal_keeps_the_earlier_output(run_stage: RunStage, raw: Path) -> None:
    assert restructured(run_stage, raw).code == 0
    before = sorted(path.name for path in (raw.parent / "slices").rglob("*"))
    remove_mask(raw)
    assert restructured(run_stage, raw).code == 1
    assert sorted(path.name for path in (raw.parent / "slices").rglob("*")) == before
