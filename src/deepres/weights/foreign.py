"""Other people's checkpoints: which net they are of, and the same weights as one of ours.

Known by their keys and shapes are the state dicts of the common CIFAR ResNet repositories: blocks named
`layer1.0.conv1` or `stack1.0.conv1`, `stack2a`, `stack2b`; a last layer `linear`, `fc` or `fcOut`; projections
`shortcut` or `downsample`; all of that under `module.` or not, and within `state_dict` or `model` or not.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from deepres.data.augment import Normalization
from deepres.data.cifar10 import Split
from deepres.errors import UserError, unknown_name
from deepres.models import MODELS, ResNet, build_model
from deepres.models.resnet import RESIDUAL_DEPTHS, WIDTHS
from deepres.training.evaluate import error_percent
from deepres.weights.classifier import PixelClassifier

NESTS = ("state_dict", "model_state_dict", "model", "net")  # under which training scripts save the weights
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.")  # of DataParallel, torch.compile and the like
RENAMED = (  # to our names, in this order
    (r"^convIn\.", "conv1."),
    (r"^bnIn\.", "bn1."),
    (r"^(linear|fcOut)\.", "fc."),
    (r"^stack1\.", "layer1."),
    (r"^stack([23])a\.", r"layer\1.0."),
    (r"\.downsample\.", ".shortcut."),
)
NORMS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {  # mean and standard deviation of pixels / 255, by channel
        "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # as torchvision has it
    }
)
# Of nets without parameters in their shortcuts the weights do not tell what the shortcuts were.
WIRINGS: Mapping[str, str] = MappingProxyType(
    {
        "after": "option A shortcuts, zero channels after the others",
        "around": "option A shortcuts, zero channels on both sides of the others",
        "none": "no shortcuts (plain)",
    }
)
NUM_PROBES = 1000  # training images by which the wiring is found out
CLEAR_MARGIN = 5.0  # points of error by which the right wiring must be better than the others

State = dict[str, Tensor]


@dataclass(frozen=True)
class Foreign:
    """The weights of a checkpoint under our names, and the net that they fit."""

    state: State
    depth: int
    option: str
    """"A" where no shortcut has parameters: then the net may be plain, or pad its shortcuts in another way."""


def read_checkpoint(path: Path) -> State:
    """Read a checkpoint's tensors, by torch with `weights_only`, or from a safetensors file.

    Raises:
        UserError: the file is missing or damaged, would run code, or holds no state dict.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"{blocked[1]}, which loading it would run" if blocked else "something that is no tensor or plain data"
        raise UserError(
            f"{path} holds {what}, and is refused: save its state_dict() alone, where you trust it"
        ) from None
    except Exception as error:  # whatever the readers raise at a file of another kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no readable checkpoint ({reason})") from None
    return unwrap(content, path)


