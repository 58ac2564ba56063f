"""Finished runs, read from their directories: what every table, figure and statistic is made of. Needs no torch.

A run directory is one that holds recipe.json; `runs/` of a training machine and the committed `results/` alike are
folders of them.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepres.errors import UserError
from deepres.files import read_json
from deepres.runs.content import content_digest
from deepres.runs.directory import Row, RunDir
from deepres.runs.schema import Environment, EpochRow, Result, RunRecord

FAMILIES = ("plain", "resnet")  # the paper's come first, as it shows them


def model_key(name: str) -> tuple[int, str, int, str]:
    """Return a sort key that puts models in natural order: plain20 ... plain56, resnet20 ... resnet110, others."""
    match = re.fullmatch(r"(\D*)(\d*)(.*)", name)
    assert match is not None
    family, depth, rest = match.groups()
    place = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
    return place, family, int(depth or 0), rest


def family_of(model: str) -> str:
    """Return a net's name without its depth: "plain" or "resnet"."""
    return model_key(model)[1]


def depth_of(model: str) -> int:
    """Return the number of layers in a net's name; 0 if there is none."""
    return model_key(model)[2]


@dataclass(frozen=True)
class FinishedRun:
    """One run that took all steps of its schedule. Errors are in percent."""

    path: Path
    record: RunRecord
    """recipe.json."""
    environment: Environment
    """environment.json: the last start, with those before it."""
    rows: list[Row]
    """The lines of metrics.jsonl, one per epoch."""
    result: Result
    """result.json."""

    @property
    def config(self) -> dict[str, Any]:
        """What determines the run, see `config_of`."""
        return config_of(self.record)

    @property
    def model(self) -> str:
        """The net's name."""
        return self.record.model

    @property
    def depth(self) -> int:
        """The number of layers in the net's name; 0 if there is none."""
        return depth_of(self.model)

    @property
    def recipe(self) -> str:
        """The recipe's name. Its content is in `config`; see `group_runs`."""
        return str(self.record.recipe["name"])

    @property
    def split(self) -> str:
        """ "50k" or "45k"."""
        return str(self.record.recipe["split"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.record.seed

    @property
    def option(self) -> str:
        """The kind of shortcut."""
        return self.record.option

    @property
    def data(self) -> str:
        """The name of the data set, "CIFAR-10" but for runs on others."""
        return self.record.data.name

    @property
    def is_as_published(self) -> bool:
        """Whether others published an error for such a net, see `RunRecord.is_as_published`."""
        return self.record.is_as_published

    @property
    def precision(self) -> str:
        """ "float32", "bfloat16" or "float16"."""
        return self.record.precision

    @property
    def batch_size(self) -> int:
        """Images per mini-batch."""
        return int(self.record.recipe["batch_size"])

    @property
    def low_resolutions(self) -> list[tuple[int, int]]:
        """The parts of the training on images smaller than those of the test: rows of an image, step it ended with."""
        parts = self.record.recipe.get("low_resolutions", ())
        return [(int(part["size"]), round(part["until"] * self.steps)) for part in parts]

    @property
    def held_out(self) -> str:
        """The set that was evaluated at each epoch: "test" or "val"."""
        return self.record.evaluation.set

    @property
    def test_error_last(self) -> float:
        """The test error of the last epoch, in percent."""
        return float(self.result.test_error_last)

    @property
    def test_error_best(self) -> float | None:
        """The lowest test error after any epoch, in percent; None where not every epoch was evaluated on the test set.

        The best of fewer evaluations is another selection, which is not compared with that of all. And a run in
        bfloat16 or float16 evaluates all epochs but the last in that, so that its best is of two kinds of numbers.
        """
        comparable = self.record.evaluation.every == 1 and self.precision == "float32"
        return _optional(self.result.test_error_best) if comparable else None

    @property
    def val_error_last(self) -> float | None:
        """The val error of the last epoch, in percent; None without val."""
        return _optional(self.result.val_error_last)

    @property
    def val_error_best(self) -> float | None:
        """The lowest val error after any epoch, in percent; None without val."""
        return _optional(self.result.val_error_best)

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, whose test error (or else val error) was the lowest."""
        return int(self.result.best_epoch)

    @property
    def train_error(self) -> float:
        """The running one of the last epoch, over augmented images."""
        return float(self.result.train_error)

    @property
    def steps(self) -> int:
        """Mini-batches taken."""
        return int(self.result.steps)

    @property
    def epochs(self) -> float:
        """Passes over the training images."""
        return float(self.result.epochs)

    @property
    def num_parameters(self) -> int:
        """The number of the net's parameters."""
        return int(self.result.num_parameters)

    @property
    def flop_per_image(self) -> float | None:
        """Floating-point operations of training on one image of full size; None in runs that did not record them."""
        return _optional(self.result.flop_per_image)

    @property
    def training_flop(self) -> float | None:
        """Floating-point operations of the whole training."""
        images = self.result.compute  # small ones counted in proportion to their pixels
        return None if self.flop_per_image is None or images is None else self.flop_per_image * float(images)

    @property
    def seconds(self) -> float:
        """Wall time over all starts."""
        return float(self.result.seconds)

    @property
    def images_per_second(self) -> float:
        """Speed of the loop."""
        return float(self.result.images_per_second)

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return str(self.environment.device)

    @property
    def device_name(self) -> str:
        """The chip."""
        return str(self.environment.device_name)

    @property
    def versions(self) -> str:
        """The versions of what computed, in one line."""
        return ", ".join(f"{name} {getattr(self.environment, name)}" for name in ("deepres", "torch", "python"))

    @property
    def commit(self) -> str:
        """The commit of the code of the last start; empty if it was not run from a checkout."""
        return self.environment.commit or ""

    @property
    def predictions(self) -> Path | None:
        """predictions.npz, where the run has it."""
        path = RunDir(self.path).predictions
        return path if path.is_file() else None

    @property
    def variant(self) -> str:
        """A short digest of all that determines a run but its net and seed; `group_runs` averages by it."""
        return content_digest({key: value for key, value in self.config.items() if key not in ("model", "seed")})


@dataclass(frozen=True)
class SkippedRun:
    """A run directory that no statistic is made of."""

    path: Path
    reason: str
    """One line."""


def find_run_dirs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run directories in folders, or the folders themselves where they are such; sorted, each one once.

    Raises:
        UserError: a path is no folder.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise UserError(f"no folder {path}: name run directories, or folders that hold some")
        seen: set[Path] = set()
        for folder, subfolders, files in os.walk(path, followlinks=True):
            real = Path(folder).resolve()
            if RunDir(folder).recipe.name in files:
                found.setdefault(real, Path(folder))
                subfolders.clear()  # nothing in a run directory is another one
            else:
                again = real in seen  # by a link
                subfolders[:] = [] if again else [name for name in subfolders if not name.startswith(".")]
            seen.add(real)
    return sorted(found.values(), key=lambda path: [model_key(part) for part in path.parts])


def load_runs(paths: Iterable[str | Path]) -> tuple[list[FinishedRun], list[SkippedRun]]:
    """Read the run directories in folders: the finished runs, by model, recipe and seed, and the others with a reason.

    A run that is there twice, as in `runs/` and in `results/`, is read once; of two runs of the same configuration and
    seed that ended differently, the first one found, for they are not independent.

    Raises:
        UserError: a path is no folder.

    Example:
        >>> import deepres
        >>> finished, skipped = deepres.load_runs(["results"])
        >>> finished[0].model
        'plain20'
    """
    finished: dict[str, FinishedRun] = {}
    skipped: list[SkippedRun] = []
    for path in find_run_dirs(paths):
        try:
            run = read_run(path)
        except UserError as error:
            skipped.append(SkippedRun(path, str(error)))
            continue
        twin = finished.setdefault(content_digest(run.config), run)
        if twin is not run and twin.result != run.result:
            skipped.append(SkippedRun(path, f"the same configuration and seed as {twin.path}, with another result"))
    return sorted(finished.values(), key=run_order), skipped


def run_order(run: FinishedRun) -> tuple[Any, ...]:
    """Return a sort key that puts runs in the order of their nets, recipes and seeds."""
    return model_key(run.model), run.recipe, run.variant, run.seed


def read_run(path: str | Path) -> FinishedRun:
    """Read one run directory.

    Raises:
        UserError: the run is not finished, or a file of it is missing or damaged; the message says so in one line.
    """
    run_dir = RunDir(path)
    record = read_record(run_dir)
    if not run_dir.result.exists():
        raise UserError(f"not finished{_progress(run_dir)}")
    held_out = record.evaluation.set
    result = Result.from_json(read_json(run_dir.result), run_dir.result)
    if result.steps < result.total_steps:
        raise UserError(f"ended by --max-steps after step {result.steps:,} of {result.total_steps:,}")
    if held_out == "val" and (result.val_error_last is None or result.val_error_best is None):
        raise UserError(f"{run_dir.result} is damaged (no val errors)")
    lines = run_dir.read_metrics() if run_dir.metrics.exists() else []
    rows = [EpochRow.from_json(line, held_out, run_dir.metrics).to_json() for line in lines]
    if not rows or rows[-1]["step"] != result.steps:
        raise UserError(f"{run_dir.metrics} is missing or does not end at step {result.steps:,} as result.json does")
    environment = Environment.from_json(read_json(run_dir.environment), run_dir.environment)
    return FinishedRun(Path(path), record, environment, rows, result)


def config_of(record: RunRecord) -> dict[str, Any]:
    """Return what determines a run, without what goes without saying: see `RunRecord.settings`.

    How often it was evaluated determines no weight, nor the last epoch's error.
    """
    content = record.settings()
    evaluation = {key: value for key, value in content.pop("evaluation", {}).items() if key != "every"}
    return content | ({"evaluation": evaluation} if evaluation else {})


def read_record(run_dir: RunDir, default: RunRecord | None = None) -> RunRecord:
    """Read recipe.json; see `RunRecord.from_json` for what a run begun by an older version lacks.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        rows = run_dir.read_metrics() if run_dir.metrics.exists() else []
    except UserError:
        rows = []
    return RunRecord.from_json(read_json(run_dir.recipe), run_dir.recipe, rows=rows, default=default)


def _progress(run_dir: RunDir) -> str:
    """Say how far an unfinished run is."""
    try:
        last = run_dir.read_metrics()[-1]
        return f": epoch {last['epoch']}, step {last['step']:,}"
    except (OSError, UserError, IndexError, KeyError, TypeError, ValueError):
        return ": no epoch yet"


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)
