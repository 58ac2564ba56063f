"""Files: atomic writes, JSON, folders for output."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepres.errors import UserError


def make_folder(path: Path) -> None:
    """Make a folder for output, with those above it, where it is not there yet.

    Raises:
        UserError: a file has its name, or it may not be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into a folder {path} ({error.strerror}): name another with --out") from None


def check_parent(path: Path) -> None:
    """Raise the error for an output file whose folder is not there, before the work that fills it."""
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path, required: Sequence[str] = ()) -> dict[str, Any]:
    """Read an object.

    Raises:
        UserError: the file is missing, unreadable, no JSON object, or lacks a required key.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (no JSON object)")
    if missing := [key for key in required if key not in content]:
        raise UserError(f"{path} is damaged (no {missing[0]!r})")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, either the old or the new content is there, whole.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error.strerror}): free disk space or fix the permissions") from None
