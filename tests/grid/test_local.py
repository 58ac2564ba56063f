"""The grid's processes, with a program that trains nothing; and once for real."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import DATA, RECIPE, TINY, command, environment, few_images
from tiny_training import CPU, assert_same_outcome

from deepres.errors import UserError
from deepres.grid.display import GridDisplay
from deepres.grid.local import (
    RUN_MEMORY,
    TOGETHER_ON_GPU,
    default_parallel,
    default_together,
    place_environment,
    run_local,
)
from deepres.grid.plan import plan_grid
from deepres.grid.train_process import Outcome, TrainProcess, this_program
from deepres.recipes.named import fast
from deepres.recipes.read import read_recipe
from deepres.runs.directory import RunDir
from deepres.training.config import RunConfig
from deepres.training.stopping import StopRequest
from deepres.training.train import train

FAKE = str(Path(__file__).with_name("fake_train.py"))


def run_fake(run_dir, how, act=lambda process: None):
    """Run the program that trains nothing to its end: its events and its outcome."""
    events = SimpleQueue()
    process = TrainProcess(
        ("plain20", "--seed", "0"),
        run_dir,
        program=[FAKE],
        environment={"FAKE": how, "OMP_NUM_THREADS": "1"},
        listen=events.put,
    )
    seen = []
    while (event := events.get(timeout=60)) is not None:
        seen.append(event["event"])
        if event["event"] == "step":
            act(process)
    return seen, process.outcome()


def test_files_that_lie_in_the_folder_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "statistics.py").write_text("raise SystemExit('not the module of that name')")
    monkeypatch.setattr("sys.argv", ["deepres"])
    command = [sys.executable, *this_program(), "models"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("how", "act", "outcome"),
    [
        ("finish", lambda process: None, Outcome("finished")),
        ("error", lambda process: None, Outcome("failed", "the disk is full")),
        ("crash", lambda process: None, Outcome("failed", "ValueError: no")),
        ("killed", lambda process: None, Outcome("failed", "killed by SIGKILL, perhaps for memory")),
        ("wait", TrainProcess.stop, Outcome("stopped")),
        ("wait", TrainProcess.kill, Outcome("failed", "killed by SIGKILL, perhaps for memory")),
    ],
)
def test_how_a_process_ends(tmp_path, how, act, outcome):
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    run_dir.log.write_text("deepres: error: of an earlier start\n")
    seen, actual = run_fake(run_dir, how, act)
    assert actual == outcome
    assert seen[:2] == ["start", "step"]
    assert ("epoch" in seen) == (how == "finish")
    assert run_dir.log.read_text().startswith("deepres: error: of an earlier start\n")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot start a run in .*file/run \(Not a directory\)"):
        run_fake(RunDir(tmp_path / "file" / "run"), "finish")


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """Run a grid of three seeds of the program that trains nothing."""
    monkeypatch.setattr(sys, "argv", [FAKE])  # as if the grid were its command
    jobs = plan_grid(["plain20"], [fast()], [0, 1, 2], tmp_path)

    def run(num_parallel, num_gpus=0, together=1, display_class=GridDisplay):
        with display_class(jobs, jobs) as display:
            stop = getattr(display, "stop", StopRequest())
            outcomes = run_local(jobs, num_parallel, num_gpus, [], display, stop, together, cores=6)
        starts = tmp_path / "starts.txt"
        lines = [line.split() for line in starts.read_text().splitlines()] if starts.exists() else []
        return [outcomes.get(job.name) for job in jobs], lines

    return run


def test_failed_and_busy_runs_do_not_stop_the_others(grid, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FAKE0", "error")
    with RunDir(tmp_path / "plain20-fast-seed1").locked():
        outcomes, starts = grid(1)
    assert outcomes == [
        Outcome("failed", "the disk is full"),
        Outcome("busy", "another process trains there"),
        Outcome("finished"),
    ]
    assert [start[0] for start in starts] == ["plain20-fast-seed0", "plain20-fast-seed2"]
    said = capfd.readouterr().err
    assert "plain20-fast-seed0: failed: the disk is full (grid: 0 of 3 runs" in said
    assert "plain20-fast-seed2: epoch 2/2, train error 50.00%, test error 40.00%, 1,000 images/s, 0:00 left" in said
    assert "plain20-fast-seed2: finished, test error 40.00% (grid: 1 of 3 runs" in said


def test_places_share_cores_and_gpus(grid, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    _, starts = grid(3, num_gpus=2)
    assert sorted(starts) == [[f"plain20-fast-seed{i}", "2", gpu] for i, gpu in enumerate(("4", "7", "4"))]
    assert place_environment(0, 4, 0, cores=6) == {"OMP_NUM_THREADS": "1"}
    assert place_environment(0, 8, 0, cores=6) == {"OMP_NUM_THREADS": "1"}


def test_the_users_number_of_threads_is_obeyed(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert place_environment(0, 1, 0) == {"OMP_NUM_THREADS": "3"}


def test_as_many_at_a_time_as_there_are_cores_or_gpus_or_runs():
    assert [default_parallel(runs, 0, cores=6, memory=100 * RUN_MEMORY) for runs in (0, 2, 100)] == [1, 2, 6]
    assert [default_parallel(100, gpus) for gpus in (1, 4)] == [1, 4]
    assert [default_parallel(100, 0, cores=6, memory=memory) for memory in (1, 3 * RUN_MEMORY)] == [1, 3]


def test_a_stop_request_stops_what_runs_and_begins_nothing_more(grid, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FAKE", "wait")
    outcomes, starts = grid(1, display_class=StoppingDisplay)
    assert outcomes == [Outcome("stopped"), None, None]
    assert len(starts) == 1
    assert capfd.readouterr().err.count("deepres: stopping: 1 run saves its state") == 1


def names(starts):
    return [start[0].removeprefix("plain20-fast-") for start in starts]


def test_a_process_is_given_its_next_run_when_one_ended(grid, monkeypatch, capfd):
    """Two at a time of three, in one process; the one that fails, and why, is told of it alone."""
    monkeypatch.setenv("FAKE1", "error")
    outcomes, starts = grid(1, together=2)
    assert outcomes == [Outcome("finished"), Outcome("failed", "the disk is full"), Outcome("finished")]
    assert names(starts) == ["seed0", "seed1", "seed2"]
    said = capfd.readouterr().err
    assert "plain20-fast-seed2: epoch 2/2, train error 50.00%, test error 40.00%, 1,000 images/s, 0:00 left" in said
    assert said.index("plain20-fast-seed2: starting") > said.index("plain20-fast-seed0: finished")


def test_runs_are_dealt_out_evenly_among_the_gpus(grid, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    _, starts = grid(2, num_gpus=2, together=2)
    assert sorted((start[0][-1], start[2]) for start in starts) == [("0", "4"), ("1", "7"), ("2", "4")]


def test_runs_of_a_process_that_dies_begin_again_once(grid, monkeypatch, capfd):
    """The one that kills it fails in the end; a run that waited beside it is trained all the same."""
    monkeypatch.setenv("FAKE0", "killed")
    outcomes, starts = grid(1, together=2)
    reason = "killed by SIGKILL, perhaps for memory"
    assert outcomes[0] == Outcome("failed", reason)
    assert outcomes[2] == Outcome("finished")
    assert names(starts).count("seed0") == 2
    assert f"plain20-fast-seed1: lost with its process ({reason}), to begin again" in capfd.readouterr().err


def test_a_stop_request_stops_all_runs_of_a_process(grid, monkeypatch, capfd):
    monkeypatch.setenv("FAKE", "wait")
    outcomes, _ = grid(1, together=2, display_class=StoppingDisplay)
    assert outcomes == [Outcome("stopped"), Outcome("stopped"), None]
    assert "deepres: stopping: 2 runs save their state" in capfd.readouterr().err


class StoppingDisplay(GridDisplay):
    """Asks the grid to stop when a run has taken its first step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stop = StopRequest()

    def event(self, job, event):
        super().event(job, event)
        if event["event"] == "step":
            self.stop.signal_number = signal.SIGINT


