"""Tests and power against statsmodels (its answers are written down here), formulas by hand, and simulation."""

import math
from statistics import mean, stdev, variance

import numpy as np
import pytest
from scipy import stats

from deepres.runs.power import detectable_difference, needed_seeds, welch_power
from deepres.runs.significance import holm, mcnemar, paired, welch

RESNET, PLAIN = [8.08, 8.35, 8.42, 8.01, 8.39], [9.64, 10.04, 10.23]


def test_welch_by_hand_and_as_statsmodels_has_it():
    test = welch(RESNET, PLAIN)
    parts = [variance(RESNET) / 5, variance(PLAIN) / 3]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 4 + parts[1] ** 2 / 2)
    difference = mean(PLAIN) - mean(RESNET)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert test.degrees_of_freedom == pytest.approx(freedom)
    assert test.interval == pytest.approx((difference - half, difference + half))
    assert test.p_value == pytest.approx(2 * stats.t.sf(difference / math.sqrt(sum(parts)), freedom))
    # statsmodels 0.15: CompareMeans(...).ttest_ind(usevar="unequal") and tconfint_diff
    assert test.p_value == pytest.approx(0.0030537222444801637)
    assert test.interval == pytest.approx((1.102491341208065, 2.3375086587919363))
    assert welch(PLAIN, RESNET).difference == -test.difference


def test_paired_by_hand_and_as_statsmodels_has_it():
    others = [9.1, 8.9, 9.6, 8.2, 8.8]
    test = paired(RESNET, others)
    differences = [b - a for a, b in zip(RESNET, others, strict=True)]
    error = stdev(differences) / math.sqrt(5)
    assert test.p_value == pytest.approx(2 * stats.t.sf(mean(differences) / error, 4))
    # statsmodels 0.15: DescrStatsW(differences).ttest_mean(0) and tconfint_mean
    assert test.p_value == pytest.approx(0.022876828733269097)
    assert test.interval == pytest.approx((0.1524330981209837, 1.1875669018790163))


def test_holm_as_statsmodels_has_it():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2, 0.001, 0.03, 0.9, 0.02]) == pytest.approx([0.4, 0.005, 0.09, 0.9, 0.08])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"), [(331, 272, 0.018106072649100694), (3, 11, 0.057373046875), (0, 0, 1.0)]
)
def test_mcnemar_as_statsmodels_has_it(only_a, only_b, p_value):
    wrong_a = np.array([True] * only_a + [False] * only_b + [True] * 5 + [False] * 40)
    wrong_b = np.array([False] * only_a + [True] * only_b + [True] * 5 + [False] * 40)
    test = mcnemar(wrong_a, wrong_b)
    assert (test.only_a, test.only_b, test.images) == (only_a, only_b, only_a + only_b + 45)
    assert test.p_value == pytest.approx(p_value)
    assert test.difference == pytest.approx(100 * (only_b - only_a) / len(wrong_a))


@pytest.mark.filterwarnings("error")
def test_what_has_no_spread_or_one_number_is_not_tested():
    assert welch([8.0], [9.0, 9.1]) is None
    assert welch([8.0, 8.0], [9.0, 9.0]) is None
    assert welch([8.0, 8.0], [9.0, 9.1]).p_value < 0.1  # one group without spread is no obstacle
    assert paired([8.08, 8.35], [9.08, 9.35]) is None  # the same difference but for rounding
    assert paired([8.0], [9.0]) is None


@pytest.mark.parametrize(
    ("effect", "seeds"),
    # statsmodels 0.15: TTestIndPower().solve_power(effect, power=0.8, alpha=0.05), where the variances are pooled
    [(3, 3.07), (2, 5.09), (1.5, 8.06), (1, 16.71), (0.5, 63.77), (0.2, 393.41), (0.1, 1570.73)],
)
def test_needed_seeds_are_those_of_statsmodels(effect, seeds):
    assert needed_seeds(effect, 1, 1) == math.ceil(seeds)
    assert needed_seeds(-5 * effect, 5, 5) == math.ceil(seeds)


def test_nothing_is_said_of_seeds_without_a_spread_or_a_difference():
    assert needed_seeds(0, 1, 1) is None
    assert needed_seeds(1, 0, 0) is None
    assert detectable_difference((0, 3), (0, 3)) is None
    assert needed_seeds(100, 1, 0) == 2
    assert needed_seeds(1e-9, 1, 1) > 10**18
    assert (welch_power(0, (0, 2), (0, 2)), welch_power(1, (0, 2), (0, 2))) == (0.05, 1)


def rejections(difference, a, b, number=20_000):
    """Return how often Welch's test finds a difference between groups of (standard deviation, size)."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, a[0], (number, a[1])), rng.normal(difference, b[0], (number, b[1]))
    return float((stats.ttest_ind(one, other, axis=1, equal_var=False).pvalue < 0.05).mean())


@pytest.mark.parametrize("sizes", [(3, 3), (5, 5), (5, 3), (10, 10)])
def test_false_alarms_are_five_in_a_hundred_at_most(sizes):
    found = rejections(0, (0.2, sizes[0]), (0.2, sizes[1]))
    assert 0.025 < found < 0.056  # fewer in groups of three, where Welch's test is cautious
    assert found == pytest.approx(welch_power(0, (0.2, sizes[0]), (0.2, sizes[1])), abs=0.006)


@pytest.mark.parametrize(
    ("difference", "std_a", "std_b"), [(1.0, 0.2, 0.2), (0.5, 0.2, 0.2), (0.3, 0.2, 0.2), (0.5, 0.2, 0.6), (9, 0.3, 2)]
)
def test_the_power_is_as_predicted_at_the_needed_seeds_and_too_low_with_one_fewer(difference, std_a, std_b):
    n = needed_seeds(difference, std_a, std_b)
    predicted = welch_power(difference, (std_a, n), (std_b, n))
    assert predicted >= 0.8
    assert rejections(difference, (std_a, n), (std_b, n)) == pytest.approx(predicted, abs=0.01)
    assert rejections(difference, (std_a, n - 1), (std_b, n - 1)) < 0.81


@pytest.mark.parametrize(("a", "b"), [((0.2, 5), (0.3, 3)), ((0.2, 2), (0.2, 2)), ((0.3, 3), (1.8, 2))])
def test_the_detectable_difference_is_found_in_80_of_100_cases(a, b):
    assert rejections(detectable_difference(a, b), a, b) == pytest.approx(0.8, abs=0.012)


def test_mcnemar_gives_five_false_alarms_in_a_hundred_at_most():
    rng = np.random.default_rng(0)
    chance = rng.beta(0.08, 0.9, 2000)  # of an image to be answered wrong: most are easy
    wrong = rng.random((600, 2, 3, 2000)) < chance  # two groups of three seeds
    p_values = [mcnemar(pair[0].ravel(), pair[1].ravel()).p_value for pair in wrong]
    assert np.mean(np.array(p_values) < 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
