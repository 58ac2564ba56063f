"""The optimizers of a recipe."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from deepres.backends.fused.build import KernelsUnavailable
from deepres.errors import UserError, first_line, unknown_name
from deepres.objects import is_object_name, load_object
from deepres.recipes.parts import Muon as MuonRule
from deepres.recipes.recipe import OtherOptimizer, Recipe
from deepres.training.fast_muon import FastMuon, muon_kernel
from deepres.training.muon import Muon, StackedMuon
from deepres.training.optimizer import Optimizer, ParamGroup
from deepres.training.start import norm_parameters


class SGD(Optimizer):
    """torch.optim.SGD in its fused form, the same bit for bit.

    Args:
        groups: see `Optimizer`.
        momentum: see `Optimizer`.
        nesterov: whether a step looks ahead along the momentum.
    """

    def __init__(self, groups: Sequence[ParamGroup], momentum: float, nesterov: bool) -> None:
        super().__init__(groups, momentum)
        self.nesterov = nesterov

    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None:
        torch._fused_sgd_(
            group.params,
            gradients,
            buffers if self.momentum else [],
            weight_decay=group.weight_decay,
            momentum=self.momentum,
            lr=group.lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=False,
        )


class Adam(Optimizer):
    """torch.optim.Adam in its fused form, the same bit for bit.

    Args:
        groups: see `Optimizer`.
        betas: of the running means of the gradient and of its square.
        eps: added to the root of the latter.
    """

    def __init__(self, groups: Sequence[ParamGroup], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, betas[0])
        self.betas = betas
        self.eps = eps
        self._squares = {parameter: torch.zeros_like(parameter) for parameter in self._buffers}
        self._steps = {parameter: torch.zeros((), device=parameter.device) for parameter in self._buffers}

    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None:
        steps = [self._steps[parameter] for parameter in group.params]
        torch._foreach_add_(steps, 1.0)
        torch._fused_adam_(
            group.params,
            gradients,
            buffers,
            [self._squares[parameter] for parameter in group.params],
            [],
            steps,
            lr=group.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=group.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`."""
        tensors = zip(self._steps.values(), self._buffers.values(), self._squares.values(), strict=True)
        names = ("step", "exp_avg", "exp_avg_sq")
        return {"state": {i: dict(zip(names, values, strict=True)) for i, values in enumerate(tensors)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, or torch's Adam."""
        for name, tensors in (("step", self._steps), ("exp_avg", self._buffers), ("exp_avg_sq", self._squares)):
            for i, tensor in enumerate(tensors.values()):
                tensor.copy_(state["state"][i][name])


class OfTorch(Optimizer):
    """An optimizer of `torch.optim`, or of one's own that is built and used as those are.

    Args:
        groups: see `Optimizer`.
        chosen: its class by name, and its own arguments.

    Raises:
        UserError: there is no such class, or it does not take the arguments, or its steps need a closure.
    """

    def __init__(self, groups: Sequence[ParamGroup], chosen: OtherOptimizer) -> None:
        self.groups = [group for group in groups if group.params]
        self._parameters = [parameter for group in self.groups for parameter in group.params]
        make = find_optimizer(chosen.name)
        if any(group.weight_decay for group in groups) and not takes(make, "weight_decay"):
            raise UserError(f"optimizer {chosen.name} takes no weight decay: set weight_decay=0")
        given = [
            {"params": group.params, "lr": group.peak_lr, "weight_decay": group.weight_decay} for group in self.groups
        ]
        try:
            self._optimizer = make(given, lr=self.groups[0].peak_lr, **chosen.arguments)
        except Exception as error:  # whatever the class raises at arguments that it does not take
            raise UserError(f"optimizer {chosen} cannot be built ({first_line(error)})") from None
        closure = inspect.signature(type(self._optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UserError(f"optimizer {chosen.name} evaluates a mini-batch several times a step: take another one")

    def set_rate(self, rate: float, highest: float) -> None:
        """See `Optimizer.set_rate`; not every optimizer takes a tensor."""
        super().set_rate(rate, highest)
        for group, theirs in zip(self.groups, self._optimizer.param_groups, strict=True):
            theirs["lr"] = group.peak_lr * rate / highest

    def step(self) -> None:
        """See `Optimizer.step`."""
        self._optimizer.step()

    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None:
        raise NotImplementedError  # all groups are one step

    def zero_grad(self) -> None:
        """See `Optimizer.zero_grad`."""
        for parameter in self._parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on, as the optimizer itself has it."""
        return dict(self._optimizer.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._optimizer.load_state_dict(state)


def takes(make: Callable[..., Any], argument: str) -> bool:
    """Tell whether a class or function can be called with an argument of a name."""
    parameters = inspect.signature(make).parameters
    return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def find_optimizer(name: str) -> Callable[..., Any]:
    """Return a class of `torch.optim` by name, or what FILE.py:NAME or module:NAME is.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    if is_object_name(name):
        made: Callable[..., Any] = load_object(name)
        return made
    import torch.optim

    known = [key for key, each in vars(torch.optim).items() if isinstance(each, type) and key != "Optimizer"]
    if name not in known:
        raise unknown_name("optimizer", name, sorted(known))
    return getattr(torch.optim, name)  # type: ignore[no-any-return]


def head_parameters(model: nn.Module) -> list[Tensor]:
    """Return the parameters of the last linear layer: what a net ends with.

    Raises:
        UserError: there is no linear layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no linear layer to end with: leave head_rate at 1")
    return list(layers[-1].parameters())


def build_muon(banks: list[Tensor], rule: MuonRule, *, stacked: bool, kernels: str | None) -> Muon:
    """Return Muon of filter banks in the form that suits a device, see `build_optimizers`."""
    if stacked and banks:
        return StackedMuon(banks, rule.learning_rate, rule.momentum)
    if kernels is not None:
        with suppress(KernelsUnavailable):
            return FastMuon(banks, rule.learning_rate, rule.momentum, muon_kernel(rule.momentum, kernels))
    return Muon(banks, rule.learning_rate, rule.momentum)


def build_optimizers(
    recipe: Recipe, model: nn.Module, *, stacked: bool = False, kernels: str | None = None
) -> list[Optimizer]:
    """Return the optimizers that the recipe asks for, which together hold every parameter once.

    Args:
        recipe: how to train, as it applies to the model: see `Recipe.for_chain`.
        model: what to train.
        stacked: whether to take Muon's form for devices on which the number of operations counts.
        kernels: the precision of the fused kernels that compute this net on a CPU, one of which then takes Muon's
            steps, where it can. None: torch takes them.
    """
    norms: list[Tensor] = norm_parameters(model) if recipe.norm_adam else []
    heads: list[Tensor] = head_parameters(model) if recipe.head_rate != 1 else []
    apart = {*norms, *heads}
    convs: list[Tensor] = [p for p in model.parameters() if p.ndim == 4]
    weights: list[Tensor] = [p for p in model.parameters() if p.ndim == 2 and p not in apart]  # of linear layers
    others: list[Tensor] = [p for p in model.parameters() if p.ndim == 1 and p not in apart]
    optimizers: list[Optimizer] = []
    if recipe.muon:
        optimizers.append(build_muon(convs, recipe.muon, stacked=stacked, kernels=kernels))
    else:
        weights = convs + weights
    decay_of_others = recipe.weight_decay if recipe.decay_norm_and_bias else 0.0
    groups = [
        ParamGroup(weights, recipe.learning_rate, recipe.weight_decay),
        ParamGroup(others, recipe.learning_rate, decay_of_others),
    ]
    for head in heads:
        decay = recipe.weight_decay if head.ndim > 1 else decay_of_others
        groups.append(ParamGroup([head], recipe.learning_rate * recipe.head_rate, decay))
    if recipe.optimizer:
        optimizers.append(OfTorch(groups, recipe.optimizer))
    else:
        optimizers.append(SGD(groups, recipe.momentum, recipe.nesterov))
    if recipe.norm_adam:
        group = ParamGroup(norms, recipe.norm_adam.learning_rate)
        optimizers.append(Adam([group], recipe.norm_adam.betas, recipe.norm_adam.eps))
    return optimizers
