"""Trainings that take seconds: a few real images, named on the command line as data of one's own, and `tiny.toml`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from deepres.data.cifar10 import Cifar10, bin_folder, decode, resolve_data_dir
from deepres.data.release import FILES, RECORD_BYTES, TEST_FILE
from deepres.recipes.read import read_recipe
from deepres.recipes.recipe import Recipe

NUM_TRAIN, NUM_TEST, BATCH = 100, 80, 16  # an epoch is 6.25 steps: mini-batches straddle epochs
RECIPE = Path(__file__).with_name("tiny.toml")
DATA = f"{__file__}:few_images"
TINY = ("--recipe", str(RECIPE), "--data", DATA)
"""What `deepres train` is given."""


def tiny_recipe() -> Recipe:
    return read_recipe(str(RECIPE))


def first_images(data_dir: Path, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST) -> Cifar10:
    """The first images of CIFAR-10, read alone: to load all of it takes a process half of its time."""
    files = {FILES[0]: num_train, TEST_FILE: num_test}
    records = [np.fromfile(bin_folder(data_dir) / name, np.uint8, n * RECORD_BYTES) for name, n in files.items()]
    return Cifar10(*(decode(part.reshape(-1, RECORD_BYTES)) for part in records))


def few_images() -> Cifar10:
    """The data set; deepres calls this in the process that trains, which is where a test can make it die."""
    if name := os.environ.get("KILL_BEFORE"):
        kill_before_writing(name)
    if os.environ.get("FORBID_DYNAMO"):  # which takes seconds to import
        assert "torch._dynamo" not in sys.modules
        sys.modules["torch._dynamo"] = None  # type: ignore[assignment]
    return first_images(resolve_data_dir(None))


def kill_before_writing(name: str) -> None:
    """Make this process die, as by SIGKILL, when a file of this name is about to get its new content."""
    replace_file = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace_file(self, target)

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "deepres", *map(str, arguments)]


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "DEEPRES_DATA": str(data_dir), "FORBID_DYNAMO": "1", **more}


def run_command(*arguments: object, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run `deepres` in a process of its own, which must succeed."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(data_dir), check=False)
    assert done.returncode == 0, done.stderr
    return done
