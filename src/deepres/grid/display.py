"""What a grid in progress shows: bars on a terminal, lines elsewhere."""

from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from deepres.formatting import duration
from deepres.grid.plan import Job
from deepres.grid.timing import JobProgress, grid_seconds_left, seconds_left
from deepres.grid.train_process import Event, Outcome
from deepres.streams import err, say


class GridDisplay:
    """On a terminal a bar for the grid and one for each running run; in a log file a line per epoch of each run.

    Args:
        jobs: the whole grid.
        pending: those of them that are not finished.
        console: where it is shown; standard error by default.
    """

    def __init__(self, jobs: Sequence[Job], pending: Sequence[Job], console: Console = err) -> None:
        self._console = console
        self._all = {job.name: JobProgress(job, "waiting" if job in pending else "finished") for job in jobs}
        self._stopping = False
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}", justify="right"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._grid_bar = self._progress.add_task("", total=1.0, state="")

    def __enter__(self) -> Self:
        self._refresh()
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def started(self, job: Job, where: str = "") -> None:
        """A run begins, or continues."""
        self._all[job.name].state = "running"
        self._bars[job.name] = self._progress.add_task(job.name, total=1.0, state="starting")
        if where or not self._console.is_terminal:
            self._say(f"{job.name}: starting {where}".rstrip())

    def lost(self, job: Job, message: str) -> None:
        """A run's machine has gone; the run is to start again elsewhere."""
        self._remove_bar(job)
        self._all[job.name].state = "waiting"
        self._say(f"{job.name}: {message}")

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A run has ended."""
        self._remove_bar(job)
        num_parallel = self._num_running()  # with this one, whose place the next will take
        run = self._all[job.name]
        run.state = outcome.state
        result = f", {run.held_out}" if run.held_out and outcome.state == "finished" else ""
        reason = f": {outcome.message}" if outcome.message else ""
        self._say(f"{job.name}: {outcome.state}{result}{reason} {self._aside(num_parallel)}")
        self._refresh(num_parallel=num_parallel)

    def stopping(self) -> None:
        """The user asked the grid to stop; this is said once."""
        running = self._num_running()
        if running and not self._stopping:
            saving = "1 run saves its" if running == 1 else f"{running} runs save their"
            self._say(
                f"deepres: stopping: {saving} state, which may take half a minute; a second Ctrl-C does not wait "
                "for that and loses what came after the last checkpoint"
            )
            self._stopping = True

    def event(self, job: Job, event: Event) -> None:
        """Take what a run tells."""
        run = self._all[job.name]
        match event["event"]:
            case "notice":
                self._say(f"{job.name}: {event['message']}")
            case "start":
                run.step, run.target = event["step"], event["target"]
                run.total_epochs = event["total_epochs"]
            case "step":
                run.step, run.epoch, run.error = event["step"], event["epoch"] + 1, event["error"]
                run.images_per_second = event["images_per_second"]
            case "epoch":
                self._epoch(run, event["row"])
        self._refresh(job)

    def _epoch(self, run: JobProgress, row: Event) -> None:
        name = "val" if "val_error" in row else "test"
        run.step, run.images_per_second = row["step"], row["images_per_second"]
        run.held_out = f"{name} error {row[f'{name}_error']:.2f}%"
        if not self._console.is_terminal:
            left = seconds_left(run, [])
            self._say(
                f"{run.job.name}: epoch {row['epoch']}/{run.total_epochs}, train error {row['train_error']:.2f}%, "
                f"{run.held_out}, {row['images_per_second'] or 0:,.0f} images/s"
                f"{f', {duration(left)} left' if left is not None else ''} {self._aside()}"
            )

    def _say(self, message: str) -> None:
        """Print a line above the bars."""
        say(message, console=self._console)

    def _num_running(self) -> int:
        """Return how many runs there are now."""
        return sum(run.state == "running" for run in self._all.values())

    def _done(self, num_parallel: int | None = None) -> tuple[str, str]:
        """Return how many runs are finished and the time left, as text; so many at a time, or as many as now."""
        runs = list(self._all.values())
        finished = sum(run.state == "finished" for run in runs)
        left = grid_seconds_left(runs, num_parallel or self._num_running())
        return f"grid: {finished} of {len(runs)} runs", f"{duration(left)} left" if left else ""

    def _aside(self, num_parallel: int | None = None) -> str:
        """Return the same as the end of a line."""
        return f"({', '.join(filter(None, self._done(num_parallel)))})"

    def _remove_bar(self, job: Job) -> None:
        if (bar := self._bars.pop(job.name, None)) is not None:
            self._progress.remove_task(bar)

    def _refresh(self, job: Job | None = None, num_parallel: int | None = None) -> None:
        """Bring the grid's bar and a run's up to date; so many runs at a time, or as many as now."""
        if not self._console.is_terminal:
            return
        runs = self._all.values()
        costs = [run.job.num_images * run.job.flop_per_image for run in runs]
        done = sum(cost * run.share for cost, run in zip(costs, runs, strict=True)) / sum(costs)
        description, state = self._done(num_parallel)
        self._progress.update(self._grid_bar, completed=done, description=description, state=state)
        if job is None or job.name not in self._bars:
            return
        run = self._all[job.name]
        state = "starting"
        if run.target and run.images_per_second:
            error = "" if run.error is None else f"error {run.error:.1f}%  "
            left = seconds_left(run, [])
            state = f"{error}{run.images_per_second:,.0f}/s  {duration(left or 0)} left"
        epoch = f" {min(run.epoch, run.total_epochs)}/{run.total_epochs}" if run.target else ""
        self._progress.update(self._bars[job.name], completed=run.share, description=f"{job.name}{epoch}", state=state)
