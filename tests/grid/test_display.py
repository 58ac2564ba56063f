import io

import pytest
from rich.console import Console

from deepres.grid.display import GridDisplay
from deepres.grid.plan import plan_grid
from deepres.grid.train_process import Outcome
from deepres.recipes.named import paper


@pytest.fixture
def terminal():
    """A terminal of 80 columns."""
    return Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False, color_system=None)


def test_a_place_that_is_free_for_a_moment_does_not_change_the_time_left(tmp_path, capfd):
    jobs = plan_grid(["plain20"], [paper()], range(6), tmp_path)
    with GridDisplay(jobs, jobs) as shown:
        for job in jobs[:2]:
            shown.started(job)
            shown.event(job, {"event": "start", "step": 0, "target": 64_000, "batch_size": 128, "total_epochs": 164})
            step = {"event": "step", "step": 32_000, "epoch": 81, "loss": 0.1, "error": 7.25}
            shown.event(job, {**step, "images_per_second": 1280.0})  # 10 steps a second: 1:46:40 for a run
        shown._all[jobs[0].name].step = 64_000
        shown.ended(jobs[0], Outcome("finished"))
    # On the place that is free now two whole runs, on the other half a run and two more.
    assert "finished (grid: 1 of 6 runs, 4:26:40 left)" in capfd.readouterr().err


def test_bars_of_the_grid_and_of_each_run_on_a_terminal(terminal, tmp_path):
    jobs = plan_grid(["plain20", "resnet56"], [paper()], [0, 1], tmp_path)
    with GridDisplay(jobs, jobs[1:], terminal) as bars:
        for job in jobs[1:3]:
            bars.started(job)
            bars.event(job, {"event": "start", "step": 0, "target": 64_000, "batch_size": 128, "total_epochs": 164})
        step = {"event": "step", "step": 32_000, "epoch": 81, "loss": 0.1, "error": 7.25, "images_per_second": 1280.0}
        bars.event(jobs[1], step)
        bars.event(jobs[1], {"event": "notice", "message": "a notice"})
        bars._progress.refresh()
        shown = terminal.file.getvalue()
        bars.ended(jobs[1], Outcome("failed", "the disk is full"))
        bars.lost(jobs[2], "lost with its node")
        bars._progress.refresh()
        after = terminal.file.getvalue()[len(shown) :]
    assert "resnet56-paper-seed0: a notice" in shown
    assert "grid: 1 of 4 runs" in shown
    assert "resnet56-paper-seed0 82/164" in shown
    assert "error 7.2%  1,280/s  53:20 left" in shown
    assert "plain20-paper-seed1 1/164" in shown
    assert all(len(line.rstrip()) <= 80 for line in shown.replace("\r", "\n").split("\n") if "\x1b" not in line)
    assert "resnet56-paper-seed0: failed: the disk is full (grid: 1 of 4 runs" in after
    assert "plain20-paper-seed1: lost with its node" in after
