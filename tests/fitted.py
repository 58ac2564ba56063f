"""Nets that classify a few images perfectly without training: random layers, and a last layer solved for."""

import torch
from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.models import ResNet, build_model
from deepres.weights.classifier import PixelClassifier

NUM_IMAGES = 32  # fewer than the 64 features, so that the last layer can fit any labels


@torch.no_grad()
def fit(net: ResNet, images: Tensor, labels: Tensor, kind: str = "channel", name: str = "") -> PixelClassifier:
    """Give a net random scales and shifts, these images' batch statistics, and the last layer that fits their labels.

    Args:
        net: with any weights.
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        kind: of the normalisation.
        name: of the classifier.
    """
    generator = torch.Generator().manual_seed(1)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.copy_(0.5 + torch.rand(norm.weight.shape, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))
        norm.momentum = 1.0
    classifier = PixelClassifier(net, Normalization.fit(images, kind), name)
    classifier.train().forward_features(images)  # takes the statistics of this batch
    for norm in norms:
        norm.momentum = 0.1
    features = classifier.eval().forward_features(images)  # (N, 64)
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1).double()
    targets = 3 * nn.functional.one_hot(labels, 10).double()
    # Ridge regression: without the penalty, nearly parallel features get huge weights, and with them huge roundings.
    gram = features.T @ features + 1e-2 * torch.eye(features.shape[1])
    solution = torch.linalg.solve(gram, features.T @ targets).float()  # (65, 10)
    net.fc.weight.copy_(solution[:-1].T)
    net.fc.bias.copy_(solution[-1])
    return classifier


def fitted(
    name: str, images: Tensor, labels: Tensor, *, option: str = "A", seed: int = 0, kind: str = "channel"
) -> PixelClassifier:
    """Build a net by name and fit it."""
    net = build_model(name, option=option, generator=torch.Generator().manual_seed(seed))
    return fit(net, images, labels, kind, name)
