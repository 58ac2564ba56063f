"""Training state as bytes, and trained weights as safetensors."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.models import MODELS, ResNet, build_model
from deepres.rundir import write_atomically

FORMAT = "deepres-1"


def encode_state(state: dict[str, Any]) -> bytes:
    """Serialise a training state: tensors and plain data."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def decode_state(content: bytes, device: torch.device) -> dict[str, Any]:
    """Read what `encode_state` made; only tensors and plain data are admitted."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    return state


@dataclass(frozen=True)
class TrainedNet:
    """A net in evaluation mode and what its input must be normalised with."""

    name: str
    model: ResNet
    normalization: Normalization


def save_weights(path: Path, name: str, model: ResNet, normalization: Normalization) -> None:
    """Write weights and normalisation (`mean` and `std`, in units of pixels / 255) as safetensors, atomically."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    tensors |= {"mean": normalization.mean.cpu(), "std": normalization.std.cpu()}
    metadata = {
        "format": FORMAT,
        "model": name,
        "option": model.option,
        "num_classes": str(model.fc.out_features),
    }
    write_atomically(path, save(tensors, metadata))


def load_weights(path: Path) -> TrainedNet:
    """Read what `save_weights` wrote.

    Raises:
        UserError: the file is missing, damaged, or not deepres's.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error})") from None
    if metadata.get("format") != FORMAT or metadata.get("model") not in MODELS:
        raise UserError(f"{path} was not written by deepres train: it does not name its net")
    try:
        normalization = Normalization(mean=tensors.pop("mean"), std=tensors.pop("std"))
        for tensor in (normalization.mean, normalization.std):
            if tensor.ndim != 3 or len(tensor) != 3 or not tensor.is_floating_point():
                raise ValueError(f"mean or std has shape {tuple(tensor.shape)}, not (3, H, W)")
        name = metadata["model"]
        model = build_model(name, option=metadata["option"], num_classes=int(metadata["num_classes"]))
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not fit its net {metadata['model']}: {_first_line(error)}") from None
    return TrainedNet(name, model.eval(), normalization)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in lines[:2])
