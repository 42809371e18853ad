"""Scores with 95 % confidence intervals, computed with a bootstrap over patients.

Slices of one patient are not independent, so patients are resampled with all of their slices: n of
n patients, with replacement (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters
8 and 13). All scores use the same resamples; patients for whom a score is undefined are left out.
Intervals are percentiles of the resamples. They are too narrow for small groups: in 2,000 trials on
this data's Dice by patient, they contained the true mean 93 % of the time with 75 patients, 92 %
with 22, 87 % with 10 and 74 % with 5.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoring.overlap import ratio

INTERVAL_QUANTILES = (0.025, 0.975)  # the ends of a 95 % confidence interval

PatientIndices = NDArray[np.int64]  # (resamples, n_patients)


class Estimate(NamedTuple):
    """A score and its confidence interval, which is NaN for fewer than two patients."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """Return `name`, `name_low` and `name_high` as scalars that DVC can show and compare."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class Bootstrap(NamedTuple):
    """The number of resamples and the seed."""

    resamples: int
    seed: int

    def estimate(
        self, n_patients: int, statistic: Callable[[PatientIndices], ArrayLike]
    ) -> Estimate:
        """Return the statistic of all patients and its interval.

        `statistic` takes patients' indices and reduces their last axis.
        """
        [value] = np.asarray(statistic(np.arange(n_patients)[None]), dtype=np.float64)
        rng = np.random.default_rng(self.seed)
        drawn = rng.integers(max(1, n_patients), size=(self.resamples, n_patients))
        values = np.asarray(statistic(drawn), dtype=np.float64)
        values = values[~np.isnan(values)]
        if n_patients < 2 or not len(values):
            return Estimate(float(value), np.nan, np.nan)
        low, high = np.quantile(values, INTERVAL_QUANTILES)
        return Estimate(float(value), float(low), float(high))

    def ratio(self, parts: ArrayLike, wholes: ArrayLike) -> Estimate:
        """Return the ratio of two sums over patients."""
        top, bottom = np.asarray(parts), np.asarray(wholes)
        return self.estimate(
            len(top), lambda drawn: ratio(top[drawn].sum(axis=-1), bottom[drawn].sum(axis=-1))
        )

    def mean(self, values: ArrayLike) -> Estimate:
        """Return the mean over the patients whose value is not NaN."""
        array = np.asarray(values, dtype=np.float64)
        return self.ratio(np.nan_to_num(array), ~np.isnan(array))

    def median(self, values: ArrayLike) -> Estimate:
        """Return the median over the patients whose value is not NaN."""
        array = np.asarray(values, dtype=np.float64)
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # all values NaN
            return self.estimate(len(array), lambda drawn: np.nanmedian(array[drawn], axis=-1))
