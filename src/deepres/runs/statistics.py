"""Means with their uncertainty, and tests of the paper's claims, from finished runs.

Needs scipy (the extra `report`). All errors and differences are in percent points of test error at the last epoch.
"""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import Any

from scipy import stats

from deepres.runs.groups import RunGroup, labels_in_order
from deepres.runs.published import FIGURE6_DEPTHS, PUBLISHED, Published

CONFIDENCE = 0.95
NEEDED_SEEDS = 2  # on either side of a comparison

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """What the runs of one group say together."""

    group: RunGroup
    mean: float
    """The mean of the last epoch's test error, in percent."""
    std: float | None
    """The sample's (n - 1); None for one run."""
    interval: Interval | None
    """95% confidence interval of the mean, by Student's t; None for one run, or several of one error."""
    median: float
    best_mean: float | None
    """Mean of the best epoch's test error, chosen by that error; None where val was evaluated in its place."""
    optimism: float | None
    """Mean of best minus last epoch: what choosing the epoch by test error takes off."""
    val_mean: float | None
    """Mean of the last epoch's val error, with the 45k/5k split."""
    published: Published | None
    """What others published for this net; None with other shortcuts than theirs, or on other data."""

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.group.runs)

    @property
    def paper(self) -> float | None:
        """The paper's test error: its mean of several runs where it gives one."""
        if self.published is None:
            return None
        return self.published.paper if self.published.paper_mean is None else self.published.paper_mean

    @property
    def difference(self) -> float | None:
        """The mean minus the paper's."""
        return None if self.paper is None else self.mean - self.paper


def summarize(group: RunGroup) -> Summary:
    """Return the statistics of runs that differ in their seed alone.

    Example:
        >>> import deepres
        >>> groups = deepres.group_runs(deepres.load_runs(["results"])[0])
        >>> summary = deepres.summarize(groups[0])
        >>> summary.n == len(groups[0].runs)
        True
    """
    last = [run.test_error_last for run in group.runs]
    best = [run.test_error_best for run in group.runs if run.test_error_best is not None]
    val = [run.val_error_last for run in group.runs if run.val_error_last is not None]
    return Summary(
        group=group,
        mean=mean(last),
        std=stdev(last) if len(last) > 1 else None,
        interval=mean_interval(last),
        median=median(last),
        best_mean=mean(best) if best else None,
        optimism=mean(best) - mean(last) if best else None,
        val_mean=mean(val) if val else None,
        published=PUBLISHED.get(group.model) if group.runs[0].is_as_published else None,
    )


def summary_row(summary: Summary) -> dict[str, Any]:
    """Return the statistics of a group as plain data, in a fixed order."""
    low, high = summary.interval or (None, None)
    published = summary.published
    return {
        "model": summary.group.model,
        "recipe": summary.group.label,
        "variant": summary.group.runs[0].variant,
        "n": summary.n,
        "mean": summary.mean,
        "std": summary.std,
        "interval_low": low,
        "interval_high": high,
        "median": summary.median,
        "best_mean": summary.best_mean,
        "optimism": summary.optimism,
        "val_mean": summary.val_mean,
        "paper": summary.paper,
        "repository_last": published.repository_last if published else None,
        "repository_best": published.repository_best if published else None,
        "difference": summary.difference,
    }


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Return the 95% confidence interval of the mean by Student's t; None for fewer than two values, or equal ones."""
    if len(set(values)) < NEEDED_SEEDS:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


@dataclass(frozen=True)
class Claim:
    """A statement of the paper: one net errs less than another."""

    better: str
    worse: str
    worse_first: bool = False
    """Whether the statement begins with the worse net."""

    @property
    def nets(self) -> tuple[str, str]:
        """The two nets in the order in which the statement names them."""
        return (self.worse, self.better) if self.worse_first else (self.better, self.worse)

    @property
    def statement(self) -> str:
        """The claim in words: "ResNet-56 is better than ResNet-20"."""
        first, second = (re.sub(r"(\d+)", r"-\1", net.replace("resnet", "ResNet")) for net in self.nets)
        return f"{first} is {'worse' if self.worse_first else 'better'} than {second}"


