"""Groups of runs as users name them: folders and patterns of them, or settings such as model=resnet20,recipe=fast."""

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepres.errors import UserError
from deepres.runs.differences import nearest_setting, settings_of, show_value
from deepres.runs.directory import RunDir
from deepres.runs.finished import FinishedRun, SkippedRun, load_runs, read_record


@dataclass(frozen=True)
class Selection:
    """The runs that a text names."""

    text: str
    runs: tuple[FinishedRun, ...]
    """One or more."""
    skipped: tuple[SkippedRun, ...]
    """Run directories that were named too, but hold no finished run."""


def select_runs(text: str, folders: Sequence[str | Path] = ("runs",)) -> Selection:
    """Return the finished runs that a text names.

    Args:
        text: run directories or folders that hold some, separated by commas, with * and ? as in a shell; or settings
            `key=value`, separated by commas, that the runs must have. A key is "model", "recipe" (its name), "seed",
            "split" or any setting in recipe.json, such as "recipe.learning_rate". Of a key that is there more than
            once, each of its values will do.
        folders: where runs with those settings are looked for.

    Raises:
        UserError: nothing is found, or a key is unknown; the message names it.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError("a group of runs is empty: name run directories, or settings such as model=resnet20")
    if Path(text).exists():
        return _select_paths(text, [text])
    filters = ["=" in part and not Path(part).exists() and not _matching(part) for part in parts]
    if all(filters):
        return _select_settings(text, parts, folders)
    if any(filters):
        wrong = parts[filters.index(True)]
        raise UserError(f"{text!r} mixes paths and settings, and there is no folder {wrong}: give one kind")
    return _select_paths(text, parts)


def _matching(pattern: str) -> list[str]:
    """Return the paths that a pattern matches, which may be absolute: `Path.glob` takes no such ones."""
    return sorted(glob.glob(pattern))  # noqa: PTH207


def _select_paths(text: str, parts: Sequence[str]) -> Selection:
    paths: list[str] = []
    for part in parts:
        found = [part] if Path(part).exists() or not glob.has_magic(part) else _matching(part)
        if not found:
            raise UserError(f"no folder matches {part}: name run directories, or settings such as model=resnet20")
        paths += found
    runs, skipped = load_runs(paths)
    if not runs:
        why = f" ({skipped[0].path}: {skipped[0].reason})" if skipped else ""
        raise UserError(f"no finished run in {text}{why}")
    return Selection(text, tuple(runs), tuple(skipped))


def _select_settings(text: str, parts: Sequence[str], folders: Sequence[str | Path]) -> Selection:
    wanted: dict[str, set[str]] = {}
    for part in parts:
        key, _, value = part.partition("=")
        wanted.setdefault(key.strip(), set()).add(value.strip())
    runs, skipped = load_runs(folders)
    names = ", ".join(map(str, folders))
    if not runs:
        raise UserError(f"no finished run in {names}: name the folder of the runs with --runs")
    settings = [_names_and_settings(settings_of(run.record), run.seed) for run in runs]
    known = dict.fromkeys(key for each in settings for key in each)
    if unknown := [key for key in wanted if key not in known]:
        raise UserError(f"no run has a setting {unknown[0]!r}: {nearest_setting(unknown[0], known)}")
    found = tuple(run for run, each in zip(runs, settings, strict=True) if _fits(each, wanted))
    if not found:
        raise UserError(f"no finished run in {names} has {text}{_nearest(wanted, settings)}")
    return Selection(text, found, tuple(run for run in skipped if _skipped_fits(run, wanted)))


def _names_and_settings(settings: Mapping[str, str], seed: int) -> dict[str, str]:
    """Return settings with the short names that stand for some of them."""
    short = {"model": settings["model"], "recipe": settings["recipe.name"], "seed": json.dumps(seed)}
    return {**short, "split": settings.get("recipe.split", '"50k"'), **settings}


def _fits(settings: Mapping[str, str], wanted: Mapping[str, set[str]]) -> bool:
    return all(_is_among(settings.get(key, "null"), values) for key, values in wanted.items())


def _is_among(setting: str, values: set[str]) -> bool:
    """Tell whether a setting, as JSON, is one of some values as users write them."""
    if setting in values or show_value(setting) in values:
        return True
    for value in values:
        try:
            if json.loads(value) == json.loads(setting):  # 0.10 is 0.1
                return True
        except ValueError:
            continue
    return False


def _nearest(wanted: Mapping[str, set[str]], found: Sequence[Mapping[str, str]]) -> str:
    """Say which values of a setting there are, where none of those wanted is among them."""
    for key, values in wanted.items():
        there = dict.fromkeys(settings.get(key, "null") for settings in found)
        if not any(_is_among(setting, values) for setting in there):
            return f": {key} is {', '.join(map(show_value, there))} there"
    return ""


def _skipped_fits(run: SkippedRun, wanted: Mapping[str, set[str]]) -> bool:
    try:
        record = read_record(RunDir(run.path))
    except UserError:
        return False
    return _fits(_names_and_settings(settings_of(record), record.seed), wanted)
