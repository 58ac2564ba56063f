"""The command line on a few hundred real images with a recipe of short mini-batches, so that runs take seconds.

Run as a script it is `deepres` on that; imported, it gives the pieces.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from deepres.data import cifar10
from deepres.data.cifar10 import Cifar10, Split
from deepres.recipes.named import RECIPES, one_cycle
from deepres.recipes.recipe import Recipe

NUM_TRAIN, NUM_TEST, BATCH = 100, 80, 16  # an epoch is 6.25 steps: mini-batches straddle epochs


def tiny_recipe() -> Recipe:
    return replace(one_cycle(), name="tiny", batch_size=BATCH, epochs=4)  # 25 steps


def first_images(data: Cifar10, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST) -> Cifar10:
    return Cifar10(
        train=Split(data.train.images[:num_train], data.train.labels[:num_train]),
        test=Split(data.test.images[:num_test], data.test.labels[:num_test]),
    )


def tiny_command(*arguments: object) -> list[str]:
    return [sys.executable, __file__, *map(str, arguments)]


def run_tiny(*arguments: object, data_dir: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEEPRES_DATA": str(data_dir)}
    done = subprocess.run(tiny_command(*arguments), capture_output=True, text=True, env=environment, check=False)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def kill_before_writing(name: str) -> None:
    """Make this process die, as by SIGKILL, when a file of this name is about to get its new content."""
    replace_file = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace_file(self, target)

    Path.replace = replace_or_die  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if "WORLD_SIZE" not in os.environ:  # torch.distributed needs it
        sys.modules["torch._dynamo"] = None  # type: ignore[assignment]  # an error where it is imported for nothing

    from deepres.cli.main import main

    if name := os.environ.get("KILL_BEFORE"):
        kill_before_writing(name)

    load = cifar10.load_cifar10
    cifar10.load_cifar10 = lambda data_dir=None: first_images(load(data_dir))  # type: ignore[assignment]
    import deepres.recipes.recipe

    deepres.recipes.named.RECIPES = {**RECIPES, "tiny": tiny_recipe}
    main()