CLAIMS = (
    Claim(better="plain20", worse="plain56", worse_first=True),
    Claim(better="resnet56", worse="resnet20"),
    *(Claim(better=f"resnet{depth}", worse=f"plain{depth}") for depth in FIGURE6_DEPTHS),
)


@dataclass(frozen=True)
class ClaimTest:
    """A claim held against the runs of one recipe."""

    claim: Claim
    label: str
    """The recipe, as `RunGroup.label` has it."""
    n_better: int
    """Runs of the net that should be better."""
    n_worse: int
    """Runs of the net that should be worse."""
    effect: float | None
    """Mean error of the worse net minus that of the better: positive if the claim holds. None without runs of both."""
    interval: Interval | None
    """95% confidence interval of the effect, two-sided; None with too few seeds."""
    p_value: float | None
    """Welch's t-test, one-sided: how likely so large an effect would be if there were none. None with too few
    seeds. Not corrected for the number of claims."""
    precisions: tuple[str, ...] = ()
    """The precisions of the runs, where they differ between the two nets."""

    @property
    def n(self) -> tuple[int, int]:
        """Runs of the two nets in the order in which the claim names them."""
        return (self.n_worse, self.n_better) if self.claim.worse_first else (self.n_better, self.n_worse)

    @property
    def verdict(self) -> str:
        """The p-value as text, or why there is none."""
        if self.p_value is not None:
            value = f"{self.p_value:.2g}" if self.p_value >= 0.0001 else "< 0.0001"
            return f"{value} ({' against '.join(self.precisions)})" if self.precisions else value
        if min(self.n) >= NEEDED_SEEDS:
            return "no spread between seeds"
        return "too few seeds"


def claim_row(test: ClaimTest) -> dict[str, Any]:
    """Return a tested claim as plain data."""
    low, high = test.interval or (None, None)
    return {
        "claim": test.claim.statement,
        "recipe": test.label,
        "better": test.claim.better,
        "worse": test.claim.worse,
        "n_better": test.n_better,
        "n_worse": test.n_worse,
        "effect": test.effect,
        "interval_low": low,
        "interval_high": high,
        "p_value": test.p_value,
        "verdict": test.verdict,
    }


def check_claims(groups: Sequence[RunGroup]) -> list[ClaimTest]:
    """Hold every claim of the paper against the runs, recipe by recipe; a claim without any run is left out.

    Nets of one's own are none of the paper's, whatever they are called.
    """
    groups = [group for group in groups if not group.runs[0].record.is_own_net]
    made = []
    for label in labels_in_order(groups):
        members = {group.model: group for group in groups if group.label == label}
        errors = {model: [run.test_error_last for run in group.runs] for model, group in members.items()}
        for claim in CLAIMS:
            better, worse = errors.get(claim.better, []), errors.get(claim.worse, [])
            if better or worse:
                used = [members[net].runs[0].precision for net in claim.nets if net in members]
                precisions = tuple(used) if len(set(used)) > 1 else ()
                made.append(replace(_check_claim(claim, label, better, worse), precisions=precisions))
    return made


def _check_claim(claim: Claim, label: str, better: Sequence[float], worse: Sequence[float]) -> ClaimTest:
    effect = mean(worse) - mean(better) if better and worse else None
    interval: Interval | None = None
    p_value: float | None = None
    if min(len(better), len(worse)) >= NEEDED_SEEDS and stdev(better) + stdev(worse) > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where the runs of one net all have the same error
            welch = stats.ttest_ind(worse, better, equal_var=False)
            low, high = welch.confidence_interval(CONFIDENCE)
            interval = float(low), float(high)
            p_value = float(stats.ttest_ind(worse, better, equal_var=False, alternative="greater").pvalue)
    return ClaimTest(claim, label, len(better), len(worse), effect, interval, p_value)
