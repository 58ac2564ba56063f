"""How long a grid will take, from what its runs have measured so far."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepres.grid.plan import Job


@dataclass
class JobProgress:
    """How far one run is."""

    job: Job
    state: str = "waiting"
    """"waiting", "running", or how it ended, see `Outcome`."""
    step: int = 0
    target: int = 0
    epoch: int = 1
    """The one at work, counted from 1."""
    total_epochs: int = 0
    error: float | None = None
    """Running training error of this epoch, in percent."""
    held_out: str = ""
    """The last epoch's error on the test or val images, as text."""
    images_per_second: float | None = None
    """The mean speed of the run's loop so far, whatever the size of the images."""

    @property
    def speed(self) -> float | None:
        """Images of full size per second; None before anything was measured."""
        if not self.images_per_second:
            return None
        return self.job.config.recipe.full_size_speed(self.step, self.target, self.images_per_second)

    @property
    def share(self) -> float:
        """The share of the run that is done, 0 to 1."""
        if self.state == "finished":
            return 1.0
        return self.step / self.target if self.target else 0.0


def seconds_left(progress: JobProgress, others: Sequence[JobProgress]) -> float | None:
    """Estimate the time a run will still take; None before anything was measured.

    From its own speed, else that of runs of the same net, else the floating-point operations that all runs make a
    second: the more a net takes for an image, the fewer images.
    """
    images = images_left(progress, others)
    if progress.speed:
        return images / progress.speed
    measured = [(other.job, other.speed) for other in others if other.speed]
    speeds = [speed for job, speed in measured if job.config.model == progress.job.config.model]
    if not speeds:
        speeds = [speed * job.flop_per_image / progress.job.flop_per_image for job, speed in measured]
    return images * len(speeds) / sum(speeds) if speeds else None


def images_left(progress: JobProgress, others: Sequence[JobProgress]) -> float:
    """Return what a run has still to do, in images of full size; before it begins, what others of its recipe do."""
    recipe = progress.job.config.recipe
    if progress.target:
        return recipe.compute_between(progress.step, progress.target, progress.target)
    targets = (other.target for other in others if other.target and other.job.config.recipe == recipe)
    target = next(targets, None)
    return recipe.compute_between(0, target, target) if target else progress.job.num_images


def grid_seconds_left(jobs: Sequence[JobProgress], num_parallel: int) -> float | None:
    """Estimate the time until all runs are done, `num_parallel` at a time, each begun where a place is free."""
    running, waiting = ([p for p in jobs if p.state == state] for state in ("running", "waiting"))
    durations = []
    for progress in running + waiting:
        seconds = seconds_left(progress, jobs)
        if seconds is None:
            return None
        durations.append(seconds)
    return seconds_together(durations, max(1, num_parallel))


def seconds_together(durations: Iterable[float], num_parallel: int) -> float:
    """Return the time that runs of these seconds take, `num_parallel` at a time, each begun where a place is free."""
    places = [0.0] * num_parallel
    for seconds in durations:
        heapq.heapreplace(places, places[0] + seconds)
    return max(places)
