"""How many seeds a difference takes to be found, and what difference so many seeds find. Needs scipy.

Given the samples' variances, Welch's test asks whether a normal variable is beyond a limit; over the variances, which
are chi-squared, that is integrated. It gives the noncentral t distribution where the test pools the variances, and
unlike this is exact for Welch's own degrees of freedom, which matter in groups of two or three.
"""

import math

import numpy as np
from scipy import special, stats

POWER = 0.8
LEVEL = 0.05
POINTS = 100  # of each variance at which the integral is taken
LARGE = 500  # seeds from which on the normal distribution is as good

Spread = tuple[float, int]
"""The standard deviation of a group, and its number of runs."""


def welch_power(difference: float, a: Spread, b: Spread, level: float = LEVEL) -> float:
    """Return how often Welch's two-sided test finds a true difference of the means of two groups, between 0 and 1.

    Args:
        difference: of the true means.
        a: the true standard deviation of the first group, and its size, 2 or more.
        b: the same of the second group.
        level: of the test.
    """
    (std_a, n_a), (std_b, n_b) = a, b
    total = std_a**2 / n_a + std_b**2 / n_b  # the variance of the difference of the means
    if total == 0:
        return 1.0 if difference else level
    quantiles = (np.arange(POINTS) + 0.5) / POINTS
    part_a = std_a**2 / n_a / total * stats.chi2.ppf(quantiles, n_a - 1)[:, None] / (n_a - 1)
    part_b = std_b**2 / n_b / total * stats.chi2.ppf(quantiles, n_b - 1) / (n_b - 1)
    estimated = part_a + part_b  # (POINTS, POINTS), in units of the true one
    freedom = estimated**2 / (part_a**2 / (n_a - 1) + part_b**2 / (n_b - 1))
    limit = special.stdtrit(freedom, 1 - level / 2) * np.sqrt(estimated)
    shift = abs(difference) / math.sqrt(total)
    return float(np.mean(special.ndtr(shift - limit) + special.ndtr(-shift - limit)))


def needed_seeds(difference: float, std_a: float, std_b: float, power: float = POWER) -> int | None:
    """Return the number of runs in each of two groups from which on a difference is found with that power; at least 2.

    None for a difference of 0, or without a spread, of which nothing can be said.
    """
    if difference == 0 or std_a + std_b == 0:
        return None
    quantiles = float(stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(power))
    roughly = (std_a**2 + std_b**2) * (quantiles / difference) ** 2
    if roughly > LARGE:
        return math.ceil(roughly + float(stats.norm.ppf(1 - LEVEL / 2)) ** 2 / 4)  # what estimating the spread takes
    n = max(2, math.floor(roughly))  # what the normal distribution says: never too many
    while welch_power(difference, (std_a, n), (std_b, n)) < power:
        n += 1
    return n


def detectable_difference(a: Spread, b: Spread, power: float = POWER) -> float | None:
    """Return the difference that groups of these sizes find with that power; None without a spread."""
    if a[0] + b[0] == 0:
        return None
    low, high = 0.0, a[0] + b[0]
    while welch_power(high, a, b) < power:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if welch_power(middle, a, b) >= power else (middle, high)
    return high
