from dataclasses import replace

import pytest

from deepres.grid.plan import plan_grid
from deepres.grid.timing import JobProgress, grid_seconds_left, seconds_left
from deepres.recipes.named import paper
from deepres.recipes.recipe import LowResolution


@pytest.fixture
def jobs(tmp_path):
    return [JobProgress(job) for job in plan_grid(["plain20", "resnet56"], [paper()], [0, 1], tmp_path)]


def begin(progress, step, images_per_second):
    progress.state, progress.step, progress.target, progress.batch_size = "running", step, 64_000, 128
    progress.images_per_second = images_per_second


def test_steps_on_smaller_images_take_less_time(tmp_path):
    half = replace(paper(), low_resolutions=(LowResolution(size=16, until=0.5),))
    (job,) = plan_grid(["plain20"], [half], [0], tmp_path)
    run = JobProgress(job)
    begin(run, 16_000, 1280.0)  # on images of a quarter of the pixels: 320 of full size a second
    assert run.speed == 320
    assert seconds_left(run, []) == (16_000 / 4 + 32_000) * 128 / 320
    begin(run, 48_000, 640.0)  # 32,000 steps count for 8,000: 24,000 in all
    assert run.speed == 320
    assert seconds_left(run, []) == 16_000 * 128 / 320


def test_nothing_measured_yet(jobs):
    assert seconds_left(jobs[0], jobs) is None
    assert grid_seconds_left(jobs, 1) is None


def test_time_left_by_hand(jobs):
    plain, deep, plain_again, deep_again = jobs
    begin(plain, 32_000, 1280.0)  # 32,000 steps at 10 a second
    assert seconds_left(plain, jobs) == 3200
    assert seconds_left(plain_again, jobs) == 6400  # of the same net
    ratio = deep.job.flop_per_image / plain.job.flop_per_image
    assert 3.0 < ratio < 3.2  # 54 convolutions where the other has 18, and the first one, which costs less
    assert seconds_left(deep, jobs) == pytest.approx(6400 * ratio)
    assert grid_seconds_left(jobs, 1) == pytest.approx(3200 + 6400 + 2 * 6400 * ratio)

    begin(deep, 0, 320.0)  # its own speed counts now: 25,600 s
    assert seconds_left(deep_again, jobs) == 25_600
    # Two at a time: 3,200 + 6,400 + 25,600 on one place, the deep net that runs on the other.
    assert grid_seconds_left(jobs, 2) == pytest.approx(3200 + 6400 + 25_600)
    plain.state = "finished"
    assert plain.share == 1.0
    assert deep.share == 0.0
