"""The phantom poses the same task as the real data and depends only on its seed."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from helpers import SIZE
from scans.names import sorted_slices
from scans.phantom import make_volume, write_phantom
from scans.tiff import read_image, read_mask


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_only_the_same_seed_gives_the_same_bytes(phantom: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "again", seed=7, patients=10, image_size=SIZE)
    write_phantom(tmp_path / "other", seed=8, patients=10, image_size=SIZE)
    again, other = digests(tmp_path / "again"), digests(tmp_path / "other")
    assert digests(phantom) == again
    common = [name for name in again.keys() & other.keys() if not name.endswith("_mask.tif")]
    assert len(common) > 100
    assert all(again[name] != other[name] for name in common)


def test_a_patient_does_not_depend_on_the_number_of_patients(phantom: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "few", seed=7, patients=3, image_size=SIZE)
    few = digests(tmp_path / "few")
    del few["data.csv"]
    assert few.items() <= digests(phantom).items()


def test_ids_cannot_be_mistaken_for_real_ones(phantom: Path) -> None:
    patients = sorted(path.name for path in phantom.iterdir() if path.is_dir())
    assert len(patients) == 10
    assert all(re.fullmatch(r"PHANTOM_P[1-4]_\d{4}_20000101", name) for name in patients)
    assert len({name.split("_")[1] for name in patients}) == 4
    clinical = pd.read_csv(phantom / "data.csv")
    assert clinical["Patient"].tolist() == sorted(
        (name.rpartition("_")[0] for name in patients), key=lambda name: name[-4:]
    )
    assert clinical.iloc[-1, 1:].isna().all()
    assert clinical.iloc[:-1].notna().all(axis=None)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_contiguous_third_of_the_slices_is_abnormal(seed: int) -> None:
    abnormal, n_slices = 0, 0
    for index in range(30):
        volume, mask = make_volume(np.random.default_rng([seed, index]), 64)
        assert volume.shape == (*mask.shape, 3)
        is_abnormal = np.asarray(mask.any(axis=(1, 2)))
        assert (np.diff(is_abnormal.astype(int)) != 0).sum() == 2  # one run
        abnormal += is_abnormal.sum()
        n_slices += len(is_abnormal)
    assert abnormal / n_slices == pytest.approx(0.35, abs=0.01)


def test_a_lesion_overlaps_with_itself_in_neighboring_slices() -> None:
    overlaps = []
    for index in range(20):
        _, mask = make_volume(np.random.default_rng([3, index]), 64)
        run = mask[mask.any(axis=(1, 2))]
        overlaps += [(a & b).sum() / min(a.sum(), b.sum()) for a, b in pairwise(run)]
    assert np.median(overlaps) > 0.8
    assert min(overlaps) > 0


def test_lesions_are_bright_in_flair_but_no_threshold_segments_them() -> None:
    bright, best = [], 0.0
    flair, masks = [], []
    for index in range(20):
        volume, mask = make_volume(np.random.default_rng([5, index]), 64)
        brain = (volume[..., 1] > 0.2) & ~mask
        bright.append(np.median(volume[..., 1][mask]) / np.median(volume[..., 1][brain]))
        flair.append(volume[..., 1].ravel())
        masks.append(mask.ravel())
    pixels, reference = np.concatenate(flair), np.concatenate(masks)
    for threshold in np.linspace(0, 1, 101):
        found = pixels > threshold
        best = max(best, (found & reference).sum() / (found | reference).sum())
    assert min(bright) > 1.15
    assert best < 0.25


def test_one_patient_has_only_flair_and_one_has_no_post_contrast(phantom: Path) -> None:
    is_missing = {}
    for patient in sorted(path for path in phantom.iterdir() if path.is_dir()):
        names = [name for name in sorted_slices(patient) if not name.is_mask]
        scans = np.stack([read_image(patient / f"{name.slice_id}.tif") for name in names])
        masks = [read_mask(patient / f"{name.slice_id}_mask.tif") for name in names]
        assert scans.shape[1:] == (SIZE, SIZE, 3)
        assert any(mask.any() for mask in masks)
        is_missing[patient.name] = [
            (scans[..., channel] == scans[..., 1]).all() for channel in (0, 2)
        ]
    assert sorted(is_missing.values()).count([True, True]) == 1
    assert sorted(is_missing.values()).count([False, True]) == 1
    assert sorted(is_missing.values()).count([False, False]) == 8
