"""Bootstrap intervals compared with theory and with SciPy's bootstrap."""

import numpy as np
import pytest
from scipy import stats

from scoring.bootstrap import Bootstrap


def test_the_interval_of_a_mean_agrees_with_theory() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    value, low, high = Bootstrap(4000, 1).mean(values)
    assert value == pytest.approx(values.mean())
    margin = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(value - margin, abs=0.02)
    assert high == pytest.approx(value + margin, abs=0.02)


def scipy_interval(statistic: object, *columns: np.ndarray) -> tuple[float, float]:
    """Return SciPy's bootstrap interval for a statistic of paired columns."""
    result = stats.bootstrap(
        columns, statistic, paired=True, n_resamples=5000, method="percentile", rng=1
    )
    return result.confidence_interval.low, result.confidence_interval.high


def test_a_ratio_resamples_parts_and_wholes_together() -> None:
    """If they were resampled separately, the interval would be far wider."""
    rng = np.random.default_rng(2)
    wholes = rng.integers(1, 900, 30)
    parts = (wholes * rng.uniform(0.4, 0.6, 30)).astype(np.int64)
    value, low, high = Bootstrap(5000, 1).ratio(parts, wholes)
    assert value == pytest.approx(parts.sum() / wholes.sum())

    def quotient(top: np.ndarray, bottom: np.ndarray, axis: int) -> np.ndarray:
        result: np.ndarray = top.sum(axis=axis) / bottom.sum(axis=axis)
        return result

    assert (low, high) == pytest.approx(scipy_interval(quotient, parts, wholes), abs=0.002)
    assert high - low < 0.05


def test_intervals_of_mean_and_median_equal_scipys() -> None:
    values = np.random.default_rng(4).exponential(size=40)
    bootstrap = Bootstrap(5000, 1)
    for estimate, statistic in (
        (bootstrap.mean(values), np.mean),
        (bootstrap.median(values), np.median),
    ):
        assert estimate.value == statistic(values)
        assert estimate[1:] == pytest.approx(scipy_interval(statistic, values), abs=0.03)


def test_patients_without_a_value_are_left_out() -> None:
    bootstrap = Bootstrap(500, 3)
    assert bootstrap.mean([1, np.nan, 4, 2.5]).value == pytest.approx(2.5)
    assert bootstrap.median([1, np.nan, 4, 2.5]).value == 2.5
    assert bootstrap.ratio([3, 0, 1], [4, 0, 5]).value == pytest.approx(4 / 9)
    for estimate in (bootstrap.mean([0.5, np.nan, 0.5]), bootstrap.median([0.5, np.nan, 0.5])):
        assert estimate == (0.5, 0.5, 0.5)  # some resamples consist only of the NaN


def test_the_seed_determines_the_resamples_and_all_scores_share_them() -> None:
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


def test_fewer_than_two_patients_have_no_interval() -> None:
    bootstrap = Bootstrap(100, 0)
    assert np.isnan(bootstrap.mean([])).all()
    assert np.isnan(bootstrap.median([])).all()
    assert np.isnan(bootstrap.ratio([0, 0], [0, 0])).all()
    value, low, high = bootstrap.mean([0.7])
    assert value == 0.7
    assert np.isnan([low, high]).all()


def test_an_estimate_becomes_three_scalars_for_dvc() -> None:
    scalars = Bootstrap(100, 0).mean([0.5, 0.5]).named("dice")
    assert scalars == {"dice": 0.5, "dice_low": 0.5, "dice_high": 0.5}
