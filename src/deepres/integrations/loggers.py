"""The rows of a run in other programs' records of experiments: Weights & Biases, MLflow, trackio, TensorBoard."""

import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deepres.errors import UserError, first_line
from deepres.runs.directory import Row
from deepres.runs.groups import flatten
from deepres.training.progress import Reporter, StepState

PROJECT = "deepres"


class Logger:
    """Hands the rows of a run to one program, whose own settings say where they go.

    Args:
        name: of the run there.
        identity: the same for all starts of a run.
        settings: what determines the run, names -> plain data.
    """

    def __init__(self, name: str, identity: str, settings: Mapping[str, Any]) -> None:
        """Begin the run there, or go on with it."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Record numbers."""

    def close(self) -> None:
        """End the run there."""


class WandbLogger(Logger):
    """Weights & Biases; WANDB_MODE=offline keeps the run on this machine."""

    def __init__(self, name: str, identity: str, settings: Mapping[str, Any]) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(project=PROJECT, name=name, id=identity, config=dict(settings), resume="allow")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Logger.log`."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """See `Logger.close`."""
        self._run.finish()


class MlflowLogger(Logger):
    """MLflow; MLFLOW_TRACKING_URI says where."""

    def __init__(self, name: str, identity: str, settings: Mapping[str, Any]) -> None:
        self._mlflow = import_module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        found = self._mlflow.search_runs(filter_string=f"tags.deepres = '{identity}'", output_format="list")
        begun = found[0].info.run_id if found else None
        self._mlflow.start_run(run_id=begun, run_name=name, tags={"deepres": identity})
        if begun is None:
            self._mlflow.log_params(dict(settings))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Logger.log`."""
        self._mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        """See `Logger.close`."""
        self._mlflow.end_run()


class TrackioLogger(Logger):
    """trackio, which keeps runs on this machine; `trackio show` shows them."""

    def __init__(self, name: str, identity: str, settings: Mapping[str, Any]) -> None:
        self._trackio = import_module("trackio")
        self._trackio.init(project=PROJECT, name=f"{name}-{identity}", config=dict(settings), resume="allow")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """See `Logger.log`."""
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        """See `Logger.close`."""
        self._trackio.finish()


LOGGERS: Mapping[str, type[Logger]] = MappingProxyType(
    # A run writes TensorBoard's events by itself, where it is installed: asking for it makes sure that it is.
    {"tensorboard": Logger, "wandb": WandbLogger, "mlflow": MlflowLogger, "trackio": TrackioLogger}
)
"""What --log knows, by the name of the package that each needs."""


def get_loggers(names: Sequence[str]) -> dict[str, type[Logger]]:
    """Return those of `LOGGERS` that are named, each once.

    Raises:
        UserError: a program is unknown or not installed; the message names the command that installs it.
    """
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"--log {name!r} is unknown: give {', '.join(LOGGERS)}")
        if find_spec(name) is None:
            raise UserError(f"--log {name} needs {name}: pip install {name}")
    return {name: LOGGERS[name] for name in names}


class LoggingReporter(Reporter):
    """Hands each event to another reporter, and the rows to programs too; one that fails is left out then.

    Args:
        reporter: the other one.
        loggers: name in messages -> the kind of logger.
        run_dir: of the run.
        settings: the content of recipe.json.
    """

    def __init__(
        self,
        reporter: Reporter,
        loggers: Mapping[str, type[Logger]],
        run_dir: Path,
        settings: Mapping[str, Any],
    ) -> None:
        self._reporter = reporter
        self._kinds = loggers
        self._run_dir = run_dir
        self._settings = dict(flatten(settings))
        self._loggers: dict[str, Logger] = {}

    def close(self) -> None:
        """See `Reporter.close`."""
        for name in list(self._loggers):
            self._try(name, lambda logger: logger.close())
        self._reporter.close()

    def notice(self, message: str) -> None:
        """See `Reporter.notice`."""
        self._reporter.notice(message)

    def start(self, step: int, target: int, batch_size: int, total_epochs: int) -> None:
        """See `Reporter.start`; begin the run in each program."""
        name = re.sub(r"[^\w.+=,-]+", "-", self._run_dir.name)
        identity = sha256(str(self._run_dir.resolve()).encode()).hexdigest()[:12]
        for each, kind in self._kinds.items():
            try:
                self._loggers[each] = kind(name, identity, self._settings)
            except Exception as error:  # whatever a program of another age, or without its server, raises
                self._fail(each, error)
        self._reporter.start(step, target, batch_size, total_epochs)

    def step(self, state: StepState) -> None:
        """See `Reporter.step`."""
        self._reporter.step(state)

    def saved(self, step: int) -> None:
        """See `Reporter.saved`."""
        self._reporter.saved(step)

    def evaluating(self) -> None:
        """See `Reporter.evaluating`."""
        self._reporter.evaluating()

    def epoch(self, row: Row) -> None:
        """See `Reporter.epoch`; hand over the row."""
        numbers = {key: float(value) for key, value in row.items() if key != "step" and value is not None}
        for name in list(self._loggers):
            self._try(name, lambda logger: logger.log(numbers, row["step"]))
        self._reporter.epoch(row)

    def _try(self, name: str, action: Callable[[Logger], None]) -> None:
        try:
            action(self._loggers[name])
        except Exception as error:
            self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        self._loggers.pop(name, None)
        self.notice(f"--log {name} failed ({first_line(error)}): going on without it")
