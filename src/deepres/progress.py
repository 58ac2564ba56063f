"""What a run in progress tells its caller."""

from deepres.rundir import Row


class Reporter:
    """Receives a run's progress; this one keeps silent. The command line's shows a bar."""

    def notice(self, message: str) -> None:
        """Take a line that the user should see."""

    def start(self, step: int, target: int, batch_size: int) -> None:
        """Training begins after `step` steps and goes to `target`."""

    def step(self, step: int, epoch: int, loss: float, error: float, images_per_second: float | None) -> None:
        """Take the state after a step: running loss in nats and error in percent."""

    def evaluating(self) -> None:
        """Training is over; the last evaluation begins."""

    def epoch(self, row: Row) -> None:
        """Take the row of metrics.jsonl of an epoch that ended."""
