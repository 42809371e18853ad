"""Intervals against theory and against scipy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from scoring.bootstrap import Bootstrap


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    value, low, high = Bootstrap(4000, 1).mean(values)
    assert value == pytest.approx(values.mean())
    margin = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(value - margin, abs=0.02)
    assert high == pytest.approx(value + margin, abs=0.02)


def scipys(statistic: object, *columns: np.ndarray) -> tuple[float, float]:
    """Return scipy's interval of a statistic of columns that are drawn together."""
    found = stats.bootstrap(
        columns, statistic, paired=True, n_resamples=5000, method="percentile", rng=1
    )
    return found.confidence_interval.low, found.confidence_interval.high


def test_a_ratio_draws_patients_whole() -> None:
    """Parts go with wholes: drawn apart, the interval would be far wider."""
    rng = np.random.default_rng(2)
    wholes = rng.integers(1, 900, 30)
    parts = (wholes * rng.uniform(0.4, 0.6, 30)).astype(np.int64)
    value, low, high = Bootstrap(5000, 1).ratio(parts, wholes)
    assert value == pytest.approx(parts.sum() / wholes.sum())

    def quotient(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
        result: np.ndarray = top.sum(axis=axis) / bottom.sum(axis=axis)
        return result

    assert (low, high) == pytest.approx(scipys(quotient, parts, wholes), abs=0.002)
    assert high - low < 0.05


def test_mean_and_median_have_the_intervals_of_scipy() -> None:
    values = np.random.default_rng(4).exponential(size=40)
    bootstrap = Bootstrap(5000, 1)
    for found, statistic in (
        (bootstrap.mean(values), np.mean),
        (bootstrap.median(values), np.median),
    ):
        assert found.value == statistic(values)
        assert found[1:] == pytest.approx(scipys(statistic, values), abs=0.03)


def test_undefined_patients_are_left_out_of_a_figure() -> None:
    bootstrap = Bootstrap(500, 3)
    assert bootstrap.mean([1, np.nan, 4, 2.5]).value == pytest.approx(2.5)
    assert bootstrap.median([1, np.nan, 4, 2.5]).value == 2.5
    assert bootstrap.ratio([3, 0, 1], [4, 0, 5]).value == pytest.approx(4 / 9)
    for found in (bootstrap.mean([0.5, np.nan, 0.5]), bootstrap.median([0.5, np.nan, 0.5])):
        assert found == (0.5, 0.5, 0.5)  # also where a resample draws no other


def test_the_seed_decides_and_every_figure_sees_the_same_patients() -> None:
    values = np.random.default_rng(5).random(20)
    assert Bootstrap(300, 1).mean(values) == Bootstrap(300, 1).mean(values)
    assert Bootstrap(300, 1).mean(values) != Bootstrap(300, 2).mean(values)
    drawn = []

    def statistic(patients: np.ndarray) -> np.ndarray:
        drawn.append(patients)
        return np.zeros(len(patients))

    for _ in range(2):
        Bootstrap(300, 1).estimate(20, statistic)
    np.testing.assert_array_equal(drawn[1], drawn[3])
    assert drawn[1].shape == (300, 20)
    assert drawn[0].tolist() == [list(range(20))]


def test_too_few_patients_have_no_interval() -> None:
    bootstrap = Bootstrap(100, 0)
    assert np.isnan(bootstrap.mean([])).all()
    assert np.isnan(bootstrap.median([])).all()
    assert np.isnan(bootstrap.ratio([0, 0], [0, 0])).all()
    value, low, high = bootstrap.mean([0.7])
    assert value == 0.7
    assert np.isnan([low, high]).all()


def test_an_estimate_is_three_scalars_for_dvc() -> None:
    named = Bootstrap(100, 0).mean([0.5, 0.5]).named("dice")
    assert named == {"dice": 0.5, "dice_low": 0.5, "dice_high": 0.5}
