"""Runs that are not finished: how far they are, and their errors so far. No statistic is made of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deepres.errors import UserError
from deepres.files import read_json
from deepres.runs.directory import Row, RunDir
from deepres.runs.finished import SkippedRun, read_record
from deepres.runs.schema import EpochRow, Result, RunRecord


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that has not taken all steps of its schedule: it is running, was interrupted, or ended by --max-steps."""

    path: Path
    record: RunRecord
    """recipe.json."""
    rows: list[Row]
    """The lines of metrics.jsonl, one per epoch that ended; one or more."""

    @property
    def step(self) -> int:
        """Mini-batches taken when the last row was written."""
        return int(self.rows[-1]["step"])

    @property
    def held_out(self) -> str:
        """The set that is evaluated at each epoch: "test" or "val"."""
        return self.record.evaluation.set

    @property
    def error(self) -> float:
        """The latest error of the held-out set, in percent."""
        return float(self.rows[-1][f"{self.held_out}_error"])

    @property
    def total_steps(self) -> int:
        """The steps of the whole schedule."""
        recipe = self.record.recipe
        if steps := recipe.get("steps"):
            return int(steps)
        return math.ceil(float(recipe["epochs"]) * self.record.data.train.images / int(recipe["batch_size"]))


def read_unfinished(skipped: Iterable[SkippedRun]) -> tuple[list[UnfinishedRun], list[SkippedRun]]:
    """Read the runs that `load_runs` has skipped, as far as they are unfinished.

    Returns:
        Those with an epoch that ended, and the others: which have none yet, are damaged, or are another run's twins.
    """
    found, others = [], []
    for run in skipped:
        made = _read(RunDir(run.path))
        if made is None:
            others.append(run)
        else:
            found.append(made)
    return found, others


def _read(run_dir: RunDir) -> UnfinishedRun | None:
    try:
        record = read_record(run_dir)
        if run_dir.result.exists():
            result = Result.from_json(read_json(run_dir.result), run_dir.result)
            if result.steps >= result.total_steps:
                return None
        held_out = record.evaluation.set
        rows = [EpochRow.from_json(row, held_out, run_dir.metrics).to_json() for row in run_dir.read_metrics()]
    except UserError:
        return None
    return UnfinishedRun(run_dir.path, record, rows) if rows else None