def test_several_runs_in_a_process_by_default_where_a_gpu_replays_steps():
    assert [default_together(runs, 2, True) for runs in (1, 4, 5, 100)] == [1, 2, 3, TOGETHER_ON_GPU]
    assert default_together(100, 2, False) == 1


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def test_interrupted_and_continued_for_real(run, tmp_path, cifar10_dir, monkeypatch):
    """Ctrl-C in a grid of two runs at a time; then the same command; a run ends as it would have alone."""
    arguments = ("grid", "--models", "plain8,resnet8", "--recipes", RECIPE, "--data", DATA)
    arguments += ("--out", tmp_path / "runs", "--jobs", 2, "--precision", "float32", "--backend", "eager")
    names = [f"{net}-tiny-few_images-seed0" for net in ("plain8", "resnet8")]
    first = RunDir(tmp_path / "runs" / names[1])
    with subprocess.Popen(
        command(*arguments), env=environment(cifar10_dir), stderr=subprocess.PIPE, text=True
    ) as grid:
        assert grid.stderr is not None
        said = []
        for line in grid.stderr:
            said.append(line)
            if line.startswith(f"{names[1]}: epoch 1/4"):
                grid.send_signal(signal.SIGINT)
    assert grid.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT; continue with: " in said[-1]
    assert not first.result.exists()
    assert first.checkpoint_paths()

    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    code, stdout, stderr = run(*arguments)
    assert code == 0, stderr
    assert "2 runs: 2 finished" in stdout
    assert re.search(rf"{names[1]}: resuming .* after step ", stderr)
    for text in ("".join(said), stderr):
        assert "\x1b" not in text
        assert "\r" not in text
    epochs = re.findall(r"^(\S+): epoch (\d)/4", "".join(said) + stderr, re.MULTILINE)
    assert sorted(epochs) == [(name, str(i)) for name in names for i in (1, 2, 3, 4)]

    alone = RunDir(tmp_path / "alone")
    code, _, stderr = run("train", "resnet8", *TINY, "--run-dir", alone, *arguments[-4:])
    assert code == 0, stderr
    assert without_times(first.read_metrics()) == without_times(alone.read_metrics())
    weights, others = load_file(first.weights), load_file(alone.weights)
    assert all(torch.equal(weights[key], others[key]) for key in weights)

    code, _, stderr = run(*arguments)
    assert code == 0, stderr
    assert "2 runs in" in stderr
    assert "2 of them finished before" in stderr
    assert "starting" not in stderr


