"""How fast this machine trains, measured in seconds, so that users know how long a run will take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from deepres.backends.choose import choose
from deepres.backends.memory import keep_freed_memory
from deepres.data.loader import TrainStream, build_stream
from deepres.models import build_model
from deepres.recipes.recipe import LowResolution, Recipe
from deepres.training.trainer import Trainer

NUM_TRAIN, NUM_TEST = 50_000, 10_000
LONG = 10**9  # steps: more than are ever measured
SAMPLE = 2_000  # random images to measure with: speed does not depend on what they show


@dataclass(frozen=True)
class Speed:
    """What was measured for one net, in images per second."""

    train: float
    """Images of full size per second in training."""
    evaluate: float
    precision: str
    backend: str
    small: Sequence[tuple[int, float]] = ()
    """Training on smaller images: their rows, and how many of them per second."""

    def scaled(self, factor: float) -> "Speed":
        """Return the speed of a net that needs `factor` times the operations."""
        small = [(size, speed / factor) for size, speed in self.small]
        return Speed(self.train / factor, self.evaluate / factor, self.precision, self.backend, small)

    def seconds(self, recipe: Recipe) -> float:
        """Estimate the time of a run of the recipe on CIFAR-10, with an evaluation of the test set at each epoch.

        Raises:
            KeyError: the recipe has images of a size that was not measured.
        """
        speeds: dict[int | None, float] = {None: self.train, **dict(self.small)}
        parts = recipe.parts(recipe.total_steps(NUM_TRAIN))
        trained = sum((end - begin) * recipe.batch_size / speeds[size] for size, begin, end in parts)
        return trained + recipe.total_epochs(NUM_TRAIN) * NUM_TEST / self.evaluate


def measure_speed(
    name: str,
    recipes: Sequence[Recipe],
    device: torch.device,
    precision: str,
    seconds: float,
    notice: Callable[[str], None] = lambda _: None,
) -> Speed:
    """Train a net on random images for about `seconds`, after two steps to warm up, and evaluate it once.

    It is computed as a run would be. It is trained by the first of the recipes, on images of each size that any of
    them has, each for about `seconds`.
    """
    recipe = recipes[0]
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLE, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(10, (SAMPLE,), generator=generator).to(device)

    def stream_of(size: int | None) -> TrainStream:
        low = () if size is None else (LowResolution(size, until=1.0),)
        return build_stream(images, labels, replace(recipe, steps=LONG, epochs=None, low_resolutions=low), seed=0)

    total_steps = recipe.total_steps(NUM_TRAIN)
    sizes = sorted({size for recipe in recipes for size in recipe.small_sizes})
    choice = choose(
        build_model(name, generator=torch.Generator()).to(device),
        device,
        precision=precision,
        backend="auto",
        num_steps=total_steps,
        sizes=[images.shape[-1], *sizes],
        notice=notice,
    )
    if choice.backend == "compiled":
        torch.compiler.reset()  # or the nets measured before use up the number of times that a function is compiled
    trainer = Trainer(
        name=name,
        option="A",
        recipe=recipe,
        seed=0,
        stream=stream_of(None),
        total_steps=total_steps,
        device=device,
        precision=choice.precision,
        backend=choice.backend,
        notice=notice,
        fall_back=True,
    )

    def steps(size: int | None, at_least: float) -> float:
        """Take steps on images of a size for a while, after two to warm up; return images per second."""
        trainer.use_stream(stream_of(size))
        for _ in range(2):
            trainer.advance()
        trainer.read_losses()
        before, start = trainer.step, time.monotonic()
        while time.monotonic() - start < at_least:
            trainer.advance()
        trainer.read_losses()  # waits for a GPU
        return (trainer.step - before) * recipe.batch_size / (time.monotonic() - start)

    def evaluation() -> float:
        start = time.monotonic()
        trainer.evaluate(images).sum().item()
        return SAMPLE / (time.monotonic() - start)

    evaluation()
    return Speed(
        train=steps(None, seconds),
        evaluate=evaluation(),
        precision=choice.precision,
        backend=trainer.backend.name,
        small=[(size, steps(size, seconds)) for size in sizes],
    )
