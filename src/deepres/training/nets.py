"""The net of a run: one of ours by name, or one of one's own."""

import inspect
from collections.abc import Callable, Mapping
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepres.errors import UserError
from deepres.models import build_model
from deepres.models.preact import PreActResNet, preact_depth
from deepres.objects import is_object_name, load_object
from deepres.recipes.recipe import Recipe
from deepres.seeding import Stream, derive_generator, derive_seed

Net = str | nn.Module | Callable[[int], nn.Module]
"""What is trained: a name that `build_model` knows, or "preresnet20" and other pre-activation nets; a module, whose
weights are the first ones; or what makes one of the number of classes.

The module takes normalised images, float32 (B, 3, H, W), and gives logits (B, num_classes)."""

TRAINED_DIMENSIONS = (1, 2, 4)  # of batch normalisation and biases, linear layers, convolutions


def name_of(net: Net) -> str:
    """Return what a net is called in files and messages."""
    if isinstance(net, str):
        return net
    if isinstance(net, nn.Module):
        return type(net).__name__
    return str(getattr(net, "__name__", type(net).__name__))


def build_net(net: Net, *, option: str, seed: int, num_classes: int) -> nn.Module:
    """Build the net of a run with the weights that its seed gives; torch's random numbers are left alone.

    Raises:
        UserError: an unknown name or option, or what was called has not made a module.
    """
    if isinstance(net, str):
        generator = derive_generator(seed, Stream.WEIGHTS)
        if (depth := preact_depth(net)) is not None:
            if option != "A":
                raise UserError(f"option {option!r} is a kind of shortcut of plain nets' twins: {net} has projections")
            return PreActResNet(depth, num_classes=num_classes, generator=generator)
        return build_model(net, option=option, num_classes=num_classes, generator=generator)
    if option != "A":
        raise UserError(f"option {option!r} is a kind of shortcut of our nets: {name_of(net)} has none")
    if isinstance(net, nn.Module):
        return _trainable(deepcopy(net), net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, Stream.WEIGHTS))
        made = net(num_classes)
    if not isinstance(made, nn.Module):
        raise UserError(f"{name_of(net)}({num_classes}) is a {type(made).__name__}: it must be a torch.nn.Module")
    return _trainable(made, net)


def _trainable(module: nn.Module, net: Net) -> nn.Module:
    """Return a module of one's own if recipes train all of its parameters.

    Raises:
        UserError: they do not; the message names a parameter.
    """
    for key, parameter in module.named_parameters():
        if parameter.ndim not in TRAINED_DIMENSIONS or not parameter.requires_grad:
            what = "frozen" if not parameter.requires_grad else f"of {parameter.ndim} dimensions"
            raise UserError(
                f"{name_of(net)}: the parameter {key} is {what}: recipes train all parameters, of 1, 2 or 4 dimensions"
            )
    return module


def describe_net(net: Net) -> dict[str, Any]:
    """Return what recipe.json holds of a net of one's own, beside its name: digests of its source and of its weights.

    A net's source is the whole file that its class or function is in; None where there is none, as in a console.
    """
    if isinstance(net, str):
        return {}
    weights = None
    if isinstance(net, nn.Module):
        weights = state_digest(net.state_dict())
    source = source_digest(type(net) if isinstance(net, nn.Module) else net)
    return {"net": {"source": source, "weights": weights}}


def describe_sources(recipe: Recipe) -> dict[str, Any]:
    """Return what recipe.json holds of a recipe's ingredients of one's own: digests of their sources, by name."""
    named = [recipe.augmentation, recipe.optimizer.name if recipe.optimizer else None]
    own = [name for name in named if name is not None and is_object_name(name)]
    return {"sources": {name: source_digest(load_object(name)) for name in own}} if own else {}


def source_digest(thing: Any) -> str | None:
    """Return a digest of the whole file that a class or function is in; None where there is none, as in a console."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
        return sha256(Path(str(file)).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return None


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return sixteen hexadecimal digits that depend on all tensors of a state dict and on their names."""
    digest = sha256()
    for key, tensor in state.items():
        digest.update(key.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
