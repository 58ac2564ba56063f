"""Weights in files: what `save_weights` writes, and everything that may hold weights of one of our nets.

A file of any tool is a tree of mappings, lists and tensors, which is to say tensors by dotted keys. Weights of a net
are found by one rule: there is a prefix under which all the keys of one of our nets are, by our names or by those of
the common CIFAR ResNet repositories. Whatever else there is, is left over and listed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.files import write_atomically
from deepres.models import ResNet, build_model, parse_name
from deepres.weights.classifier import PixelClassifier, check_classes, evaluating
from deepres.weights.content import FORMAT, State
from deepres.weights.read import check_values, find_net


@dataclass(frozen=True)
class TrainedNet:
    """A net in evaluation mode, what its input must be normalised with, and the names of its classes."""

    name: str
    model: ResNet
    normalization: Normalization
    classes: tuple[str, ...] | None = None
    """None where the file names none."""
    title: str = ""
    """What the weights are called, where the file tells it, such as "resnet20-paper"."""

    def classifier(self, name: str = "") -> PixelClassifier:
        """Return the module that takes pixels, in evaluation mode; `name` is what the weights are called."""
        return PixelClassifier(self.model, self.normalization, name or self.title or self.name, self.classes).eval()


def save_weights(
    path: Path, name: str, model: ResNet, normalization: Normalization, classes: Sequence[str] | None = None
) -> None:
    """Write weights, normalisation and class names as safetensors, atomically, so that `load_weights` reads them.

    Pruned and parametrized weights are written as the values that they have; buffers that tools have added are not.

    Args:
        path: the file.
        name: the net's name, see `build_model`.
        model: the net.
        normalization: `mean` and `std`, in units of pixels / 255.
        classes: the name of each logit; None is those that `PixelClassifier` gives.

    Raises:
        UserError: the file would give another net than this one: its layers or its head are not those of the net
            called `name`, or a weight is not finite.

    Example:
        >>> import deepres
        >>> from pathlib import Path
        >>> model = deepres.load_pretrained("resnet20")
        >>> deepres.save_weights(Path("copy.safetensors"), "resnet20", model.net, model.normalization)
    """
    option = getattr(model, "option", "A")
    head = getattr(model, "fc", None)
    if parse_name(name) is None or not isinstance(head, nn.Linear):
        what = (
            f"its last layer is {type(head).__name__}, not Linear" if parse_name(name) else f"there is no net {name!r}"
        )
        raise UserError(f"cannot write {path}: {what}; save its state_dict() with torch.save instead")
    fresh = _fresh_net(name, option, head.out_features)
    tensors: State = {}
    for key, expected in fresh.state_dict().items():
        tensor = _effective(model, key)
        if tensor is None or tensor.shape != expected.shape:
            found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
            raise UserError(f"cannot write {path}: {key!r} of this net is {found}, so that it is no {name}")
        tensors[key] = tensor.detach().cpu().contiguous()
    tensors |= {"mean": normalization.mean.detach().cpu(), "std": normalization.std.detach().cpu()}
    check_values(tensors, f"cannot write {path}:")
    fresh.load_state_dict({key: tensors[key] for key in fresh.state_dict()})
    if not _agree(model, fresh, normalization.image_size):
        raise UserError(f"cannot write {path}: this net computes otherwise than a {name} that has its weights")
    metadata = {"format": FORMAT, "model": name, "option": option, "num_classes": str(head.out_features)}
    if classes is not None:
        metadata["classes"] = json.dumps(check_classes(classes, head.out_features))
    write_atomically(path, save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata))


def check_output(path: Path, source: Path | None = None) -> None:
    """Raise the error for a file that writing weights would destroy: the source, or what deepres has not written."""
    if not path.exists():
        return
    if source is not None and source.exists() and path.samefile(source):
        raise UserError(f"{path} is the file that is read: name another for the result")
    try:
        with safe_open(path, framework="pt") as file:
            ours = (file.metadata() or {}).get("format") == FORMAT
    except Exception:  # whatever the reader raises at a file of another kind
        ours = False
    if not ours:
        raise UserError(f"{path} exists, and is no weights file of deepres: name another, or delete it")


def _effective(model: nn.Module, key: str) -> Tensor | None:
    """Return the value that a weight has in the forward pass, whatever computes it."""
    owner, _, name = key.rpartition(".")
    try:
        module = model.get_submodule(owner)
    except AttributeError:
        return None
    original, mask = getattr(module, f"{name}_orig", None), getattr(module, f"{name}_mask", None)
    if isinstance(original, Tensor) and isinstance(mask, Tensor):  # of torch.nn.utils.prune
        return original * mask
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def _fresh_net(name: str, option: str, num_classes: int) -> ResNet:
    """Build a net whose weights are to be replaced, and leave torch's random numbers as they are."""
    with torch.random.fork_rng(devices=[]):
        return build_model(name, option=option, num_classes=num_classes)


def _agree(model: nn.Module, fresh: nn.Module, size: int) -> bool:
    """Tell whether two nets give the same logits on two images, but for rounding; true if these overflow."""
    weight = next(model.parameters())
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with evaluating(model), evaluating(fresh), torch.no_grad():
        actual = model(images.to(weight.device, weight.dtype)).float().cpu()
        expected = fresh.float()(images.float())
    if not expected.isfinite().all():  # of a net trained for a few steps, whose statistics are none yet
        return True
    exact = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    rounding = 1e-3 if exact else 0.1  # GPUs may convolve in TF32
    return bool((actual - expected).abs().max() <= rounding * (1 + expected.abs().max()))


def load_weights(path: Path) -> TrainedNet:
    """Read weights that deepres let out, in any of the forms in which it does, in float32.

    That is what `save_weights` writes, a Hub folder's model.safetensors, and a `PixelClassifier`'s state_dict, saved
    by torch or safetensors, alone or within a checkpoint.

    Raises:
        UserError: the file is missing, damaged, not finite, or does not name its net and normalisation.

    Example:
        >>> import deepres
        >>> from pathlib import Path
        >>> model = deepres.load_pretrained("resnet20")
        >>> deepres.save_weights(Path("copy.safetensors"), "resnet20", model.net, model.normalization)
        >>> deepres.load_weights(Path("copy.safetensors")).name
        'resnet20'
    """
    found = find_net(path)
    if found.name is None or found.normalization is None:
        lacks = "its normalisation" if found.name else "which net it is of"
        raise UserError(
            f"{path} holds weights of a net of {found.depth} layers, but does not tell {lacks}: "
            f"`deepres import {path} -o NAME.safetensors` makes a file that every command reads"
        )
    model = _fresh_net(found.name, found.option, found.num_classes).float()
    model.load_state_dict(found.state)
    return TrainedNet(found.name, model.eval(), found.normalization, found.classes, found.title)
