"""Gradients taken ahead of the weights, along the mean of their past changes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepres.recipes.recipe import LookAhead
from deepres.training.optimizers import head_parameters


class LookingAhead:
    """Moves the parameters ahead after each step, so that the next one starts from there.

    With the weights w, the mean m of their changes and the reach b of a step, it is computed at w + b m, which it
    turns into the next w; then m moves towards the whole change, that by b m included, by 1 - decay. While b is zero,
    the parameters are w itself.

    Args:
        rule: decay, reach, and the part of the training in which there is any.
        parameters: what looks ahead; changed in place.
    """

    def __init__(self, rule: LookAhead, parameters: Sequence[Tensor]) -> None:
        self.rule = rule
        self._parameters = list(parameters)
        self._last = [parameter.detach().clone() for parameter in self._parameters]  # w
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]  # m
        device = self._parameters[0].device
        self._reach = torch.zeros((), device=device)  # a tensor, which a graph reads anew at each replay

    def set_reach(self, step: int, total_steps: int, rate: float) -> None:
        """Set how far the step after step `step` (from 0) looks ahead.

        Args:
            step: the step to come.
            total_steps: of the schedule.
            rate: its learning rate relative to the schedule's highest.
        """
        inside = self.rule.begin * total_steps <= step + 1 < self.rule.end * total_steps
        self._reach.fill_(self.rule.reach * rate if inside else 0.0)

    @torch.no_grad()
    def move(self) -> None:
        """Take note of a step's change, and move ahead."""
        torch._foreach_lerp_(self._means, torch._foreach_sub(self._parameters, self._last), 1 - self.rule.decay)
        torch._foreach_copy_(self._last, self._parameters)
        torch._foreach_add_(self._parameters, torch._foreach_mul(self._means, self._reach))

    def tensors(self) -> list[Tensor]:
        """Return the tensors that steps change beside the parameters."""
        return [*self._last, *self._means]

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Return what the next step depends on, but for the parameters."""
        return {"last": self._last, "means": self._means}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Restore what `state_dict` returned."""
        for name, tensors in self.state_dict().items():
            for tensor, saved in zip(tensors, state[name], strict=True):
                tensor.copy_(saved)


def looking_ahead(rule: LookAhead | None, model: nn.Module) -> LookingAhead | None:
    """Return what moves all parameters ahead but those of the last linear layer; None without a rule."""
    if rule is None:
        return None
    head = head_parameters(model)
    return LookingAhead(rule, [parameter for parameter in model.parameters() if all(parameter is not p for p in head)])
