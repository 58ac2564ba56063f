"""How long a grid will go on, from what its runs have measured so far."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepres.grid.plan import Job


@dataclass
class JobProgress:
    """How far one run is."""

    job: Job
    state: str = "waiting"
    """"waiting", "running", or how it ended, see `Outcome`."""
    step: int = 0
    target: int = 0
    batch_size: int = 0
    epoch: int = 1
    """The one at work, counted from 1."""
    total_epochs: int = 0
    error: float | None = None
    """Running training error of this epoch, in percent."""
    held_out: str = ""
    """The last epoch's error on the test or val images, as text."""
    images_per_second: float | None = None
    """Of the run's loop so far, whatever the size of the images."""

    def compute(self, steps: int) -> float:
        """Return what the first `steps` steps cost, in images of full size."""
        recipe = replace(self.job.config.recipe, steps=self.target, epochs=None)
        return recipe.compute(num_train=1, steps=steps)  # in steps: num_train does not matter

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
    if progress.target:
        return progress.compute(progress.target) - progress.compute(progress.step)
    recipe = progress.job.config.recipe
    known = (other.compute(other.target) for other in others if other.target and other.job.config.recipe == recipe)
    return next(known, progress.job.num_images)


def grid_seconds_left(jobs: Sequence[JobProgress]) -> float | None:
    """Estimate the time until all runs are done, as many at a time as now, each begun where a place is free."""
    places = [0.0] * max(1, sum(progress.state == "running" for progress in jobs))
    for state in ("running", "waiting"):
        for progress in (p for p in jobs if p.state == state):
            seconds = seconds_left(progress, jobs)
            if seconds is None:
                return None
            heapq.heappush(places, heapq.heappop(places) + seconds)
    return max(places)
