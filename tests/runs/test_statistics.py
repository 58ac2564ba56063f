"""Statistics against values computed by hand, and against scipy's distributions put together another way."""

import math
from dataclasses import replace

import numpy as np
import pytest
from run_files import write_run
from scipy import stats

from deepres.recipes.named import fast
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.statistics import check_claims, mean_interval, summarize


@pytest.fixture
def summaries(tmp_path):
    """Make runs of (model, last error, best error) and return their statistics by model."""

    def make(*runs, **settings):
        for seed, (model, last, best) in enumerate(runs):
            write_run(tmp_path / f"{model}-{seed}", model, seed=seed, test_errors=(50.0, best, last), **settings)
        return {group.model: summarize(group) for group in group_runs(load_runs([tmp_path])[0])}

    return make


def test_three_runs_by_hand(summaries):
    summary = summaries(("resnet20", 9.0, 8.5), ("resnet20", 8.0, 7.9), ("resnet20", 10.0, 9.4))["resnet20"]
    assert (summary.n, summary.mean, summary.std, summary.median) == (3, 9.0, 1.0, 9.0)
    # Student's t for 2 degrees of freedom, two-sided 95%, as tables print it: 4.303.
    assert summary.interval == pytest.approx((9 - 4.3027 / math.sqrt(3), 9 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert summary.best_mean == pytest.approx((8.5 + 7.9 + 9.4) / 3)
    assert summary.optimism == pytest.approx(-(0.5 + 0.1 + 0.6) / 3)
    assert (summary.paper, summary.difference) == (8.75, 0.25)


def test_one_run_has_no_spread(summaries):
    summary = summaries(("plain32", 10.5, 10.25))["plain32"]
    assert (summary.n, summary.mean, summary.std, summary.interval, summary.median) == (1, 10.5, None, None, 10.5)
    assert (summary.optimism, summary.difference) == (-0.25, 0.5)


def test_equal_runs_have_no_interval(summaries):
    summary = summaries(("plain32", 10.5, 10.25), ("plain32", 10.5, 10.0))["plain32"]
    assert (summary.n, summary.std, summary.interval) == (2, 0.0, None)


def test_val_error_stands_in_its_own_place(summaries):
    summary = summaries(("resnet20", 9.0, 8.0), ("resnet20", 8.0, 7.0), split="45k")["resnet20"]
    assert (summary.val_mean, summary.best_mean, summary.optimism) == (8.5, None, None)


def test_a_mean_is_compared_with_the_papers_mean_and_an_unpublished_net_with_nothing(summaries):
    made = summaries(("resnet110", 6.5, 6.4), ("preresnet110", 6.5, 6.4))
    assert made["resnet110"].paper == 6.61
    assert made["resnet110"].difference == pytest.approx(-0.11)
    assert (made["preresnet110"].paper, made["preresnet110"].difference) == (None, None)


def test_the_interval_covers_the_mean_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    samples = rng.normal(8.75, 0.2, (4000, 5)).tolist()
    covered = sum(low < 8.75 < high for low, high in map(mean_interval, samples))
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)  # 3.5 standard deviations


def write_errors(folder, model, errors, **settings):
    for seed, error in enumerate(errors):
        write_run(
            folder / f"{model}-{seed}-{len(list(folder.iterdir()))}",
            model,
            seed=seed,
            test_errors=(error,),
            **settings,
        )


@pytest.mark.filterwarnings("error")
def test_equal_runs_of_one_net_are_compared_without_a_warning(tmp_path):
    write_errors(tmp_path, "plain20", (9.0, 9.0))
    write_errors(tmp_path, "plain56", (12.0, 13.0, 14.0))
    (test,) = check_claims(group_runs(load_runs([tmp_path])[0]))[:1]
    # All spread is that of one net: Student's t for its 2 degrees of freedom.
    assert test.p_value == pytest.approx(stats.t.sf(4 / math.sqrt(1 / 3), 2))


def test_welch_by_hand(tmp_path):
    write_errors(tmp_path, "plain20", (9.0, 9.5))
    write_errors(tmp_path, "plain56", (12.0, 13.0, 14.0))
    (test,) = check_claims(group_runs(load_runs([tmp_path])[0]))[:1]
    assert (test.claim.statement, test.n_better, test.n_worse) == ("plain-56 is worse than plain-20", 2, 3)
    assert test.effect == 13.0 - 9.25
    # Variances of the means: 1/3 and 0.125/2. Welch-Satterthwaite's degrees of freedom from them.
    a, b = 1 / 3, 0.125 / 2
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 1)
    assert freedom == pytest.approx(2.6350, abs=1e-4)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    assert test.interval == pytest.approx((3.75 - half, 3.75 + half))
    assert test.p_value == pytest.approx(stats.t.sf(3.75 / math.sqrt(a + b), freedom))  # one-sided
    assert 0.005 < test.p_value < 0.01
    assert test.verdict.startswith("0.00")


