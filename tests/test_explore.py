"""The image analysis against figures done by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import explore
from conftest import SIZE, Data, RunStage
from manifest import read_manifest
from slices import read_mask, slice_path


def test_hue_is_that_of_the_channels_and_gray_has_none() -> None:
    colors = np.array([[[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]]], np.uint8)
    counts = explore.hue_counts(colors, np.ones((1, 4), np.bool_))
    assert np.flatnonzero(counts).tolist() == [0, 60, 120]  # bins of 2 degrees
    assert counts.sum() == 3
    assert explore.hue_counts(colors, np.zeros((1, 4), np.bool_)).sum() == 0


def test_the_mean_of_hues_goes_round_the_circle() -> None:
    counts = np.zeros(180, np.int64)
    counts[[5, 175]] = 1  # 10 and 350 degrees
    assert explore.circular_mean(counts) % 360 == pytest.approx(0, abs=1e-9)
    counts[[5, 175, 60]] = 0, 0, 7
    assert explore.circular_mean(counts) == pytest.approx(120)
    assert explore.peak(counts) == 120
    assert np.isnan(explore.peak(np.zeros(180, np.int64)))


@pytest.mark.parametrize("size", [64, 128, 100, 33])
def test_a_place_counts_in_its_cell_at_any_size(size: int) -> None:
    mask = np.zeros((size, 2 * size), np.bool_)
    mask[-1, 0] = mask[size // 2, size] = True
    counts = explore.location_counts(mask)
    assert counts.shape == (64, 64)
    assert counts.sum() == 2
    assert counts[(size - 1) * 64 // size, 0] == 1
    assert counts[(size // 2) * 64 // size, 32] == 1


def test_the_figures_equal_those_counted_by_hand(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    metrics, figures = tmp_path / "explore.json", tmp_path / "explore"
    paths = [data.images, data.masks, data.manifest, metrics, figures]
    assert run_stage(explore.main, paths).code == 0
    found = json.loads(metrics.read_text())
    ids = read_manifest(data.manifest)["slice_id"]
    masks = np.stack([read_mask(slice_path(data.masks, slice_id)) for slice_id in ids])
    area = masks.mean(axis=(1, 2))
    assert found["n_patients"] == 10
    assert found["n_slices"] == len(masks)
    assert found["n_slices_abnormal"] == (area > 0).sum()
    assert found["abnormal_fraction"] == pytest.approx((area > 0).mean(), abs=1e-5)
    assert found["tumor_pixel_fraction"] == pytest.approx(masks.mean(), abs=1e-5)
    assert found["tumor_area"]["median"] == pytest.approx(np.median(area[area > 0]), abs=1e-5)
    assert found["tumor_area"]["max"] == pytest.approx(area.max(), abs=1e-5)
    left = masks[:, :, : SIZE // 2].sum() / masks.sum()
    assert found["tumor_share_image_left"] == pytest.approx(left, abs=1e-5)
    assert 90 < found["hue"]["tumor_peak"] < 190  # bright in FLAIR, the green channel
    assert sorted(path.name for path in figures.iterdir()) == [
        "hue.png",
        "location.png",
        "tumor_area.png",
    ]
    first = {path.name: path.read_bytes() for path in figures.iterdir()}
    assert run_stage(explore.main, paths).code == 0
    assert {path.name: path.read_bytes() for path in figures.iterdir()} == first
    for path in figures.iterdir():
        with Image.open(path) as image:
            assert "Software" not in image.info
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
