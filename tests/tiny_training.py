"""Tiny runs for the tests of training, and what is looked at in them."""

import json
import os
import signal
import subprocess
import time

import torch
from safetensors.torch import load_file
from tiny_run import TINY, tiny_recipe

from deepres.runs.directory import RunDir
from deepres.training.train import RunConfig

CPU = torch.device("cpu")
TIMES = ("seconds", "images_per_second")
STEPS = 25


def config(seed=0, **changes):
    return RunConfig(**{"model": "resnet8", "recipe": tiny_recipe(), "seed": seed, "precision": "float32", **changes})


def without_times(row):
    return {key: value for key, value in row.items() if key not in TIMES}


def assert_same_outcome(one, other):
    """Weights and metrics bit for bit, times apart."""
    one, other = RunDir(one), RunDir(other)
    weights, others = load_file(one.weights), load_file(other.weights)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    rows, other_rows = one.read_metrics(), other.read_metrics()
    assert list(map(without_times, rows)) == list(map(without_times, other_rows))
    results = [without_times(json.loads(d.result.read_text())) for d in (one, other)]
    assert results[0] == results[1]


TRAIN = ("train", "resnet8", *TINY, "--checkpoint-minutes", "0", "--device", "cpu")


def newest_step(path):
    return max((int(p.name.split("-")[1]) for p in path.glob("checkpoints/step-*.pt")), default=-1)


def wait_until(condition, has_ended):
    """Wait until the condition holds, or the process has ended that was to bring it about."""
    deadline = time.monotonic() + 120
    while not condition() and not has_ended():
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)


def kill_when(words, variables, condition, number=signal.SIGKILL):
    """Start a command, send it a signal once the condition holds, and return what it said."""
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=variables) as process:
        wait_until(condition, lambda: process.poll() is not None)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


class InterruptAt:
    """A reporter that sends SIGINT to its own process after a step."""

    def __init__(self, at):
        self.at = at
        self.notices = []

    def step(self, state):
        if state.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)

    def notice(self, message):
        self.notices.append(message)

    def __getattr__(self, name):
        return lambda *_: None
