"""What the benchmarks measured: its spread, and as files."""

import platform
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import stdev
from typing import Any

import torch

from deepres.files import write_json
from deepres.training.environment import find_commit


def write_report(path: Path, measured: Mapping[str, Any]) -> None:
    """Write measurements as JSON, with the versions and the commit they were made by."""
    made_by = {"torch": torch.__version__, "python": platform.python_version(), "commit": find_commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**measured, **made_by})


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation; of a single value there is none."""
    return stdev(values) if len(values) > 1 else nan
