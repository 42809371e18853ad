"""Planted oddities are found, each with its file; a clean volume has none."""

import numpy as np
import pandas as pd
import pytest

from exploration import findings
from exploration.findings import (
    Finding,
    mask_findings,
    near_duplicates,
    slice_findings,
    thumbnail,
)
from exploration.measurements import Volume, read_volume
from helpers import Data
from scans.manifest import read_manifest


def volume(*masks: np.ndarray) -> Volume:
    files = [f"masks/A_{number + 1}.tif" for number in range(len(masks))]
    numbers = range(1, len(masks) + 1)
    rows = pd.DataFrame({"patient_id": "A", "mask": files, "slice_number": numbers})
    return Volume(rows, [], list(masks))


def blob(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((30, 40), np.bool_)
    mask[rows, columns] = True
    return mask


def test_a_patient_without_tumor_is_one_finding() -> None:
    empty = np.zeros((30, 40), np.bool_)
    assert mask_findings(volume(empty, empty)) == [Finding("no_tumor", "masks/A_1.tif", "A", 2, "")]


@pytest.mark.parametrize(
    ("rows", "columns", "pixels"),
    [
        (slice(0, 9), slice(5, 15), 10),
        (slice(21, 30), slice(5, 15), 10),
        (slice(5, 15), slice(0, 9), 10),
        (slice(5, 15), slice(31, 40), 10),
        (slice(20, 30), slice(30, 40), 19),  # a corner counts once
    ],
)
def test_a_mask_on_the_border_is_reported_with_its_slice(
    rows: slice, columns: slice, pixels: int
) -> None:
    inside = blob(slice(5, 25), slice(5, 35))
    found = mask_findings(volume(inside, inside | blob(rows, columns)))
    assert found == [Finding("mask_touches_border", "masks/A_2.tif", "A", pixels, "")]


def test_small_components_next_to_a_larger_one_are_specks() -> None:
    lesion = blob(slice(5, 15), slice(5, 15))
    one, corner = blob(slice(20, 21), slice(30, 31)), blob(slice(15, 16), slice(15, 16))
    found = mask_findings(volume(lesion | one, lesion | one, lesion | corner))
    assert found == [
        Finding("speck", "masks/A_1.tif", "A", 2, ""),  # one component in two slices
        Finding("speck", "masks/A_3.tif", "A", 1, ""),
    ]
    second = blob(slice(20, 25), slice(25, 35))  # 50 pixels: a lesion
    assert mask_findings(volume(lesion | second)) == []
    small = blob(slice(20, 22), slice(30, 32))
    assert mask_findings(volume(small)) == []  # the only component


def test_near_duplicates_of_other_patients_are_found_at_any_brightness() -> None:
    rng = np.random.default_rng(3)
    scans = [rng.integers(0, 120, (60, 60, 3)).astype(np.float64) for _ in range(6)]
    scans[1] = scans[0]  # same patient: not a finding
    scans[4] = 1.7 * scans[2] + 10 + rng.normal(0, 2, (60, 60, 3))
    scans[4][..., [0, 2]] = 90  # only FLAIR is compared
    scans[5] = np.full((60, 60, 3), 7.0)  # blank
    scans.append(scans[5])
    patients = ["A", "A", "A", "B", "B", "B", "C"]
    table = pd.DataFrame(
        {"image": [f"images/{p}_{i}.tif" for i, p in enumerate(patients)], "patient_id": patients}
    )
    thumbnails = np.stack([thumbnail(scan.round().astype(np.uint8)) for scan in scans])
    found = near_duplicates(table, thumbnails)
    assert [f[:3] + f[4:] for f in found] == [
        ("near_duplicate", "images/A_2.tif", "A", "images/B_4.tif")
    ]
    expected = np.corrcoef(thumbnails[2], thumbnails[4])[0, 1]
    assert found[0].value == pytest.approx(expected, abs=1e-5)
    assert findings.ALIKE < found[0].value < 1


def test_a_slice_shared_by_two_patients_is_reported_once() -> None:
    scan = np.random.default_rng(4).integers(0, 255, (50, 50, 3)).astype(np.uint8)
    files = ["images/A_1.tif", "images/B_1.tif"]
    table = pd.DataFrame({"image": files, "patient_id": ["A", "B"]})
    thumbnails = np.stack([thumbnail(scan)] * 2)
    found = near_duplicates(table, thumbnails)
    assert len(found) == 1
    assert found[0].value == pytest.approx(1)
    assert near_duplicates(table, np.zeros_like(thumbnails)) == []


def phantom_volume(data: Data, patient_id: str) -> Volume:
    table = read_manifest(data.manifest)
    return read_volume(table[table["patient_id"] == patient_id].reset_index(drop=True))


def test_a_gap_in_the_slice_numbers_is_reported_at_the_slice_after_it(data: Data) -> None:
    whole = phantom_volume(data, "PHANTOM_P1_0001_20000101")
    assert slice_findings(whole) == []
    kept = [index for index in range(len(whole.masks)) if index not in (2, 3, 5)]
    rest = Volume(
        whole.rows.iloc[kept],
        [whole.images[index] for index in kept],
        [whole.masks[index] for index in kept],
    )
    assert [found[:4] for found in slice_findings(rest)] == [
        ("slice_gap", whole.rows["mask"][4], "PHANTOM_P1_0001_20000101", 2),
        ("slice_gap", whole.rows["mask"][6], "PHANTOM_P1_0001_20000101", 1),
    ]


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_masks_shifted_by_slices_are_found(data: Data, shift: int) -> None:
    patients = sorted(path.name for path in data.raw.iterdir() if path.is_dir())
    for patient_id in patients:
        whole = phantom_volume(data, patient_id)
        assert slice_findings(whole) == []
        masks = list(np.roll(np.stack(whole.masks), -shift, axis=0))
        found = slice_findings(whole._replace(masks=masks))
        first = next(i for i, mask in enumerate(masks) if mask.any())
        assert found == [Finding("mask_shifted", whole.rows["mask"][first], patient_id, shift, "")]
