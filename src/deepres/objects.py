"""What a user names as FILE:NAME or module:NAME, as web servers name applications."""

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from deepres.errors import UserError, first_line


def is_object_name(name: str) -> bool:
    """Tell whether a name is of the form FILE:NAME or module:NAME."""
    return ":" in name


def load_object(name: str) -> Any:
    """Import a file or a module and return what it calls by a name.

    Args:
        name: "nets.py:SiluNet", the path of a Python file and a name in it, or "package.module:SiluNet".

    Raises:
        UserError: there is no such file, module or name, or importing it fails; the message says which.

    Example:
        >>> load_object("math:sqrt")(9.0)
        3.0
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute.isidentifier():
        raise UserError(f"{name!r} names nothing: write FILE.py:NAME or module:NAME")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        names = [each for each in vars(module) if not each.startswith("_")]
        near = get_close_matches(attribute, names, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise UserError(f"{place} has no {attribute}{hint}") from None


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    # One name for one file, so that what is imported twice is the same.
    name = f"deepres_user_{path.stem}_{sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as dataclasses and pickles look it up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        del sys.modules[name]
        raise UserError(f"{path} cannot be imported ({type(error).__name__}: {first_line(error)})") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"module {name} cannot be imported ({type(error).__name__}: {first_line(error)})") from error
