"""Recipes of one's own: a TOML file that says what differs from a named recipe, or settings `key=value`."""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from deepres.errors import UserError
from deepres.recipes.named import RECIPES, get_recipe
from deepres.recipes.recipe import Recipe

NONE = "none"  # what stands for a setting that is switched off; TOML has no such value
MAX_NAME = 80  # characters of a recipe's name, which is part of the run directory's
SGD_ALONE = frozenset({"momentum", "nesterov"})  # settings that no other optimizer is given
EXCLUSIVE = {"steps": "epochs", "epochs": "steps"}  # one of the two is the length


def read_recipe(source: str, settings: Iterable[str] = ()) -> Recipe:
    """Return a named recipe, or the one of a TOML file, with changes.

    A file names the recipe that it starts from, `base = "fast"`, and the settings that differ. `name` may name the
    result; else its name is made from the base's and the changes, so that different recipes have different names.

    Args:
        source: a recipe's name, or the path of a file that ends in .toml.
        settings: changes after that, each "key=value". Dots lead into a part: "muon.learning_rate=0.03". The value is
            written as in TOML; quotes around a word may be left out, and "none" switches a part off.

    Raises:
        UserError: an unknown name, key or type, or a file that cannot be read.

    Example:
        >>> import deepres
        >>> deepres.read_recipe("fast", ["muon.learning_rate=0.03"]).name
        'fast+muon.learning_rate=0.03'
    """
    base, changes, name = _gather(source, settings)
    return change(get_recipe(base), changes, name=name)


def recipe_arguments(source: str, settings: Iterable[str] = ()) -> list[str]:
    """Return what `deepres train` is to be given for the recipe of `read_recipe`, on a machine without its file."""
    base, changes, name = _gather(source, settings)
    if name is not None:
        changes = {**changes, "name": name}
    return _as_arguments(base, changes)


def arguments_of(content: Mapping[str, Any], applies: Callable[[str], bool]) -> list[str]:
    """Return what `deepres train` is to be given for a recipe as a run's record has it, but for its split.

    That is the named recipe of its name, by this version of the package, or for a recipe of one's own the named one
    that it differs least from, and what differs.

    Args:
        content: what `Recipe.to_json` returned, without what does not apply to the net.
        applies: tells whether a setting does.
    """
    if content["name"] in RECIPES:
        return ["--recipe", content["name"]]
    read = json.loads(json.dumps(content))  # tuples as lists
    named = {base: json.loads(json.dumps(get_recipe(base).to_json())) for base in RECIPES}
    bases = {
        base: _differences({key: value for key, value in settings.items() if applies(key)}, read)
        for base, settings in named.items()
    }
    base, changes = min(bases.items(), key=lambda item: len(item[1]))
    if changed_name(base, changes) != content["name"]:
        changes["name"] = content["name"]
    return _as_arguments(base, changes)


