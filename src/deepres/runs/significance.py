"""Tests of whether two groups of numbers differ, two-sided. Needs scipy (the extra `report`)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from deepres.runs.statistics import CONFIDENCE, NEEDED_SEEDS, Interval

ROUNDING = 1e-9  # percent points, within which errors are equal


@dataclass(frozen=True)
class TTest:
    """A t-test of a difference of means."""

    difference: float
    """The second mean minus the first."""
    interval: Interval | None
    """The 95% confidence interval of the difference."""
    p_value: float
    """How likely so large a difference, in either direction, would be if there were none."""
    degrees_of_freedom: float


@dataclass(frozen=True)
class McNemar:
    """Two nets' answers to the same images."""

    seeds: tuple[int, ...]
    """The seeds of the pairs of runs whose images are counted together."""
    images: int
    """How many, over all pairs."""
    only_a: int
    """Wrong by the first net alone."""
    only_b: int
    """Wrong by the second net alone."""
    p_value: float
    """The exact binomial one: how likely so uneven a division of the images that one net alone gets wrong would be,
    if each were as likely to fall to either."""

    @property
    def difference(self) -> float:
        """The second net's error minus the first's on these images, in percent points."""
        return 100 * (self.only_b - self.only_a) / self.images


def welch(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """Return Welch's t-test, which lets the two groups have different spreads.

    None with one number in a group, or without any spread.
    """
    if min(len(one), len(other)) < NEEDED_SEEDS or np.ptp(one) + np.ptp(other) < ROUNDING:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where one group has no spread
        return _test(stats.ttest_ind(other, one, equal_var=False), float(np.mean(other) - np.mean(one)))


def paired(one: Sequence[float], other: Sequence[float]) -> TTest | None:
    """Return the paired t-test of numbers that belong together, place by place.

    None with one pair, or where all pairs differ by the same.
    """
    differences = np.subtract(other, one)
    if len(differences) < NEEDED_SEEDS or np.ptp(differences) < ROUNDING:
        return None
    return _test(stats.ttest_rel(other, one), float(differences.mean()))


def mcnemar(wrong_a: NDArray[np.bool_], wrong_b: NDArray[np.bool_], seeds: Sequence[int] = (0,)) -> McNemar:
    """Return McNemar's exact test of two nets' errors on the same images, (N,) each."""
    only_a, only_b = int((wrong_a & ~wrong_b).sum()), int((wrong_b & ~wrong_a).sum())
    p_value = float(stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(tuple(seeds), len(wrong_a), only_a, only_b, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests, by Holm's step-down method, so that all of them together keep the level.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none becomes smaller than one before it, nor
    larger than 1.
    """
    corrected = [0.0] * len(p_values)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = least
    return corrected


def _test(result: Any, difference: float) -> TTest:
    low, high = result.confidence_interval(CONFIDENCE)
    return TTest(difference, (float(low), float(high)), float(result.pvalue), float(result.df))
