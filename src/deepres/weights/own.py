"""Weights of a net of one's own in a file: its state with the normalisation and the names of its classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.errors import UserError, first_line
from deepres.files import write_atomically
from deepres.models import ResNet
from deepres.weights.classifier import PixelClassifier

KEY = "net"  # of the file's metadata: the name of the net, whose source the file does not hold


def save_own_weights(
    path: Path, name: str, model: nn.Module, normalization: Normalization, classes: Sequence[str] = ()
) -> None:
    """Write the state of any module as safetensors, atomically, so that `load_own_weights` reads it."""
    state = {f"net.{key}": tensor.detach().cpu().clone().contiguous() for key, tensor in model.state_dict().items()}
    state |= {"mean": normalization.mean.cpu(), "std": normalization.std.cpu()}
    write_atomically(path, save(state, {KEY: name, "classes": json.dumps(list(classes))}))


@dataclass(frozen=True)
class OwnWeights:
    """What a file holds of a net of one's own."""

    name: str
    """The name of the class or function that made the net."""
    state: dict[str, Tensor]
    normalization: Normalization
    classes: tuple[str, ...]


def own_name(path: Path) -> str | None:
    """Return the name of the net of one's own that a file holds; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(KEY)
    except (OSError, SafetensorError):
        return None


def read_own_weights(path: Path) -> OwnWeights:
    """Read what `save_own_weights` wrote.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # it is no mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights ({first_line(error)})") from None
    if KEY not in metadata or "mean" not in tensors or "std" not in tensors:
        raise UserError(f"{path} holds no weights of a net of your own: leave out --net")
    state = {key.removeprefix("net."): tensor for key, tensor in tensors.items() if key not in ("mean", "std")}
    classes = tuple(json.loads(metadata.get("classes", "[]")))
    return OwnWeights(metadata[KEY], state, Normalization(tensors["mean"], tensors["std"]), classes)


def load_own_weights(weights: OwnWeights, module: nn.Module, path: Path) -> PixelClassifier:
    """Put weights into a module of the class that was trained, and return it as a classifier in evaluation mode.

    Raises:
        UserError: the module has other parameters or buffers than the weights.
    """
    try:
        module.load_state_dict(weights.state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit the net {weights.name} as it is now ({second_line(error)})") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values()):
        raise UserError(f"{path} holds weights that are not finite: the training diverged, or it is damaged")
    return PixelClassifier(cast(ResNet, module), weights.normalization, weights.name, weights.classes or None).eval()


def second_line(error: Exception) -> str:
    """Return what torch says of a state that does not fit, without the line that announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else first_line(error)
