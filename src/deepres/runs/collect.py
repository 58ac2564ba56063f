"""Finished runs gathered into `results/`: small files that can be committed, and one row per run. Needs no torch."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepres.errors import UserError
from deepres.files import write_atomically
from deepres.runs.content import content_digest
from deepres.runs.directory import RunDir, run_name
from deepres.runs.finished import FinishedRun, config_of, load_runs, read_record

RUNS_FOLDER = "runs"
ROWS_FILE = "runs.csv"


def collect_runs(runs: Sequence[FinishedRun], out: Path) -> list[FinishedRun]:
    """Copy the light files of finished runs to `out/runs/`, and write `out/runs.csv` from all that lie there then.

    A run that was collected before is replaced if it is of the same configuration and seed. What earlier calls have
    collected stays, and keeps its name; where another configuration has taken a run's name, a digest is added to it.

    Returns:
        All runs that lie in `out/runs/` now.

    Raises:
        UserError: a file cannot be read or written.
    """
    for run in runs:
        target = _place(run, out / RUNS_FOLDER)
        if target.resolve() != run.path.resolve():
            _copy(run, target)
    folder = out / RUNS_FOLDER
    collected = load_runs([folder])[0] if folder.is_dir() else []
    if collected:
        write_atomically(out / ROWS_FILE, csv_text([run_row(run) for run in collected]).encode())
    return collected


def _place(run: FinishedRun, folder: Path) -> Path:
    """Return where a run belongs: the place of its earlier copy, or a free one."""
    name = run_name(
        run.model, run.recipe, run.seed, option=run.option, split=run.split, fraction=run.record.data.fraction
    )
    for candidate in (name, f"{name}-{content_digest(run.config)}"):
        there = RunDir(folder / candidate)
        if not there.recipe.exists() or config_of(read_record(there)) == run.config:
            return folder / candidate
    raise UserError(f"{folder / candidate} holds a run that is not of its name: remove it")


def _copy(run: FinishedRun, target: Path) -> None:
    """Copy the light files, the result last, so that its presence means that all of them are there."""
    source, copy = RunDir(run.path), RunDir(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for old in (copy.result, copy.predictions):
            old.unlink(missing_ok=True)
        files = [source.recipe, source.environment, source.metrics, run.predictions, source.result]
        for path in filter(None, files):
            write_atomically(target / path.name, path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot copy {run.path} to {target} ({error.strerror})") from None


def run_row(run: FinishedRun) -> dict[str, Any]:
    """Return a run's row of runs.csv. Errors are in percent, those of the last epoch where nothing else is said."""
    return {
        "run": run.path.name,
        "model": run.model,
        "recipe": run.recipe,
        "variant": run.variant,
        "option": run.option,
        "split": run.split,
        "seed": run.seed,
        "precision": run.precision,
        "device": run.device,
        "device_name": run.device_name,
        "deepres": run.environment.deepres,
        "torch": run.environment.torch,
        "python": run.environment.python,
        "commit": run.commit,
        "parameters": run.num_parameters,
        "steps": run.steps,
        "epochs": run.epochs,
        "test_error_last": run.test_error_last,
        "test_error_best": run.test_error_best,
        "best_epoch": run.best_epoch,
        "train_error": run.train_error,
        "val_error_last": run.val_error_last,
        "val_error_best": run.val_error_best,
        "seconds": run.seconds,
        "images_per_second": run.images_per_second,
    }


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of equal keys as CSV with a heading; None is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
