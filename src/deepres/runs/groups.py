"""Finished runs of one configuration, which are averaged."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepres.recipes.named import RECIPES
from deepres.runs.finished import FinishedRun, model_key, run_order

SHOWN_DIFFERENCES = 3


FIRST_RECIPES = ("paper", "fast")  # in tables


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed alone, so that they may be averaged."""

    model: str
    recipe: str
    """The recipe's name."""
    differences: tuple[str, ...]
    """What tells the group from the recipe of that name as the code has it now, such as "split 45k"; where the code
    knows none, from the most frequent settings among the runs of that name."""
    runs: tuple[FinishedRun, ...]
    """The runs in the order of their seeds."""

    @property
    def flop_per_image(self) -> float | None:
        """See `FinishedRun.flop_per_image`; None if no run recorded it."""
        return next((run.flop_per_image for run in self.runs if run.flop_per_image is not None), None)

    @property
    def training_flop(self) -> float | None:
        """See `FinishedRun.training_flop`; None if no run recorded it."""
        return next((run.training_flop for run in self.runs if run.training_flop is not None), None)

    @property
    def label(self) -> str:
        """The recipe's name with the differences: the same for all nets, never the same for two groups of one."""
        if not self.differences:
            return self.recipe
        shown = ", ".join(self.differences[:SHOWN_DIFFERENCES])
        more = len(self.differences) - SHOWN_DIFFERENCES
        if more > 0:
            shown += f" and {more} more, variant {self.runs[0].variant}"
        return f"{self.recipe} ({shown})"


def recipe_key(label: str) -> tuple[int, str]:
    """Return a sort key for labels that puts the recipes of the paper's table first."""
    return FIRST_RECIPES.index(label) if label in FIRST_RECIPES else len(FIRST_RECIPES), label


def labels_in_order(groups: Sequence[RunGroup]) -> list[str]:
    """Return the labels of groups, the recipe `paper` first."""
    return sorted({group.label for group in groups}, key=recipe_key)


def group_runs(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """Put together the runs that differ in their seed alone; ordered by model and label.

    Example:
        >>> import deepres
        >>> groups = deepres.group_runs(deepres.load_runs(["results"])[0])
        >>> groups[0].model
        'plain20'
    """
    usual = {
        name: _usual_settings(name, [run for run in runs if run.recipe == name])
        for name in {run.recipe for run in runs}
    }
    groups: dict[tuple[str, str], list[FinishedRun]] = {}
    for run in sorted(runs, key=run_order):
        groups.setdefault((run.model, run.variant), []).append(run)
    made = []
    for members in groups.values():
        first = members[0]
        same_net = [run for run in runs if (run.model, run.recipe) == (first.model, first.recipe)]
        mine = _settings(first)
        reference = {**usual[first.recipe], "precision": _usual_precision(same_net)}
        reference = {key: value for key, value in reference.items() if first.record.applies(key)}
        differences = tuple(
            f"{key.removeprefix('recipe.').removeprefix('data.')} {_show(mine.get(key))}"
            for key in dict.fromkeys([*mine, *reference])
            if mine.get(key) != reference.get(key)
        )
        made.append(RunGroup(first.model, first.recipe, differences, tuple(members)))
    return sorted(made, key=lambda group: (model_key(group.model), group.label))


def _settings(run: FinishedRun) -> dict[str, str]:
    """Return what determines a run, but for its model and seed, without nesting, each value as JSON."""
    return dict(flatten({key: value for key, value in run.config.items() if key not in ("model", "seed")}))


def _usual_precision(runs: Sequence[FinishedRun]) -> str:
    """Return the precision that goes without saying for a net and a recipe, as JSON: most runs have it.

    Precision is a matter of the machine, not of the recipe: a net trained in one precision alone stands beside nets
    that were trained in another one. Tables name it.
    """
    counts = Counter(run.precision for run in runs)
    return json.dumps(max(counts, key=lambda precision: (counts[precision], precision == "float32")))


def _usual_settings(name: str, runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Return the settings that go without saying for a recipe name."""
    usual: dict[str, str] = {}
    every = [(run.record, _settings(run)) for run in runs]
    for key in dict.fromkeys(key for _, settings in every for key in settings):
        if key.startswith(("data.", "evaluation.")):
            continue  # what goes without saying of these is not there
        found = Counter(settings.get(key) for record, settings in every if record.applies(key))
        ((value, _),) = found.most_common(1)
        if value is not None:
            usual[key] = value
    if name in RECIPES:
        usual = {key: value for key, value in usual.items() if not key.startswith("recipe.")}
        usual |= dict(flatten({"option": "A", "workers": 1, "recipe": RECIPES[name]().to_json()}))
    return usual


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested objects as JSON, under names such as "recipe.schedule.kind"."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def _show(setting: str | None) -> str:
    """Return a setting as it stands in labels: other settings look different there."""
    if setting is None:
        return "missing"
    value = json.loads(setting)
    if isinstance(value, str):
        return value
    return "none" if value is None else f"{value:,}" if isinstance(value, int) and value > 9999 else setting
