"""What the optimizers of recipes have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class ParamGroup:
    """Parameters that share their learning rate and weight decay."""

    params: list[Tensor]
    peak_lr: float
    """The learning rate where the schedule is highest."""
    weight_decay: float = 0.0
    lr: Tensor = field(init=False)
    """The rate of the step to come, see `Optimizer.set_rate`: a tensor of no dimension that lies with the parameters.

    A graph reads it anew at each replay. It is float64 on a CPU, where it is as good as a number, else float32.
    """

    def __post_init__(self) -> None:
        device = self.params[0].device if self.params else torch.device("cpu")
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.lr = torch.full((), math.nan, dtype=dtype, device=device)


class Optimizer(ABC):
    """Groups of parameters, each parameter with its momentum buffer.

    Not torch.optim's class of this name: that one imports all of torch.compile, two seconds of a run's start.

    Args:
        groups: which hold each parameter once.
        momentum: by which the buffers are multiplied at each step.
    """

    def __init__(self, groups: Sequence[ParamGroup], momentum: float) -> None:
        self.groups = groups
        self.momentum = momentum
        self._buffers = {parameter: torch.zeros_like(parameter) for group in groups for parameter in group.params}

    def set_rate(self, rate: float, highest: float) -> None:
        """Set each group's learning rate for a step at which the schedule, whose top is `highest`, says `rate`."""
        for group in self.groups:
            group.lr.fill_(group.peak_lr * rate / highest)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that steps change beside the parameters."""
        return [tensor for values in self.state_dict()["state"].values() for tensor in values.values()]

    @torch.no_grad()
    def step(self) -> None:
        """Take a step from the parameters' `grad`."""
        for group in self.groups:
            gradients = [parameter.grad for parameter in group.params if parameter.grad is not None]
            assert len(gradients) == len(group.params), "every parameter of a training step has a gradient"
            self._step_group(group, gradients, [self._buffers[parameter] for parameter in group.params])

    @abstractmethod
    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None: ...

    def zero_grad(self) -> None:
        """Let go of the gradients."""
        for parameter in self._buffers:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on but for parameters and rates, laid out as torch's optimizers do it."""
        return {"state": {i: {"momentum_buffer": buffer} for i, buffer in enumerate(self._buffers.values())}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, or torch's SGD with momentum; tensors keep their own memory format."""
        for i, buffer in enumerate(self._buffers.values()):
            buffer.copy_(state["state"][i]["momentum_buffer"])
