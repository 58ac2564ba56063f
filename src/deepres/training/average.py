"""A running mean of the weights, evaluated beside the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RunningMean:
    """The exponential moving mean of a model's parameters and floating-point buffers.

    The mean begins with the first weights that it sees, those after the first step.

    Args:
        model: whose tensors are changed in place by training.
        decay: what is kept of the mean at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._tensors = {
            name: tensor
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point()
        }
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take note of the weights after a step."""
        tensors = [tensor.detach() for tensor in self._tensors.values()]
        if not self._means:
            self._means = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
            return
        torch._foreach_lerp_(list(self._means.values()), tensors, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the mean into the model while it is evaluated, and the weights back."""
        kept = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._write(self._means)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._tensors[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean, for a checkpoint; empty before the first step."""
        return self._means

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._means = {name: tensor.clone() for name, tensor in state.items()}