def _as_arguments(base: str, changes: Mapping[str, Any]) -> list[str]:
    return ["--recipe", base, *(part for key, value in changes.items() for part in ("--set", f"{key}={_toml(value)}"))]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return by dotted key the settings that turn one recipe into another; both as `Recipe.to_json` returned them."""
    changes: dict[str, Any] = {}
    for field in fields(Recipe):
        key = field.name
        before, after = (content.get(key, field.default) for content in (old, new))
        if key in ("name", "split") or before == after:
            continue
        if isinstance(after, dict):
            same_kind = isinstance(before, dict) and before.get("kind") == after.get("kind")
            parts = {part: each for part, each in after.items() if not (same_kind and before[part] == each)}
            changes |= {f"{key}.{part}": each for part, each in parts.items()}
        else:
            changes[key] = NONE if after is None else after
    for key, other in EXCLUSIVE.items():
        if changes.get(key) == NONE and other in changes:
            del changes[key]
    return changes


def _gather(source: str, settings: Iterable[str]) -> tuple[str, dict[str, Any], str | None]:
    """Return the name of the recipe to start from, what is changed by dotted key, and what the result is called."""
    if not source.endswith(".toml"):
        base, changes = get_recipe(source).name, {}
    else:
        content = _read_file(Path(source))
        base = content.pop("base", None)
        if not isinstance(base, str):
            raise UserError(f'{source} names no recipe to start from: add a line base = "fast"')
        base, changes = get_recipe(base).name, _flatten(content)
    name = changes.pop("name", None)
    given: dict[str, Any] = {}
    for setting in settings:
        key, value = parse_setting(setting)
        if key in given:
            raise UserError(f"setting {key} is given twice")
        given[key] = value
    name = given.pop("name", name)
    if name is not None and (not isinstance(name, str) or not re.fullmatch(r"[\w.+=,-]+", name)):
        raise UserError(f"{name!r} cannot name a recipe: use letters, digits and . + = , - _")
    if name in RECIPES and (changes or given):
        raise UserError(f"a changed recipe cannot be named {name!r}, as deepres's own is")
    return base, {**changes, **given}, name


def setting_variants(setting: str) -> list[str]:
    """Return the settings of a grid: "pad=2,4" is "pad=2" and "pad=4"; brackets and quotes hold commas together."""
    key, equals, text = setting.partition("=")
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        pieces = re.findall(r"(?:\[[^\]]*\]|\{[^}]*\}|\"[^\"]*\"|[^,])+", text)
        if len(pieces) > 1:
            return [f"{key}{equals}{piece.strip()}" for piece in pieces]
    return [setting]


def parse_setting(setting: str) -> tuple[str, Any]:
    """Return key and value of "key=value".

    Raises:
        UserError: there is no "=", or no key before it.
    """
    key, equals, text = setting.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not key or not text:
        raise UserError(f"setting {setting!r} is not of the form key=value, such as learning_rate=0.05")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError):
        value = text
    return key, value


def change(recipe: Recipe, changes: Mapping[str, Any], *, name: str | None = None) -> Recipe:
    """Return the recipe with some settings changed, under a name made from the changes unless one is given.

    Args:
        recipe: what to start from.
        changes: dotted key to new value, as plain data.
        name: of the result.

    Raises:
        UserError: an unknown key, or a value of another type.
    """
    if not changes:
        return replace(recipe, name=name or recipe.name)
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        *parents, last = key.split(".")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise UserError(f"settings {parent} and {key} contradict each other")
        if last in table:
            raise UserError(f"settings contradict each other at {key}")
        table[last] = value
    for key, other in EXCLUSIVE.items():
        if key in nested and other not in nested:
            nested[other] = NONE
    made: Recipe = _changed(Recipe, recipe, nested, "")
    if made.optimizer and (given := SGD_ALONE & nested.keys()):
        key = min(given)
        raise UserError(f"setting {key} is SGD's: give {made.optimizer.name} its own as optimizer.arguments.{key}")
    return replace(made, name=name or changed_name(recipe.name, changes))


def changed_name(base: str, changes: Mapping[str, Any]) -> str:
    """Return a name for a recipe with changes: the same changes in any order give the same name, others another."""
    parts = [f"{key}={_plain(value)}" for key, value in sorted(changes.items())]
    name = "+".join([base, *(re.sub(r"[^\w.=,-]+", "", part) for part in parts)])
    exact = "+".join([base, *parts])
    if name == exact and len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}-{sha256(exact.encode()).hexdigest()[:8]}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, list):
        return ",".join(map(_plain, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={_plain(each)}" for key, each in sorted(value.items()))
    return str(value)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read recipe {path} ({error.strerror})") from None
    except ValueError as error:  # not TOML, or not text
        raise UserError(f"{path} is not a TOML file ({error})") from None


def _flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _changed(kind: type, value: Any, changes: Mapping[str, Any], key: str) -> Any:
    """Return a value of a dataclass with some fields changed; from nothing where `value` is none of that class."""
    names = [field.name for field in fields(kind) if not (kind is Recipe and field.name == "name")]
    for name in changes:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"did you mean {key}{near[0]}?" if near else f"there are {', '.join(names)}"
            raise UserError(f"a recipe has no setting {key}{name}: {hint}")
    new = {
        name: _converted(_types(kind)[name], each, getattr(value, name, None), f"{key}{name}")
        for name, each in changes.items()
    }
    if isinstance(value, kind) and is_dataclass(value) and not isinstance(value, type):
        return replace(value, **new)
    for field in fields(kind):  # of another kind with a setting of the same name, such as a warm-up
        if field.name not in new and hasattr(value, field.name):
            new[field.name] = getattr(value, field.name)
    without = [field for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    if missing := [field.name for field in without if field.name not in new]:
        raise UserError(f"setting {key.rstrip('.')} needs {', '.join(missing)} too")
    return kind(**new)


def _converted(kind: Any, value: Any, current: Any, key: str) -> Any:
    """Return plain data as a value of a type.

    Raises:
        UserError: it is of another type.
    """
    if get_origin(kind) in (Union, UnionType):
        kinds: list[type] = [each for each in get_args(kind) if each is not NoneType]
        if value == NONE or value is None:
            if NoneType in get_args(kind):
                return None
            raise UserError(f"setting {key} cannot be switched off")
        classes: dict[str, type] = {each.__name__: each for each in kinds if is_dataclass(each)}
        if isinstance(value, dict) and len(classes) > 1:
            value = dict(value)
            name = value.pop("kind", type(current).__name__)
            if name not in classes:
                raise UserError(f"setting {key}.kind is {name!r}: give {' or '.join(classes)}")
            return _changed(classes[name], current, value, f"{key}.")
        if len(kinds) > 1:
            raise UserError(f"setting {key} has parts: give {key}.kind ({' or '.join(classes)}) and its settings")
        kind = kinds[0]
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            names = ", ".join(f"{key}.{field.name}" for field in fields(kind))
            raise UserError(f"setting {key} has parts: give {names}")
        return _changed(kind, current, value, f"{key}.")
    if get_origin(kind) is Mapping:
        if not isinstance(value, dict):
            raise UserError(f"setting {key} has parts: give {key}.NAME=VALUE for each")
        return {**(current or {}), **value}
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(f"setting {key} is a list: write it in brackets, such as []")
        types = get_args(kind)
        types = types[:1] * len(value) if types[1:] == (...,) else types
        if len(types) != len(value):
            raise UserError(f"setting {key} needs {len(types)} values")
        return tuple(_converted(each, item, None, key) for each, item in zip(types, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
        raise UserError(f"setting {key} is {value!r}: it must be {words[kind]}")
    return value


def base_of(source: str) -> Recipe:
    """Return the named recipe that a source, see `read_recipe`, starts from."""
    return get_recipe(_gather(source, ())[0])


def to_toml(recipe: Recipe, base: Recipe | None = None) -> str:
    """Return a recipe as a TOML file to begin with: all its settings, those that are off as comments.

    Args:
        recipe: what the file is to give.
        base: the named recipe that it starts from, whose settings that are off in `recipe` are switched off; None:
            `recipe` itself.
    """
    base = base or recipe
    lines = [f'base = "{base.name}"', f'# name = "my-{base.name}"', ""]
    tables: list[str] = []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "name" or (recipe.optimizer and field.name in SGD_ALONE):
            continue
        if is_dataclass(value) and not isinstance(value, type):
            tables.append(f"\n[{field.name}]")
            if len([kind for kind in get_args(_types(Recipe)[field.name]) if is_dataclass(kind)]) > 1:
                tables.append(f'kind = "{type(value).__name__}"')
            before = getattr(base, field.name)
            tables += [
                _toml_line(part.name, getattr(value, part.name), getattr(before, part.name, None))
                for part in fields(value)
            ]
        else:
            lines.append(_toml_line(field.name, value, getattr(base, field.name)))
    return "\n".join([*lines, *tables]) + "\n"


def _toml_line(name: str, value: Any, before: Any) -> str:
    if value is not None:
        return f"{name} = {_toml(value)}"
    return f'{"# " if before is None else ""}{name} = "{NONE}"'


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{{ {', '.join(f'{part.name} = {_toml(getattr(value, part.name))}' for part in fields(value))} }}"
    return repr(value)
