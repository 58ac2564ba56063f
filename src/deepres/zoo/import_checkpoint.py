"""Other people's weights, as `find_net` has found them in a file: the same weights as a net of ours."""

import re
from collections.abc import Mapping
from itertools import pairwise
from types import MappingProxyType

import torch

from deepres.data.augment import Normalization
from deepres.data.cifar10 import CLASSES, Split
from deepres.errors import UserError, unknown_name
from deepres.models import MODELS, ResNet, build_model
from deepres.models.resnet import WIDTHS
from deepres.weights.classifier import PixelClassifier
from deepres.weights.content import State
from deepres.weights.evaluate import error_percent
from deepres.weights.read import FoundNet

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


def build_net(found: FoundNet, wiring: str = "after") -> ResNet:
    """Build our net with these weights, for one of `WIRINGS`; options B and C have only one."""
    name = f"plain{found.depth}" if wiring == "none" else f"resnet{found.depth}"
    model = build_model(name, option=found.option, num_classes=found.num_classes).float()
    model.load_state_dict(reorder(found.state) if wiring == "around" else found.state)
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


def find_wiring(found: FoundNet, normalization: Normalization, train: Split) -> tuple[str, dict[str, float]]:
    """Find out which of `WIRINGS` the weights were trained in: that in which they classify training images best.

    Returns:
        The wiring, and the error in percent of every wiring on the first 1,000 training images.

    Raises:
        UserError: none is clearly better than the others, or the net's classes are not CIFAR-10's.
    """
    wirings = WIRINGS if f"plain{found.depth}" in MODELS else [w for w in WIRINGS if w != "none"]
    choices = "|".join(wirings)
    if found.num_classes != len(CLASSES):
        raise UserError(
            f"the weights do not tell how their shortcuts work, nor do CIFAR-10's images, since they distinguish "
            f"{found.num_classes} classes: give --shortcuts {choices}"
        )
    images = torch.from_numpy(train.images[:NUM_PROBES])
    labels = torch.from_numpy(train.labels[:NUM_PROBES])
    errors = {}
    for wiring in wirings:
        classifier = PixelClassifier(build_net(found, wiring), normalization)
        try:
            errors[wiring] = error_percent(classifier.predict_logits(images), labels)
        except UserError:  # in a wrong wiring, activations may grow beyond all numbers
            errors[wiring] = 100.0
    best, second = sorted(errors, key=lambda wiring: errors[wiring])[:2]
    if errors[second] - errors[best] < CLEAR_MARGIN:
        listed = ", ".join(f"{wiring} {error:.1f}%" for wiring, error in errors.items())
        raise UserError(
            f"the weights do not tell how their shortcuts work (error on {len(labels):,} training images: {listed}): "
            f"give --shortcuts {choices}, and the right normalisation"
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
