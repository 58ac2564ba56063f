"""Grad-CAM: which parts of an image speak for a class, in the last feature maps that still have places.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
equations 1 and 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepres.errors import UserError
from deepres.inputs import Pixels, as_images
from deepres.models import ResNet
from deepres.weights.classifier import PixelClassifier, evaluating

LAST_STAGE = "layer3"  # of our nets: 64 maps of 8x8


def grad_cam(classifier: PixelClassifier, pixels: Pixels, classes: Sequence[int]) -> Tensor:
    """Return where an image speaks for each of some classes.

    A map is the sum of the last stage's feature maps, each weighted by the mean of the logit's gradient over it, with
    what speaks against the class cut off at 0.

    Args:
        classifier: the net.
        pixels: one image, (1, 3, S, S), see `PixelClassifier`.
        classes: indices of logits.

    Returns:
        float32 (len(classes), h, w), zero or more, on the CPU; 8x8 for our nets on images of 32x32. The values of one
        class can be compared with those of another: of our nets, their sum without the cut is the logit less its bias.

    Raises:
        UserError: these are no pixels of one image, or the net has no layer with places.
    """
    images = as_images(pixels, classifier.image_size)
    if len(images) != 1:
        raise UserError(f"Grad-CAM explains one image, but got {len(images):,}")
    images = images.to(classifier.mean.device)
    with evaluating(classifier), torch.enable_grad():
        layer = _last_layer(classifier, images)
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[-1]

        hook = layer.register_forward_hook(keep)
        try:
            logits = classifier(images)  # (1, num_classes)
        finally:
            hook.remove()
        features = kept[-1]  # (1, C, h, w)
        maps = []
        for index in classes:
            (gradient,) = torch.autograd.grad(logits[0, index], features, retain_graph=True)
            weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, C, 1, 1)
            maps.append((weights * features).sum(dim=1)[0].relu().detach())
    return torch.stack(maps).float().cpu()


@dataclass(frozen=True)
class Explanation:
    """Where an image speaks for each of n classes."""

    titles: tuple[str, ...]
    """The classes with their probabilities, such as "cat 98.1%"."""
    maps: NDArray[np.float32]
    """(n, h, w), see `grad_cam`."""


def explain(
    classifier: PixelClassifier, pixels: NDArray[np.uint8], names: Sequence[str] = (), top: int = 3
) -> Explanation:
    """Explain an image: for the classes that are named or, if none is, for the most probable ones.

    Args:
        classifier: the net.
        pixels: one image, (3, S, S), S the classifier's `image_size`.
        names: of classes.
        top: how many, if none is named.

    Raises:
        UserError: a class is unknown, or these are no pixels of one image.
    """
    classes = list(classifier.classes)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"{classifier.name} knows no class {unknown[0]!r}: its classes are {', '.join(classes)}")
    probabilities = classifier.predict_proba(pixels[None])[0]  # (num_classes,)
    likely = np.argsort(-probabilities, kind="stable")[:top].tolist()
    shown = [classes.index(name) for name in names] or likely
    maps = grad_cam(classifier, pixels[None], shown).numpy()  # (n, h, w)
    return Explanation(tuple(f"{classes[i]} {probabilities[i]:.1%}" for i in shown), maps)


def _last_layer(classifier: PixelClassifier, images: Tensor) -> nn.Module:
    """Return the last stage of one of our nets; of another, the last module whose output has more than one place."""
    if isinstance(classifier.net, ResNet):
        stage: nn.Module = getattr(classifier.net, LAST_STAGE)
        return stage
    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.append(module)

    hooks = [module.register_forward_hook(look) for module in classifier.net.modules()]
    try:
        with torch.no_grad():
            classifier(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise UserError(f"{classifier.name or 'the net'} has no layer with more than one place: Grad-CAM needs one")
    return found[-1]
