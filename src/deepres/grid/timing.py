"""How long a grid will go on, from what its runs have measured so far."""

import heapq
from collections.abc import Sequence
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
    batch_size: int = 0
    epoch: int = 1
    """The one at work, counted from 1."""
    total_epochs: int = 0
    error: float | None = None
    """Running training error of this epoch, in percent."""
    held_out: str = ""
    """The last epoch's error on the test or val images, as text."""
    images_per_second: float | None = None

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
    if progress.images_per_second:
        return images / progress.images_per_second
    measured = [other for other in others if other.images_per_second]
    if same := [other for other in measured if other.job.config.model == progress.job.config.model]:
        speeds = [other.images_per_second or 0.0 for other in same]
    else:
        cost = progress.job.flop_per_image
        speeds = [(other.images_per_second or 0.0) * other.job.flop_per_image / cost for other in measured]
    return images * len(speeds) / sum(speeds) if speeds else None


def images_left(progress: JobProgress, others: Sequence[JobProgress]) -> float:
    """Return how many images a run is still to be trained on: before it has begun, as many as others of its recipe."""
    if progress.target:
        return (progress.target - progress.step) * progress.batch_size
    known = [p.target * p.batch_size for p in others if p.target and p.job.config.recipe == progress.job.config.recipe]
    return known[0] if known else progress.job.num_images


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
