"""The figures say in words and numbers what they show."""

import numpy as np
import pytest

from exploration.figures import area_figure, hue_figure, location_figure, shares
from exploration.measurements import GRID, HUE_BINS, LEVELS, POSITIONS, Looks


def looks() -> Looks:
    location = np.zeros((GRID, GRID), np.int64)
    location[-1, 0] = 30  # below, on the left
    location[0, -1] = 10
    hue = np.zeros((2, HUE_BINS), np.int64)
    hue[:, 60] = 2000, 500
    levels = np.zeros((3, 2, LEVELS), np.int64)
    return Looks(location, np.zeros((POSITIONS, 3), np.int64), hue, levels, 4000)


def test_the_heat_map_tells_the_share_of_each_side() -> None:
    [axes, _] = location_figure(looks()).axes
    assert [text.get_text() for text in axes.texts] == [
        "left of the image:\n75 % of tumor pixels",
        "right of the image:\n25 % of tumor pixels",
    ]
    assert axes.get_title() == "Where tumors are in the slice, n = 40 pixels"
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn[-1, 0] == 750  # per mille, the first row on top
    assert drawn.sum() == pytest.approx(1000)


def test_the_median_of_skewed_areas_is_marked() -> None:
    figure = area_figure(np.array([0.01, 0.02, 0.12]), np.array([0.005, 0.01]))
    labels = [axes.get_legend().get_texts()[0].get_text() for axes in figure.axes]  # type: ignore[union-attr]
    assert labels == ["median 2.0 %", "median 0.8 %"]
    assert [axes.get_title() for axes in figure.axes] == [
        "Tumor of 3 abnormal slices",
        "Tumor of 2 patients",
    ]


def test_a_histogram_of_few_pixels_is_not_drawn() -> None:
    figure = hue_figure(looks(), {"A": looks(), "B": looks()})
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "all institutions, n = 2,000 tumor pixels",
        "A, n = 2,000 tumor pixels",
        "B, n = 2,000 tumor pixels",
    ]
    assert [line.get_label() for line in shown[0].lines] == ["tumor"]
    np.testing.assert_array_equal(shares(np.zeros(4, np.int64)), np.zeros(4))
