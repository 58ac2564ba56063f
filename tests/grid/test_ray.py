"""A real Ray cluster of two nodes on this machine, one of which is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import assert_one_line_error, run_cli

from deepres.runs.directory import RunDir

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_lost_node.py"


@pytest.mark.long
def test_a_lost_node_costs_nothing_but_the_steps_since_the_checkpoint(tmp_path, cifar10_dir):
    pytest.importorskip("ray")
    command = [sys.executable, EXAMPLE, "--epochs", "12", "--out", tmp_path / "runs"]
    environment = {**os.environ, "DEEPRES_DATA": str(cifar10_dir)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KILLING node" in done.stdout
    assert "submitted again after step" in done.stdout
    assert "the same, bit for bit" in done.stdout
    # One core is left: the lost run waits for it.
    lines = [line.strip() for line in done.stdout.splitlines()]
    (finished, *_) = [i for i, line in enumerate(lines) if ": finished, test error" in line]
    (resumed,) = [i for i, line in enumerate(lines) if ": resuming " in line]
    assert finished < resumed


def test_whether_a_node_could_take_a_run():
    on_ray = pytest.importorskip("deepres.grid.ray")
    node = {"CPU": 16.0, "GPU": 1.0, "memory": 1e10}
    assert on_ray.fits(on_ray.Resources(16, 1), node)
    assert not on_ray.fits(on_ray.Resources(17, 0), node)
    assert not on_ray.fits(on_ray.Resources(1, 1), {"CPU": 16.0})


def test_what_comes_home_replaces_older_events(tmp_path):
    on_ray = pytest.importorskip("deepres.grid.ray")
    home = RunDir(tmp_path / "run")
    assert on_ray.newest_step(home) == 0
    on_ray.write_files(home, {"tensorboard/events.1": b"old", "metrics.jsonl": b"{}"})
    on_ray.write_files(home, {"log.txt": b"more", "checkpoints/step-00000012-0123456789abcdef.pt": b"state"})
    assert on_ray.newest_step(home) == 12
    assert (home.tensorboard / "events.1").exists()
    on_ray.write_files(home, {"tensorboard/events.2": b"all rows"})
    assert [path.name for path in home.tensorboard.iterdir()] == ["events.2"]
    assert home.metrics.exists()


def test_without_ray_or_without_a_cluster_is_one_line(monkeypatch, capsys, tmp_path):
    arguments = ("grid", "--engine", "ray", "--out", tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        patch.delitem(sys.modules, "deepres.grid.ray", raising=False)
        assert_one_line_error(run_cli(patch, capsys, *arguments), "needs ray: pip install 'deepres[ray]'")
