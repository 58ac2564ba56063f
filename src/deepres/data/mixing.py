"""Ingredients of a mini-batch after crops and flips: cutout, mixup, CutMix, smoothed labels, a function of one's own.

They are pure functions of (seed, step), so that a resumed run sees the same mini-batches.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from deepres.errors import UserError
from deepres.objects import load_object
from deepres.recipes.recipe import Recipe
from deepres.seeding import Stream, derive_generator, derive_seed

Augment = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Mixing:
    """What a recipe does to mini-batches after crops and flips.

    Args:
        recipe: with at least one of the ingredients.
        seed: the run's.
        num_classes: of the labels.
    """

    recipe: Recipe
    seed: int
    num_classes: int

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels that the net is trained on.

        Args:
            images: float32 (B, 3, H, W), normalised, so that zero is the mean.
            labels: int64 (B,).
            step: counted from 0.

        Returns:
            The images, and labels as they are, int64 (B,), or as distributions, float32 (B, num_classes).
        """
        recipe = self.recipe
        generator = derive_generator(self.seed, Stream.MIXING, step)
        if recipe.augmentation is not None:
            images, labels = augment(recipe.augmentation, images, labels, generator, self.num_classes)
        if recipe.cutout is not None:
            images = cutout(images, recipe.cutout, generator)
        if recipe.mixup is None and recipe.cutmix is None and not recipe.label_smoothing:
            return images, labels
        targets = distributions(labels, self.num_classes, recipe.label_smoothing)
        if recipe.mixup is None and recipe.cutmix is None:
            return images, targets
        draw = np.random.default_rng(derive_seed(self.seed, Stream.MIXING, step))
        partners = torch.randperm(len(images), generator=generator).to(images.device)
        if recipe.mixup is not None:
            share = float(draw.beta(recipe.mixup, recipe.mixup))
            images = torch.lerp(images[partners], images, share)
        else:
            assert recipe.cutmix is not None
            images, share = cutmix(images, partners, float(draw.beta(recipe.cutmix, recipe.cutmix)), draw)
        return images, torch.lerp(targets[partners], targets, share)


def distributions(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return labels, int64 (B,) or float32 (B, C), as float32 (B, C), a share of each spread over all classes."""
    targets = F.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
    return targets * (1 - smoothing) + smoothing / num_classes


def cutout(images: Tensor, size: int, generator: Generator) -> Tensor:
    """Return images with a square of `size` pixels a side set to zero, around a random pixel of each.

    The square may reach over the edge, as in the source: DeVries, Taylor, 2017.
    """
    batch, _, height, width = images.shape
    inside = []
    for extent in (height, width):
        first = torch.randint(extent, (batch, 1), generator=generator) - size // 2  # (B, 1)
        place = torch.arange(extent)[None]  # (1, extent)
        inside.append(((place >= first) & (place < first + size)).to(images.device))  # (B, extent)
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def cutmix(images: Tensor, partners: Tensor, share: float, draw: np.random.Generator) -> tuple[Tensor, float]:
    """Put into each image a rectangle of its partner; return the images and the share of each that is left its own.

    Args:
        images: (B, C, H, W).
        partners: int64 (B,), whose rectangle each image gets.
        share: of the image that is to stay; the rectangle is cut off at the edges.
        draw: gives the rectangle's centre.
    """
    height, width = images.shape[2:]
    bounds = []
    for extent in (height, width):
        side = int(extent * (1 - share) ** 0.5)
        first = int(draw.integers(extent)) - side // 2
        bounds.append((max(first, 0), min(first + side, extent)))
    (top, bottom), (left, right) = bounds
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def augment(
    name: str, images: Tensor, labels: Tensor, generator: Generator, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Call an augmentation of one's own, and check what it returns.

    Raises:
        UserError: it fails, or returns something else than images and labels of the same number.
    """
    function: Augment = load_object(name)
    try:
        made, targets = function(images, labels, generator)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"augmentation {name} fails ({type(error).__name__}: {error})") from error
    if not isinstance(made, Tensor) or made.shape != images.shape or made.dtype != images.dtype:
        found = f"{made.dtype} {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise UserError(f"augmentation {name} returns images {found}: they must be float32 {tuple(images.shape)}")
    shapes = {torch.int64: labels.shape, torch.float32: (len(labels), num_classes)}
    if not isinstance(targets, Tensor) or targets.shape != shapes.get(targets.dtype):
        found = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        wanted = f"int64 ({len(labels)},) or float32 ({len(labels)}, {num_classes})"
        raise UserError(f"augmentation {name} returns labels {found}: they must be {wanted}")
    return made, targets


def build_mixing(recipe: Recipe, seed: int, num_classes: int) -> Mixing | None:
    """Return what a recipe does to mini-batches after crops and flips; None where that is nothing."""
    off = recipe.cutout is None and recipe.mixup is None and recipe.cutmix is None and recipe.augmentation is None
    return None if off and not recipe.label_smoothing else Mixing(recipe, seed, num_classes)
