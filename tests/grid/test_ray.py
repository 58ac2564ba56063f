"""A real Ray cluster of two nodes on this machine, one of which is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import assert_one_line_error, run_cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_lost_node.py"


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


def test_without_ray_or_without_a_cluster_is_one_line(monkeypatch, capsys, tmp_path):
    arguments = ("grid", "--engine", "ray", "--out", tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        patch.delitem(sys.modules, "deepres.grid.on_ray", raising=False)
        assert_one_line_error(run_cli(patch, capsys, *arguments), "needs ray: pip install 'deepres[ray]'")
