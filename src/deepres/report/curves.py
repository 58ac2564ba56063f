"""Errors against steps, averaged over the seeds of a group: what figure 6 shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepres.runs.finished import FinishedRun
from deepres.runs.groups import RunGroup

Values = NDArray[np.float64]  # (E,), one per epoch


@dataclass(frozen=True)
class Band:
    """Errors in percent over several seeds, (E,) each."""

    mean: Values
    low: Values
    """The lowest seed's value, epoch by epoch."""
    high: Values
    """The highest seed's value, epoch by epoch."""


@dataclass(frozen=True)
class Curve:
    """The errors of one net and recipe, at the end of each epoch."""

    group: RunGroup
    steps: NDArray[np.int64]
    """(E,), mini-batches taken."""
    train: Band
    """The running error of the epoch, over augmented images, as they were trained on."""
    held_out: Band
    """Test error, or val error with the 45k/5k split."""

    @property
    def held_out_name(self) -> str:
        """ "test" or "val"."""
        return self.group.runs[0].held_out


def average(group: RunGroup) -> Curve:
    """Average the runs of a group over the epochs that all of them recorded at the same step."""
    rows = [{int(row["step"]): row for row in run.rows} for run in group.runs]
    steps = sorted(set.intersection(*map(set, rows)))  # the last one at least: all take the recipe's steps

    def band(key: str) -> Band:
        errors = np.array([[float(run[step][key]) for step in steps] for run in rows])  # (n, E)
        return Band(errors.mean(axis=0), errors.min(axis=0), errors.max(axis=0))

    held_out = f"{group.runs[0].held_out}_error"
    return Curve(group, np.array(steps, np.int64), band("train_error"), band(held_out))


def error_limit(errors: Sequence[float]) -> float:
    """Return the top of the axis for errors at the last epoch: the paper's 20%, or what it takes to see them."""
    return next((limit for limit in (20.0, 25.0, 30.0, 40.0, 60.0) if max(errors) < 0.95 * limit), 100.0)


def training_remark(run: FinishedRun) -> str:
    """Say what figure 6 does not show: "mini-batches of 256; until step 4,357 on images of 24 x 24 pixels"."""
    small = [f"; until step {end:,} on images of {size} x {size} pixels" for size, end in run.low_resolutions]
    return f"mini-batches of {run.batch_size}{''.join(small)}"


def seeds(runs: Sequence[object]) -> str:
    """Say how many: "1 seed", "5 seeds"."""
    return f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
