"""In which settings two groups of runs differ: what a comparison of them compares. Needs no torch."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from types import MappingProxyType

from deepres.errors import UserError
from deepres.recipes.recipe import Recipe
from deepres.runs.finished import FinishedRun
from deepres.runs.groups import flatten
from deepres.runs.schema import RunRecord

INGREDIENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "net": ("model", "option", "net"),
        "data": ("data", "recipe.split", "recipe.split_seed"),
        "recipe": ("recipe",),
    }
)
"""Which settings belong together; a setting belongs to the first that fits, or else is an ingredient by itself."""

COMPUTING = ("precision", "workers")
"""How a run computes, which is no ingredient."""

CONSEQUENCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "data.fraction": ("data.train",),
        "recipe.split": ("data.train", "data.val"),
        "recipe.split_seed": ("data.train", "data.val"),
        "model": ("net",),
    }
)
"""Settings that change with another one, whatever it is changed to."""

UNASKED = ("recipe.name",)
"""A recipe's name follows from its settings, or determines nothing."""


@dataclass(frozen=True)
class Difference:
    """A setting in which two groups differ."""

    key: str
    """Such as "recipe.learning_rate"."""
    values: tuple[str, str]
    """The value in the one group and in the other, as text."""

    @property
    def ingredient(self) -> str | None:
        """The key of `INGREDIENTS` that the setting belongs to; None for how a run computes, and for names."""
        if self.key in (*UNASKED, *COMPUTING):
            return None
        return next((name for name, keys in INGREDIENTS.items() if _is_within(self.key, keys)), self.key.split(".")[0])

    def __str__(self) -> str:
        return f"{self.key} {self.values[0]} -> {self.values[1]}"


def settings_of(record: RunRecord) -> dict[str, str]:
    """Return what determines a run's last test error, but for its seed: names such as "recipe.learning_rate" -> JSON.

    A setting of recipes that an older version did not have yet is there with its default.
    """
    content = {key: value for key, value in record.to_json().items() if key not in ("seed", "evaluation")}
    defaults = {
        field.name: field.default  # plain data, all of them
        for field in fields(Recipe)
        if field.default is not MISSING and field.name not in content["recipe"]
    }
    return dict(flatten({**content, "recipe": {**content["recipe"], **defaults}}))


def shared_settings(name: str, runs: Sequence[FinishedRun]) -> dict[str, str]:
    """Return the settings of a group.

    Args:
        name: what the group is called in the error.
        runs: one or more, which must differ in their seed alone.

    Raises:
        UserError: they differ in another setting, or two have the same seed.
    """
    first = runs[0].record
    for run in runs[1:]:
        if found := find_differences(first, run.record):
            wanted = next((each for each in found if each.key not in UNASKED), found[0])
            raise UserError(
                f"{name} mixes runs of different settings: {wanted.key} is {wanted.values[0]} in {runs[0].path} and "
                f"{wanted.values[1]} in {run.path}: name one kind, or make two groups of them"
            )
    by_seed: dict[int, FinishedRun] = {}
    for run in runs:
        if (twin := by_seed.setdefault(run.seed, run)) is not run:
            raise UserError(f"{name} has seed {run.seed} twice, in {twin.path} and {run.path}: leave one out")
    return settings_of(first)


def find_differences(one: RunRecord, other: RunRecord) -> list[Difference]:
    """Return the settings, of those that apply to both nets, that differ; one that is missing is as good as null."""
    a, b = settings_of(one), settings_of(other)
    return [
        Difference(key, (show_value(a.get(key)), show_value(b.get(key))))
        for key in dict.fromkeys([*a, *b])
        if a.get(key, "null") != b.get(key, "null") and one.applies(key) and other.applies(key)
    ]


def check_differences(
    names: tuple[str, str], found: Sequence[Difference], differ: Sequence[str], known: Mapping[str, str]
) -> None:
    """Raise the error for groups that differ in more than was asked, or in several ingredients at once.

    Args:
        names: of the two groups, for the error.
        found: what differs.
        differ: the settings that are meant to differ, "recipe" standing for all that begin with "recipe."; with none,
            one ingredient may differ, the net, the recipe or the data.
        known: the settings of the groups.

    Raises:
        UserError: see above; or a setting that is meant to differ is the same, or unknown.
    """
    pair = f"{names[0]} and {names[1]}"
    if not differ:
        ingredients = dict.fromkeys(each.ingredient for each in found if each.ingredient is not None)
        if len(ingredients) > 1:
            raise UserError(
                f"{pair} differ in {' and '.join(ingredients)} at once ({_listed(found)}), and nothing tells which of "
                "them made a difference: compare groups that differ in one, or give --anyway"
            )
        return
    for key in differ:
        if not any(_is_within(name, (key,)) for name in known):
            raise UserError(f"no setting {key!r}: {nearest_setting(key, known)}")
        if not any(_is_within(each.key, (key,)) for each in found):
            raise UserError(f"{pair} do not differ in {key}: {show_value(known[key]) if key in known else 'the same'}")
    allowed = [*differ, *UNASKED, *(name for key in differ for name in _consequences(key))]
    if others := [each for each in found if not _is_within(each.key, allowed)]:
        raise UserError(
            f"{pair} differ in more than {', '.join(differ)}: {_listed(others)}; add --differ {others[0].key}, or "
            "compare others"
        )


def nearest_setting(key: str, known: Iterable[str]) -> str:
    """Return a hint at the setting that an unknown one may stand for: with its prefix, or the most similar one."""
    names = list(known)
    near = get_close_matches(key, [*names, *(name.rpartition(".")[2] for name in names)], n=1, cutoff=0.6)
    full = [name for name in names if near and (name == near[0] or name.endswith(f".{near[0]}"))]
    return f"did you mean {full[0]}?" if full else f"there are {', '.join(names)}"


def show_value(setting: str | None) -> str:
    """Return a setting, given as JSON, as users read and write it."""
    value = None if setting is None else json.loads(setting)
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value)


def _is_within(key: str, parts: Sequence[str]) -> bool:
    """Tell whether a setting is one of some, or within one of them."""
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def _consequences(key: str) -> list[str]:
    """Return what changes with a setting, or with those within it."""
    return [name for cause, names in CONSEQUENCES.items() if _is_within(cause, (key,)) for name in names]


def _listed(found: Sequence[Difference], most: int = 4) -> str:
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(map(str, found[:most])) + more
