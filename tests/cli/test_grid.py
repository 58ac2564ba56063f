from functools import partial
from pathlib import Path

import pytest
from command_line import assert_one_line_error
from run_files import change_json, write_run

from deepres.backends.machine import num_cores
from deepres.grid.local import default_parallel
from deepres.runs.directory import RunDir

FAKE_TRAIN = str(Path(__file__).parent.parent / "grid" / "fake_train.py")


@pytest.fixture
def grid(run, monkeypatch, cifar10_dir):
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    return partial(run, "grid")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--models", "resnet21"), ("unknown model 'resnet21'", "resnet20")),
        (("--recipes", "papr"), ("unknown recipe 'papr'", "paper")),
        (("--seeds", "x"), ("seeds 'x'", "their number")),
        (("--models", ""), ("--models '' names nothing", "leave it out")),
        (("--recipes", ","), ("--recipes ',' names nothing",)),
        (("--split", "40k"), ("unknown split '40k'",)),
        (("--device", "gpu"), ("unknown device 'gpu'",)),
        (("--precision", "half"), ("unknown precision 'half'",)),
        (("--backend", "quick"), ("unknown backend 'quick'",)),
        (("--data-dir", "/nowhere"), ("there is no CIFAR-10 in /nowhere",)),
        (("--engine", "ray", "--together", "2"), ("--together is for --engine local", "--gpus-per-run")),
        (("--engine", "ray", "--cpus-per-run", "0.00001"), ("--cpus-per-run 1e-05: Ray", "below 0.0001")),
        (("--engine", "ray", "--gpus-per-run", "1.5"), ("--gpus-per-run 1.5", "whole number")),
    ],
)
def test_what_would_make_every_run_fail_ends_the_grid_before_it_begins(grid, tmp_path, arguments, parts):
    assert_one_line_error(grid("--out", tmp_path / "runs", *arguments), *parts)
    assert not (tmp_path / "runs").exists()


def test_a_finished_grid_has_nothing_to_do(grid, tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"plain20-paper-seed{seed}", "plain20", seed=seed)
    code, stdout, stderr = grid("--models", "plain20", "--recipes", "paper", "--seeds", "2", "--out", tmp_path)
    assert code == 0
    assert stdout.splitlines() == ["2 runs: 2 finished", f"statistics: deepres results {tmp_path}"]
    assert stderr == f"deepres: 2 runs in {tmp_path}, 2 of them finished before\n"


def test_a_grid_that_is_continued_gives_each_run_the_threads_that_it_had(run, grid, tmp_path, monkeypatch):
    """The number of all runs decides how many go on together, not of those left."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run.program = FAKE_TRAIN
    num_runs = num_cores()
    for seed in range(1, num_runs):
        write_run(tmp_path / f"plain20-paper-seed{seed}", "plain20", seed=seed)
    arguments = ("--models", "plain20", "--recipes", "paper", "--seeds", num_runs, "--device", "cpu")
    code, _, stderr = grid(*arguments, "--out", tmp_path)
    assert code == 0, stderr
    ((name, threads, _),) = (line.split() for line in (tmp_path / "starts.txt").read_text().splitlines())
    assert name == "plain20-paper-seed0"
    assert int(threads) == num_cores() // default_parallel(num_runs, 0)


def test_a_run_of_another_configuration_fails_with_its_reason(grid, tmp_path):
    run_dir = RunDir(write_run(tmp_path / "plain20-paper-seed0", "plain20"))
    change_json(run_dir.recipe, option="B")
    before = run_dir.result.read_bytes()
    code, stdout, _ = grid("--models", "plain20", "--recipes", "paper", "--out", tmp_path)
    assert code == 1
    assert stdout.startswith("1 run: 1 failed\nplain20-paper-seed0: failed: run directory ")
    assert "was begun with another configuration (option was B, is A)" in stdout
    assert f"all that it said: {run_dir.log}" in stdout
    assert run_dir.result.read_bytes() == before