def test_two_runs_in_a_process_for_real(run, tmp_path, cifar10_dir, monkeypatch):
    """They end as alone; a third one, whose directory cannot be written, fails alone."""
    recipe = read_recipe(str(RECIPE), ["epochs=1"])
    nets = ("plain8", "resnet8", "plain14")
    runs = {net: tmp_path / "runs" / f"{net}-{recipe.name}-few_images-seed0" for net in nets}
    runs["plain14"].mkdir(parents=True)
    (runs["plain14"] / "checkpoints").touch()
    arguments = ("--models", ",".join(runs), "--recipes", RECIPE, "--set", "epochs=1", "--data", DATA)
    arguments += ("--out", tmp_path / "runs", "--jobs", 1, "--together", 2)
    arguments += ("--device", "cpu", "--precision", "float32", "--backend", "eager")
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    code, stdout, stderr = run("grid", *arguments)
    assert code == 1
    assert "up to 2 runs take turns in a process" in stderr
    assert "3 runs: 2 finished, 1 failed" in stdout
    reason = f"cannot write run directory {runs.pop('plain14')} (File exists)"
    assert reason in stdout
    for net, path in runs.items():
        alone = tmp_path / "alone" / net
        train(RunConfig(net, recipe, precision="float32", backend="eager"), few_images(), alone, device=CPU)
        assert_same_outcome(path, alone)
        started = json.loads(RunDir(path).environment.read_text())["command"]
        assert started[:3] == ["deepres", "train", net]
        assert str(path) in started
