"""The optimizers of a recipe."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deepres.recipes import Recipe

# Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024: a quintic whose iteration drives all
# singular values of a matrix towards 1, to within 30%, fast.
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return for each matrix approximately the semi-orthogonal one nearest to it: its singular values become about 1.

    Args:
        matrices: float (B, M, N), M <= N.

    Returns:
        Same shape and type; singular values between 0.7 and 1.2 unless they were tiny.
    """
    a, b, c = QUINTIC
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (B, M, M)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(Optimizer):
    """SGD with Nesterov momentum, each step of a filter bank made semi-orthogonal, each filter bank kept at one norm.

    A filter bank (out channels, in channels, 3, 3) counts as a matrix of one row a filter. Batch normalisation after a
    convolution makes the net indifferent to the bank's norm, so it is set to the square root of the number of rows
    before each step, at which a step, whose norm is about the same, turns the bank by about `lr` radians.

    Source: Jordan et al., "Muon", 2024; without the optimizer's many small products: banks of one shape are stacked.

    Args:
        params: convolutions' weights, (out, in, height, width) with out <= in * height * width.
        lr: the size of a step relative to the weights.
        momentum: of the gradients' running sum.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step from the parameters' `grad`."""
        for group in self.param_groups:
            stacks: dict[Any, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                stacks[parameter.shape].append(parameter)
            for parameters in stacks.values():
                self._step_stack(parameters, group["lr"], group["momentum"])

    def _step_stack(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters), "every parameter of a training step has a gradient"
        buffers = [self._buffer(parameter) for parameter in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        updates = torch.stack(torch._foreach_add(gradients, buffers, alpha=momentum))  # (B, out, in, h, w)
        updates = orthogonalize(updates.flatten(2)).view_as(updates)
        target_norm = len(parameters[0]) ** 0.5
        norms = torch._foreach_norm(parameters)
        torch._foreach_div_(parameters, [norm / target_norm for norm in norms])
        torch._foreach_add_(parameters, list(updates.unbind()), alpha=-lr)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def build_optimizers(recipe: Recipe, model: nn.Module) -> list[Optimizer]:
    """Return the optimizers that the recipe asks for, which together hold every parameter once.

    Each group of parameters has its highest learning rate under "peak_lr".
    """
    convs = [p for p in model.parameters() if p.ndim == 4]
    weights = [p for p in model.parameters() if p.ndim == 2]  # of the linear layer
    others = [p for p in model.parameters() if p.ndim == 1]  # batch normalisation and biases
    optimizers: list[Optimizer] = []
    if recipe.muon:
        optimizers.append(Muon(convs, recipe.muon.learning_rate, recipe.muon.momentum))
    else:
        weights = convs + weights
    optimizers.append(
        torch.optim.SGD(
            [
                {"params": weights, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": recipe.weight_decay if recipe.decay_norm_and_bias else 0.0},
            ],
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            fused=True,
        )
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
