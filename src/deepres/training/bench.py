"""How fast this machine trains, measured in seconds, so that users know how long a run will take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from deepres.data.loader import build_stream
from deepres.memory import keep_freed_memory
from deepres.models import build_model
from deepres.recipes import Recipe
from deepres.training.backends import choose_backend
from deepres.training.loop import Trainer

NUM_TRAIN, NUM_TEST = 50_000, 10_000
SAMPLE = 2_000  # random images to measure with: speed does not depend on what they show


@dataclass(frozen=True)
class Speed:
    """What was measured for one net, in images per second."""

    train: float
    """Of full size."""
    evaluate: float
    backend: str

    def scaled(self, factor: float) -> "Speed":
        """Return the speed of a net that needs `factor` times the operations."""
        return Speed(self.train / factor, self.evaluate / factor, self.backend)

    def seconds(self, recipe: Recipe) -> float:
        """Estimate the time of a run of the recipe on CIFAR-10, with an evaluation of the test set at each epoch."""
        trained = recipe.compute(NUM_TRAIN)
        evaluated = recipe.total_epochs(NUM_TRAIN) * NUM_TEST
        return trained / self.train + evaluated / self.evaluate


def measure_speed(
    name: str,
    recipe: Recipe,
    device: torch.device,
    precision: str,
    seconds: float,
    notice: Callable[[str], None] = lambda _: None,
) -> Speed:
    """Train a net on random images for about `seconds`, after two steps to warm up, and evaluate it once."""
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (SAMPLE, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(10, (SAMPLE,), generator=generator).to(device)
    stream = build_stream(images, labels, replace(recipe, low_resolutions=()), seed=0)
    total_steps = recipe.total_steps(NUM_TRAIN)
    backend = choose_backend(build_model(name), device, precision, total_steps, notice)
    trainer = Trainer(
        name=name,
        option="A",
        recipe=recipe,
        seed=0,
        stream=stream,
        total_steps=total_steps,
        device=device,
        precision=precision,
        backend=backend,
        notice=notice,
    )

    def steps(at_least: float) -> float:
        """Take steps for a while; return images per second."""
        before, start = trainer.step, time.monotonic()
        while (elapsed := time.monotonic() - start) < at_least:
            trainer.advance()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return (trainer.step - before) * recipe.batch_size / elapsed

    def evaluation() -> float:
        start = time.monotonic()
        trainer.evaluate(images).sum().item()
        return SAMPLE / (time.monotonic() - start)

    for _ in range(2):
        trainer.advance()
    trainer.read_losses()
    evaluation()
    return Speed(train=steps(seconds), evaluate=evaluation(), backend=backend)
