"""The progress of a run on a terminal."""

from rich.progress import BarColumn, Progress, TextColumn

from deepres.cli.console import err, say
from deepres.formatting import duration
from deepres.runs.directory import Row
from deepres.training.progress import Reporter, StepState


class ConsoleReporter(Reporter):
    """A progress bar on a terminal; a line per epoch everywhere, so that a log file reads well too."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task(model, state="compiling and loading")
        self._total_epochs = 0
        self._left = duration(0)

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def notice(self, message: str) -> None:
        """Print a line above the bar."""
        say(f"deepres: {message}")

    def start(self, step: int, target: int, batch_size: int, total_epochs: int) -> None:
        """Show the bar."""
        self._total_epochs = total_epochs
        self._progress.update(self._task, completed=step, total=target, state="first step")
        self._progress.start()

    def step(self, state: StepState) -> None:
        """Move the bar."""
        text = "first step"
        if state.images_per_second and state.seconds_left is not None:
            self._left = duration(state.seconds_left)
            speed = f"{state.images_per_second:,.0f} images/s"
            text = f"loss {state.loss:.3f}  error {state.error:.2f}%  {speed}  {self._left} left"
        description = f"{self._model} epoch {min(state.epoch + 1, self._total_epochs)}/{self._total_epochs}"
        self._progress.update(self._task, completed=state.step, description=description, state=text)

    def evaluating(self) -> None:
        """Say what takes the last seconds."""
        self._progress.update(self._task, state="last evaluation, in float32")

    def epoch(self, row: Row) -> None:
        """Print the epoch's line."""
        name = "val" if "val_error" in row else "test"
        speed = row["images_per_second"]
        err.print(
            f"epoch {row['epoch']:>3}/{self._total_epochs}  step {row['step']:>6,}  "
            f"rate {row['learning_rate']:<8.4g} train loss {row['train_loss']:.4f}  error {row['train_error']:5.2f}%  "
            f"{name} error {row[f'{name}_error']:5.2f}%  {speed or 0:,.0f} images/s  {self._left} left",
            markup=False,
            soft_wrap=True,
        )
