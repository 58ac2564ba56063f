"""The learning rate of each step."""

import math
from collections import deque

from deepres.recipes.recipe import Cosine, OneCycle, Recipe, SlowStart, StepDecay


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Return the learning rate with which step `step` (from 0) of `total_steps` is taken.

    A slow start is not part of it: that one depends on the training error, see `SlowStartGate`.
    """
    match recipe.schedule:
        case StepDecay(milestones, factor):
            return recipe.learning_rate * factor ** sum(step >= milestone for milestone in milestones)
        case OneCycle(warmup) | Cosine(warmup):
            top = warmup * total_steps  # the step of the highest rate
            if step < top:
                return recipe.learning_rate * (step + 1) / (top + 1)
            if isinstance(recipe.schedule, OneCycle):
                return recipe.learning_rate * (total_steps - step) / (total_steps - top)
            return recipe.learning_rate * (1 + math.cos(math.pi * (step - top) / (total_steps - top))) / 2


class SlowStartGate:
    """Tells, step by step, whether a very deep net is still in its slow start (section 4.2, ResNet-110).

    Its state is part of the checkpoint: when the start ends depends on the training error.
    """

    def __init__(self, rule: SlowStart | None, depth: int) -> None:
        self.rule = rule if rule is not None and depth >= rule.min_depth else None
        self._recent: deque[tuple[int, int]] = deque(maxlen=self.rule.window if self.rule else 0)

    @property
    def open(self) -> bool:
        """True while the low rate applies."""
        return self.rule is not None

    def rate(self, scheduled: float) -> float:
        """Return the rate to use where the schedule says `scheduled`."""
        return self.rule.learning_rate if self.rule else scheduled

    def record(self, num_wrong: int, num_images: int) -> None:
        """Take note of a mini-batch's errors; the start ends once those of a full window are below the bound."""
        if self.rule is None:
            return
        self._recent.append((num_wrong, num_images))
        wrong, images = (sum(column) for column in zip(*self._recent, strict=True))
        if len(self._recent) == self.rule.window and 100 * wrong / images < self.rule.until_error:
            self.rule = None

    def state(self) -> dict[str, object]:
        """Return what a checkpoint must hold."""
        return {"open": self.open, "recent": list(self._recent)}

    def load_state(self, state: dict[str, object]) -> None:
        """Restore what `state` returned."""
        self._recent.extend(state["recent"])  # type: ignore[arg-type]
        if not state["open"]:
            self.rule = None
