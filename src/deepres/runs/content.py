"""JSON objects that runs have written: checks of what was read, what is unusual, digests."""

import json
import math
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from deepres.errors import UserError

Content = Mapping[str, Any]


def check_numbers(content: Content, keys: Iterable[str], path: Path) -> None:
    """Raise the error for a value that is missing or no finite number."""
    for key in keys:
        value = content.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{path} is damaged ({key} is {value!r}, no number)")


def object_in(content: Content, key: str, path: Path) -> Content:
    """Return a part of a JSON object that must be an object itself."""
    part = content[key]
    if not isinstance(part, dict):
        raise UserError(f"{path} is damaged ({key} is no JSON object)")
    return part


def unusual_part(content: Content, usual: Content) -> dict[str, Any]:
    """Return what differs from the usual content, in objects within it too."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        expected = usual.get(key)
        if isinstance(value, dict) and isinstance(expected, dict):
            if inner := unusual_part(value, expected):
                found[key] = inner
        elif value != expected:
            found[key] = value
    return found


def content_digest(content: Content) -> str:
    """Return eight hexadecimal digits that depend on a JSON object's whole content and not on its order."""
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
