"""Intervals against theory and against resampling written out."""

import numpy as np
import pytest

from bootstrap import Bootstrap


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    value, low, high = Bootstrap(4000, 1).mean(values)
    assert value == pytest.approx(values.mean())
    margin = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(value - margin, abs=0.02)
    assert high == pytest.approx(value + margin, abs=0.02)


def test_a_ratio_resamples_patients_and_not_their_slices() -> None:
    rng = np.random.default_rng(2)
    parts, wholes = rng.integers(0, 50, 30), rng.integers(50, 90, 30)
    value, low, high = Bootstrap(5000, 1).ratio(parts, wholes)
    assert value == pytest.approx(parts.sum() / wholes.sum())
    drawn = rng.integers(30, size=(5000, 30))
    ratios = parts[drawn].sum(axis=1) / wholes[drawn].sum(axis=1)
    assert [low, high] == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.01)


def test_undefined_patients_are_left_out() -> None:
    bootstrap = Bootstrap(500, 3)
    assert bootstrap.mean([1, np.nan, 4, 2.5]) == bootstrap.mean([1, 4, 2.5])
    assert bootstrap.median([1, np.nan, 4, 2.5]).value == 2.5
    assert bootstrap.ratio([3, 0, 1], [4, 0, 5]) == bootstrap.ratio([3, 1], [4, 5])


def test_the_seed_decides_and_every_figure_sees_the_same_patients() -> None:
    values = np.random.default_rng(5).random(20)
    assert Bootstrap(300, 1).mean(values) == Bootstrap(300, 1).mean(values)
    assert Bootstrap(300, 1).mean(values) != Bootstrap(300, 2).mean(values)
    one, two = Bootstrap(300, 1).mean(values), Bootstrap(300, 1).mean(10 * values)
    assert two == pytest.approx([10 * figure for figure in one])
    by_resample = Bootstrap(300, 1).estimate(lambda each: each.mean(), values, each=True)
    assert by_resample == pytest.approx(one)


def test_too_few_patients_have_no_interval() -> None:
    bootstrap = Bootstrap(100, 0)
    assert np.isnan(bootstrap.mean([])).all()
    assert np.isnan(bootstrap.ratio([0, 0], [0, 0])).all()
    value, low, high = bootstrap.mean([0.7])
    assert value == 0.7
    assert np.isnan([low, high]).all()
    assert bootstrap.mean([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_an_estimate_is_three_scalars_for_dvc() -> None:
    named = Bootstrap(100, 0).mean([0.5, 0.5]).named("dice")
    assert named == {"dice": 0.5, "dice_low": 0.5, "dice_high": 0.5}
