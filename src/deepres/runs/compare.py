"""Whether one group of runs errs less than another: differences with intervals, tests, and the seeds they need.

Needs scipy (the extra `report`), and no torch. Differences are in percent points of error at the last step, on the
test images or on those held out as val, the second group's minus the first's.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from deepres.errors import UserError, unknown_name
from deepres.runs.differences import Difference, check_differences, find_differences, shared_settings
from deepres.runs.finished import FinishedRun
from deepres.runs.groups import RunGroup
from deepres.runs.power import detectable_difference, needed_seeds
from deepres.runs.predictions import Predictions
from deepres.runs.select import select_runs
from deepres.runs.significance import McNemar, TTest, holm, mcnemar, paired, welch
from deepres.runs.statistics import Interval, mean_interval

LEVEL = 0.05
MACHINE = ("deepres", "commit", "torch", "device_name", "backend")  # of environment.json
ON = ("test", "val")
SHOWN_SEEDS = 10_000  # beyond it the number means: as good as none


@dataclass(frozen=True)
class Group:
    """Runs of one configuration and different seeds, one side of a comparison."""

    name: str
    """ "A", "B", ..."""
    text: str
    """What the user asked for, or the net and recipe."""
    runs: tuple[FinishedRun, ...]
    """The runs in the order of their seeds; one or more."""
    on: str = "test"
    """Whose error is compared, of the test images or of those held out, "val"."""

    @property
    def errors(self) -> list[float]:
        """The error of each run at its last step, in percent."""
        if self.on == "test":
            return [run.test_error_last for run in self.runs]
        return [error for run in self.runs if (error := run.val_error_last) is not None]

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [run.seed for run in self.runs]

    @property
    def n(self) -> int:
        """The number of runs."""
        return len(self.runs)

    @property
    def mean(self) -> float:
        """The mean error."""
        return mean(self.errors)

    @property
    def std(self) -> float | None:
        """The sample's standard deviation (n - 1); None for one run."""
        return stdev(self.errors) if self.n > 1 else None

    @property
    def interval(self) -> Interval | None:
        """The 95% confidence interval of the mean, see `mean_interval`."""
        return mean_interval(self.errors)


@dataclass(frozen=True)
class Comparison:
    """Two groups held against each other."""

    a: Group
    b: Group
    differences: tuple[Difference, ...]
    """The settings in which they differ."""
    machines: tuple[Difference, ...]
    """What else differs, of where and with what the runs were made."""
    difference: float
    """Mean of b minus mean of a: negative if b errs less."""
    welch: TTest | None
    """Welch's t-test, two-sided. None with one run in a group, or without any spread."""
    paired: TTest | None
    """The paired t-test by seed; None unless both groups have the same seeds, two or more."""
    mcnemar: McNemar | None
    """McNemar's test on the answers of the runs of shared seeds; None where there are none."""
    needed: int | None
    """Seeds in each group for which Welch's test finds a difference of this size in 80 of 100 cases. None without an
    idea of the spread, or a difference of 0."""
    detectable: float | None
    """The difference that the test of groups as large as these finds in 80 of 100 cases."""
    holm: float | None = None
    """The p-value of Welch's test after Holm's correction for all tests made together."""
    tests: int = 1
    """How many tests that are."""

    @property
    def interval(self) -> Interval | None:
        """The 95% confidence interval of the difference, by Welch; not corrected for several comparisons."""
        return None if self.welch is None else self.welch.interval

    @property
    def significant(self) -> bool:
        """Whether Welch's test, corrected, finds a difference at 5%."""
        return self.holm is not None and self.holm < LEVEL

    @property
    def verdict(self) -> str:
        """What the comparison shows, as a sentence."""
        size = abs(self.difference)
        more = "less" if self.difference < 0 else "more"
        found = f"{self.b.name} errs {size:.2f} points {more} than {self.a.name}"
        if round(size, 2) == 0:
            found = f"{self.b.name} and {self.a.name} err the same"
        if self.welch is None or self.welch.interval is None:
            return f"no test: {found}, but {self._why_untested}{self._needed_text()}"
        chance = f"p {show_p(self.welch.p_value)}"
        if self.tests > 1 and self.holm is not None:
            chance += f", p {show_p(self.holm)} after Holm's correction for {self.tests} comparisons"
        low, high = self.welch.interval
        if self.significant:
            ends = sorted((abs(low), abs(high))) if low * high > 0 else [low, high]
            return f"{found}, 95% interval {ends[0]:.2f} to {ends[1]:.2f}, {chance}"
        interval = f"95% interval of {self.b.name} - {self.a.name} {low:+.2f} to {high:+.2f}"
        return f"no evidence of a difference: {found}, {interval}, {chance}{self._needed_text()}"

    @property
    def _why_untested(self) -> str:
        single = [group.name for group in (self.a, self.b) if group.n == 1]
        if single:
            return f"{' and '.join(single)} {'have' if len(single) > 1 else 'has'} one run: train more seeds"
        return "there is no spread between seeds"

    def _needed_text(self) -> str:
        if self.needed is None:
            return ""
        number = f"{self.needed}" if self.needed <= SHOWN_SEEDS else f"more than {SHOWN_SEEDS:,}"
        return f"; {number} seeds of each would be needed to find a difference of this size in 80 of 100 cases"