def test_an_effect_the_wrong_way_has_a_large_p_value(tmp_path):
    write_errors(tmp_path, "plain20", (12.0, 13.0, 14.0))
    write_errors(tmp_path, "plain56", (9.0, 9.5))
    (test,) = check_claims(group_runs(load_runs([tmp_path])[0]))[:1]
    assert test.effect == -3.75
    assert test.p_value > 0.99


@pytest.mark.parametrize(
    ("plain20", "plain56", "verdict"),
    [
        ((9.0,), (12.0, 13.0), "too few seeds"),
        ((9.0, 9.5), (12.0,), "too few seeds"),
        ((9.0, 9.5), (), "too few seeds"),
        ((9.0, 9.0), (12.0, 12.0), "no spread between seeds"),
    ],
)
def test_too_few_seeds_have_no_p_value(tmp_path, plain20, plain56, verdict):
    write_errors(tmp_path, "plain20", plain20)
    write_errors(tmp_path, "plain56", plain56)
    test = check_claims(group_runs(load_runs([tmp_path])[0]))[0]
    assert (test.p_value, test.interval, test.verdict) == (None, None, verdict)
    assert test.n == (len(plain56), len(plain20))  # as the claim names them
    assert (test.effect is None) == (not plain56)


def test_claims_never_compare_runs_of_different_recipes(tmp_path):
    write_errors(tmp_path, "plain20", (9.0, 9.5), recipe="paper")
    write_errors(tmp_path, "plain56", (12.0, 13.0), recipe="fast")
    write_errors(tmp_path, "plain56", (12.0, 13.0), recipe=replace(fast(), name="paper"))
    tests = check_claims(group_runs(load_runs([tmp_path])[0]))
    assert tests
    assert all(test.effect is None for test in tests)


def test_every_claim_of_the_paper_is_tested(tmp_path):
    for depth in (20, 32, 44, 56):
        write_errors(tmp_path, f"plain{depth}", (10 + depth / 10, 10.5 + depth / 10))
        write_errors(tmp_path, f"resnet{depth}", (9 - depth / 50, 9.3 - depth / 50))
    tests = check_claims(group_runs(load_runs([tmp_path])[0]))
    assert [test.claim.statement for test in tests] == [
        "plain-56 is worse than plain-20",
        "ResNet-56 is better than ResNet-20",
        *(f"ResNet-{depth} is better than plain-{depth}" for depth in (20, 32, 44, 56)),
    ]
    assert all(test.effect > 0 and test.p_value < 0.2 for test in tests)


def test_nets_trained_in_one_precision_each_stand_side_by_side(tmp_path):
    write_run(tmp_path / "a", "plain20", "paper", precision="float32", test_errors=(9.0,))
    write_run(tmp_path / "b", "plain56", "paper", precision="bfloat16", test_errors=(13.0,))
    write_run(tmp_path / "c", "plain56", "paper", seed=1, precision="bfloat16", test_errors=(13.5,))
    write_run(tmp_path / "d", "plain20", "paper", seed=1, precision="float32", test_errors=(9.5,))
    groups = group_runs(load_runs([tmp_path])[0])
    assert [(group.model, group.label) for group in groups] == [("plain20", "paper"), ("plain56", "paper")]
    claim = next(claim for claim in check_claims(groups) if claim.p_value is not None)
    assert claim.verdict.endswith("(bfloat16 against float32)")
    write_run(tmp_path / "e", "plain56", "paper", seed=2, precision="float32", test_errors=(13.0,))
    labels = [(group.model, group.label) for group in group_runs(load_runs([tmp_path])[0])]
    assert labels == [("plain20", "paper"), ("plain56", "paper"), ("plain56", "paper (precision float32)")]
