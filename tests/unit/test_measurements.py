"""Measurements of images against counts done by hand."""

import numpy as np
import pandas as pd
import pytest

from exploration.measurements import (
    POSITIONS,
    Measurements,
    Volume,
    circular_mean,
    concentration,
    hue_counts,
    image_left_share,
    level_counts,
    level_mean,
    level_quantile,
    location_counts,
    measure,
    peak,
    position_counts,
)
from scans.tiff import LEVELS


def test_hue_follows_the_channels_and_gray_has_none() -> None:
    colors = np.array([[[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]]], np.uint8)
    counts = hue_counts(colors, np.ones((1, 4), np.bool_))
    assert np.flatnonzero(counts).tolist() == [0, 60, 120]  # bins of 2 degrees
    assert counts.sum() == 3
    assert hue_counts(colors, np.zeros((1, 4), np.bool_)).sum() == 0


def test_the_mean_hue_is_circular() -> None:
    counts = np.zeros(180, np.int64)
    counts[[5, 175]] = 1  # 10 and 350 degrees
    assert circular_mean(counts) % 360 == pytest.approx(0, abs=1e-9)
    counts[[5, 175, 60]] = 0, 0, 7
    assert circular_mean(counts) == pytest.approx(120)
    assert peak(counts) == 120
    assert concentration(counts) == pytest.approx(1)
    counts[[60, 150]] = 5, 5  # opposite hues
    assert concentration(counts) == pytest.approx(0, abs=1e-9)
    assert np.isnan(concentration(np.zeros(180, np.int64)))
    assert np.isnan(peak(np.zeros(180, np.int64)))
    assert np.isnan(circular_mean(np.zeros(180, np.int64)))


def test_the_peak_ignores_spikes_and_is_circular() -> None:
    counts = np.full(180, 10)
    counts[60] = 60  # a spike, as from two equal channels
    counts[[177, 178, 179, 0, 1, 2, 3]] = 30
    assert peak(counts) == 0


@pytest.mark.parametrize("size", [64, 128, 100, 33])
def test_a_pixel_is_counted_in_its_cell_at_any_image_size(size: int) -> None:
    mask = np.zeros((size, 2 * size), np.bool_)
    mask[-1, 0] = mask[size // 2, size] = True
    counts = location_counts(mask)
    assert counts.shape == (64, 64)
    assert counts.sum() == 2
    assert counts[(size - 1) * 64 // size, 0] == 1
    assert counts[(size // 2) * 64 // size, 32] == 1


def test_slices_are_counted_at_their_position_along_the_volume() -> None:
    masks = [np.zeros((2, 2), np.bool_) for _ in range(POSITIONS // 2)]
    masks[1][:] = True
    counts = position_counts(masks)
    assert counts.sum(axis=0).tolist() == [POSITIONS // 2, 1, 4]
    assert counts[3].tolist() == [1, 1, 4]  # the second of ten: 0.1 to 0.2, center 0.15
    assert position_counts(masks[:1])[POSITIONS // 2].tolist() == [1, 0, 0]
    assert position_counts(masks * 20)[-1].tolist() == [10, 1, 4]


def test_intensities_are_counted_by_sequence_and_tissue() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = [[10, 100, 30], [11, 101, 31]]
    image[1] = [[10, 5, 30], [12, 102, 33]]  # the first is air: FLAIR is dark
    mask = np.array([[True, False], [False, False]])
    measured = measure(Volume(pd.DataFrame(), [image], [mask]), missing=[False] * 3)
    assert [np.flatnonzero(levels).tolist() for levels in measured.levels[:, 0]] == [
        [10],
        [100],
        [30],
    ]
    assert [np.flatnonzero(levels).tolist() for levels in measured.levels[:, 1]] == [
        [11, 12],
        [101, 102],
        [31, 33],
    ]
    assert measured.hue.sum(axis=1).tolist() == [1, 2]
    assert measured.n_pixels == 4
    assert image_left_share(measured) == 1
    twice = Measurements.sum([measured, measured])
    assert twice.n_pixels == 8
    np.testing.assert_array_equal(twice.levels, 2 * measured.levels)

    measured = measure(Volume(pd.DataFrame(), [image], [mask]), missing=[True, False, False])
    assert measured.levels.sum(axis=(1, 2)).tolist() == [0, 3, 3]  # pre-contrast is missing
    assert measured.hue.sum() == 0


def test_mean_and_quantiles_of_intensities_equal_those_of_numpy() -> None:
    values = np.random.default_rng(1).integers(0, 256, (1, 999, 3)).astype(np.uint8)
    for channel, counts in zip(
        values[0].T, level_counts(values, np.ones((1, 999), np.bool_)), strict=True
    ):
        assert level_mean(counts) == pytest.approx(channel.mean())
        for q in (0.05, 0.5, 0.95, 1.0):
            assert level_quantile(counts, q) == np.quantile(channel, q, method="inverted_cdf")
    empty = np.zeros(LEVELS, np.int64)
    assert np.isnan(level_mean(empty))
    assert np.isnan(level_quantile(empty, 0.5))