def compare(
    a: "str | Path | RunGroup | Sequence[FinishedRun]",
    *others: "str | Path | RunGroup | Sequence[FinishedRun]",
    runs: str | Path | Sequence[str | Path] = "runs",
    differ: Sequence[str] = (),
    anyway: bool = False,
    all_pairs: bool = False,
    on: str = "test",
) -> list[Comparison]:
    """Compare groups of finished runs: each of the others with the first one.

    Args:
        a: the group that the others are compared with: finished runs, or a text that `select_runs` takes, such as
            "model=resnet20,recipe=fast" or "runs/resnet20-*".
        others: one or more.
        runs: the folders in which runs with given settings are looked for.
        differ: the settings in which the groups are meant to differ, such as "recipe.learning_rate" or "recipe"; the
            groups must differ in them and in no other.
        anyway: compare even groups that differ in several ingredients at once, such as net and recipe.
        all_pairs: compare each with each.
        on: "test", or "val": by the error on the images held out, as choosing among recipes asks for.

    Returns:
        A comparison for each pair.

    Raises:
        UserError: a group mixes runs of different settings, groups differ in more than was asked, there are none, or
            they held out no images.

    Example:
        >>> import deepres
        >>> (found,) = deepres.compare("model=resnet20,recipe=fast", "model=plain20,recipe=fast", runs="results")
        >>> found.difference > 1
        True
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    groups = [_group(i, content, folders, on) for i, content in enumerate((a, *others))]
    return compare_groups(groups, differ=differ, anyway=anyway, all_pairs=all_pairs)


def compare_groups(
    groups: Sequence[Group], *, differ: Sequence[str] = (), anyway: bool = False, all_pairs: bool = False
) -> list[Comparison]:
    """Compare groups that have been found; see `compare`."""
    if len(groups) < 2:
        raise UserError("a comparison needs two groups of runs: name a second one")
    pairs = list(combinations(groups, 2)) if all_pairs else [(groups[0], other) for other in groups[1:]]
    made = [_compare(one, other, differ, anyway) for one, other in pairs]
    tested = [i for i, each in enumerate(made) if each.welch is not None]
    corrected = holm([each.welch.p_value for each in made if each.welch is not None])
    for i, p_value in zip(tested, corrected, strict=True):
        made[i] = replace(made[i], holm=p_value, tests=len(tested))
    return made


def make_group(position: int, text: str, runs: Sequence[FinishedRun], on: str = "test") -> Group:
    """Name a group by its position: A, B, ...; `on` is whose error is compared.

    Raises:
        UserError: there are no runs, or one without the error.
    """
    if on not in ON:
        raise unknown_name("set of images", on, ON)
    if not runs:
        raise UserError(f"group {position + 1} ({text}) has no runs")
    if on == "val" and (without := [run for run in runs if run.val_error_last is None]):
        raise UserError(f"{without[0].path} held out no images as val: train with --split 45k, or compare on test")
    name = chr(ord("A") + position) if position < 26 else f"G{position + 1}"
    return Group(name, text, tuple(sorted(runs, key=lambda run: run.seed)), on)


def _group(
    position: int, content: "str | Path | RunGroup | Sequence[FinishedRun]", folders: Sequence[Any], on: str
) -> Group:
    if isinstance(content, str | Path):
        return make_group(position, str(content), select_runs(str(content), folders).runs, on)
    if isinstance(content, RunGroup):
        return make_group(position, f"{content.model}, {content.label}", content.runs, on)
    runs = list(content)
    return make_group(position, f"{runs[0].model}, {runs[0].recipe}" if runs else "", runs, on)


def _compare(a: Group, b: Group, differ: Sequence[str], anyway: bool) -> Comparison:
    one, other = shared_settings(_described(a), a.runs), shared_settings(_described(b), b.runs)
    found = find_differences(a.runs[0].record, b.runs[0].record)
    if not anyway:
        _check_distinct(a, b, found)
        check_differences((a.name, b.name), found, differ, {**one, **other})
    stds = [std for std in (a.std, b.std) if std is not None]
    known = len(stds) > 0  # the spread of a group of one run is taken to be the other's
    std_a, std_b = (stds[0], stds[-1]) if known else (0.0, 0.0)
    difference = b.mean - a.mean
    tested = a.n > 1 and b.n > 1
    return Comparison(
        a=a,
        b=b,
        differences=tuple(found),
        machines=tuple(_machines(a, b)),
        difference=difference,
        welch=welch(a.errors, b.errors),
        paired=paired(a.errors, b.errors) if a.seeds == b.seeds else None,
        mcnemar=_mcnemar(a, b) if a.on == "test" else None,
        needed=needed_seeds(difference, std_a, std_b) if known else None,
        detectable=detectable_difference((std_a, a.n), (std_b, b.n)) if tested else None,
    )


def _described(group: Group) -> str:
    return f"{group.name} ({group.text})"


def _check_distinct(a: Group, b: Group, found: Sequence[Difference]) -> None:
    """Raise the error for groups that are one, or are parts of one that was taken apart by mistake."""
    places = {run.path.resolve() for run in a.runs}
    if both := [run for run in b.runs if run.path.resolve() in places]:
        raise UserError(f"{both[0].path} is in {a.name} and in {b.name}: a run cannot be compared with itself")
    if not found and a.n == b.n == 1 and a.seeds != b.seeds:
        raise UserError(
            f"{a.name} and {b.name} are single runs that differ in their seed alone: put a pattern of runs in quotes, "
            "as in 'runs/resnet20-*', so that it is one group, or give --anyway"
        )
    if _evaluated_on(a) != _evaluated_on(b):
        raise UserError(
            f"{a.name} and {b.name} were evaluated on different images, so that their errors say nothing of each "
            "other: compare runs on the same data, or give --anyway"
        )


def _evaluated_on(group: Group) -> set[tuple[int, str | None] | None]:
    """Return number and digest of the images by whose error a group is compared."""
    data = [run.record.data for run in group.runs]
    sets = [each.test if group.on == "test" else each.val for each in data]
    return {None if images is None else (images.images, images.digest) for images in sets}


def _machines(a: Group, b: Group) -> list[Difference]:
    """Return where and with what the runs of one group, and none of the other, were made."""
    found = []
    for key in MACHINE:
        one, other = (dict.fromkeys(_short(getattr(run.environment, key)) for run in group.runs) for group in (a, b))
        if not one.keys() & other.keys():
            found.append(Difference(f"environment.{key}", (" or ".join(one), " or ".join(other))))
    return found


def _short(value: str | None) -> str:
    """Return a value of environment.json as it is shown: ten digits of a commit are enough."""
    if value is None:
        return "unknown"
    return re.sub(r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", str(value))


def _mcnemar(a: Group, b: Group) -> McNemar | None:
    """Compare the answers of the runs of shared seeds, where both runs kept them and were asked the same."""
    ours, theirs = ({run.seed: run.predictions for run in group.runs} for group in (a, b))
    wrong_a, wrong_b, seeds = [], [], []
    for seed in sorted(ours.keys() & theirs.keys()):
        one, other = ours[seed], theirs[seed]
        if one is None or other is None:
            continue
        answers = Predictions.read(one), Predictions.read(other)
        if not np.array_equal(answers[0].labels, answers[1].labels):
            continue
        wrong_a.append(answers[0].predicted != answers[0].labels)
        wrong_b.append(answers[1].predicted != answers[1].labels)
        seeds.append(seed)
    if not seeds:
        return None
    return mcnemar(np.concatenate(wrong_a), np.concatenate(wrong_b), seeds)


def show_p(p_value: float) -> str:
    """Return a p-value as text, with the sign before it."""
    return f"= {p_value:.2g}" if p_value >= 0.0001 else "< 0.0001"