def unwrap(content: Any, path: Path) -> State:
    """Find the state dict in what a training script saved, and take off what wrappers put before its keys."""
    while isinstance(content, Mapping) and (nest := next((key for key in NESTS if key in content), None)):
        content = content[nest]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict, but {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds no state dict: {key!r} is {type(value).__name__}, not a tensor")
    state = dict(content)
    while wrapper := next((w for w in WRAPPERS if all(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): tensor for key, tensor in state.items()}
    return state


def recognise(state: State, path: Path) -> Foreign:
    """Find the net that a state dict fits.

    Raises:
        UserError: it fits none; the message names the first key that does not.
    """
    ours = {key: our_name(key) for key in state}
    blocks = {m[1] for name in ours.values() if (m := re.match(r"layer1\.(\d+)\.", name))}
    projections = [name for name in ours.values() if ".shortcut." in name]
    option = "C" if any(name.startswith("layer1.") for name in projections) else "B" if projections else "A"
    # Of a depth that is none of the paper's, the next lower one is compared, and the first key beyond it named.
    depth = max((d for d in RESIDUAL_DEPTHS if d <= 6 * len(blocks) + 2), default=min(RESIDUAL_DEPTHS))
    expected = build_model(f"resnet{depth}", option=option).state_dict()
    refusal = f"{path} is of no net of the paper: beside resnet{depth}, option {option},"
    for key, tensor in state.items():
        if ours[key] not in expected:
            raise UserError(f"{refusal} its key {key!r} has no place")
        if tensor.shape != (shape := expected[ours[key]].shape):
            raise UserError(f"{refusal} its key {key!r} has shape {tuple(tensor.shape)}, not {tuple(shape)}")
    present = set(ours.values())
    for key in expected:
        if key not in present and not key.endswith("num_batches_tracked"):  # which old versions of torch did not save
            raise UserError(f"{refusal} it lacks what we call {key!r}")
    counters = {key: tensor for key, tensor in expected.items() if key not in present}
    renamed = {ours[key]: tensor.to(expected[ours[key]].dtype) for key, tensor in state.items()}
    return Foreign({**counters, **renamed}, depth, option)


def our_name(key: str) -> str:
    """Return what we call a parameter: "stack2b.0.conv1.weight" is our "layer2.1.conv1.weight"."""
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"^stack([23])b\.(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) + 1}.", key)


def build_net(foreign: Foreign, wiring: str = "after") -> ResNet:
    """Build our net with these weights, for one of `WIRINGS`; options B and C have only one."""
    name = f"plain{foreign.depth}" if wiring == "none" else f"resnet{foreign.depth}"
    model = build_model(name, option=foreign.option)
    model.load_state_dict(reorder(foreign.state) if wiring == "around" else foreign.state)
    return model.eval()


def reorder(state: State) -> State:
    """Reorder channels so that a net that pads with zeros on both sides computes the same with zeros at the end.

    Such a net's stage of 32 channels carries the 16 before it as channels 8 to 23, its stage of 64 the 32 before it as
    channels 16 to 47. Named in another order, those first, the channels are ours.
    """
    orders = [torch.arange(WIDTHS[0])]
    for before, width in pairwise(WIDTHS):
        margin = (width - before) // 2
        carried = orders[-1] + margin
        others = torch.tensor([*range(margin), *range(width - margin, width)])
        orders.append(torch.cat([carried, others]))
    reordered = {}
    for key, tensor in state.items():
        if m := re.match(r"layer([123])\.(\d+)\.(conv1|conv2|bn2)\.", key):
            order, first = orders[int(m[1]) - 1], int(m[2]) == 0
            if m[3] == "conv1":  # reads what the block before it, perhaps of the stage before it, gave
                tensor = tensor[:, orders[max(int(m[1]) - 2, 0)] if first else order]
            elif tensor.ndim:  # all but the counter of batches
                tensor = tensor[order]
        elif key == "fc.weight":
            tensor = tensor[:, orders[-1]]
        reordered[key] = tensor.contiguous()
    return reordered


def find_wiring(foreign: Foreign, normalization: Normalization, train: Split) -> tuple[str, dict[str, float]]:
    """Find out which of `WIRINGS` the weights were trained in: that in which they classify training images best.

    Returns:
        The wiring, and the error in percent of every wiring on the first 1,000 training images.

    Raises:
        UserError: none is clearly better than the others.
    """
    images = torch.from_numpy(train.images[:NUM_PROBES])
    labels = torch.from_numpy(train.labels[:NUM_PROBES])
    wirings = WIRINGS if f"plain{foreign.depth}" in MODELS else [w for w in WIRINGS if w != "none"]
    errors = {}
    for wiring in wirings:
        classifier = PixelClassifier(build_net(foreign, wiring), normalization)
        errors[wiring] = error_percent(classifier.predict_logits(images), labels)
    best, second = sorted(errors, key=lambda wiring: errors[wiring])[:2]
    if errors[second] - errors[best] < CLEAR_MARGIN:
        listed = ", ".join(f"{wiring} {error:.1f}%" for wiring, error in errors.items())
        raise UserError(
            f"the weights do not tell how their shortcuts work (error on {len(labels):,} training images: {listed}): "
            f"give --shortcuts {'|'.join(wirings)}, and the right normalisation"
        )
    return best, errors


def get_normalization(norm: str) -> Normalization:
    """Return a key of `NORMS` as what a classifier takes.

    Raises:
        UserError: an unknown name.
    """
    if norm not in NORMS:
        raise unknown_name("normalisation", norm, NORMS)
    return make_normalization(*NORMS[norm])


def make_normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalization:
    """Return three means and three deviations as what a classifier takes.

    Raises:
        UserError: they are not three numbers each, or not in units of pixels / 255.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise UserError(
                f"{name} {', '.join(f'{v:g}' for v in values)} is not three numbers in units of pixels / 255"
            )
    return Normalization(mean=torch.tensor(mean).view(3, 1, 1), std=torch.tensor(std).view(3, 1, 1))
