"""Figures with their 95 % confidence interval, by bootstrap over patients.

Slices of one patient are not independent, so a resample draws patients, as many as there are and
with replacement, each with all of its slices (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapters 8 and 13). Intervals are percentiles of the resamples. Patients for whom a
figure is undefined are left out of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
BATCH = 200  # resamples at a time: bounds the memory


class Estimate(NamedTuple):
    """A figure and its interval, which is NaN for fewer than two patients."""

    value: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """Return `name`, `name_low` and `name_high`: scalars, which DVC can show and compare."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


class Bootstrap(NamedTuple):
    """How often to resample, and the seed; the same patients are drawn for every figure."""

    resamples: int
    seed: int

    def estimate(
        self, statistic: Callable[..., ArrayLike], *columns: NDArray[np.float64], each: bool = False
    ) -> Estimate:
        """Return a statistic of columns with one value a patient.

        It reduces the last axis of arrays (…, n_patients) if called with `axis=-1`; with `each` it
        is called with arrays (n_patients,) and no axis, resample by resample.
        """
        n_patients = len(columns[0])
        if n_patients == 0:
            return Estimate(np.nan, np.nan, np.nan)
        value = float(np.asarray(statistic(*columns) if each else statistic(*columns, axis=-1)))
        if n_patients == 1:
            return Estimate(value, np.nan, np.nan)
        interval = stats.bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=not each,
            n_resamples=self.resamples,
            batch=BATCH,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(self.seed),
        ).confidence_interval
        return Estimate(value, float(interval.low), float(interval.high))

    def mean(self, values: ArrayLike) -> Estimate:
        """Return the mean over patients."""
        return self.estimate(np.mean, defined(values))

    def median(self, values: ArrayLike) -> Estimate:
        """Return the median over patients."""
        return self.estimate(np.median, defined(values))

    def ratio(self, parts: ArrayLike, wholes: ArrayLike) -> Estimate:
        """Return the quotient of two sums over patients."""
        top, bottom = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
        there = bottom > 0
        return self.estimate(quotient, top[there], bottom[there])


def defined(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values that are not NaN."""
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def quotient(
    top: NDArray[np.float64], bottom: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Return the quotient of the sums along an axis."""
    return np.asarray(top.sum(axis=axis) / bottom.sum(axis=axis))
