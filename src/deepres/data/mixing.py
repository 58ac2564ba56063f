"""Ingredients of a mini-batch after crops and flips: cutout, mixup, CutMix, smoothed labels, a function of one's own.

They are pure functions of (seed, step), so that a resumed run sees the same mini-batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from deepres.errors import UserError
from deepres.objects import load_object
from deepres.recipes.recipe import Recipe
from deepres.seeding import Stream, derive_generator, derive_seed

Augment = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Draw:
    """What chance decides about a mini-batch, or about several of them, stacked.

    Attributes:
        squares: int64 (B, 2), the first row and column of the square that `cutout` makes zero.
        partners: int64 (B,), the image that each is mixed with.
        share: float32 (), of each image and label that stays its own.
        box: int64 (4,), what `cutmix` takes from the partner: first row, row after the last, and so the columns.
    """

    squares: Tensor
    partners: Tensor
    share: Tensor
    box: Tensor

    @classmethod
    def blank(cls, num_images: int, device: torch.device) -> "Draw":
        """Return tensors that `load` fills in."""
        shapes = ((num_images, 2), (num_images,), (4,))
        squares, partners, box = (torch.zeros(shape, dtype=torch.int64, device=device) for shape in shapes)
        return cls(squares, partners, torch.ones((), device=device), box)

    @classmethod
    def stack(cls, draws: Sequence["Draw"], device: torch.device) -> "Draw":
        """Return several in one, on a device."""
        rows = zip(*(draw._tensors() for draw in draws), strict=True)
        return cls(*(torch.stack(row).to(device) for row in rows))

    def __getitem__(self, i: int) -> "Draw":
        return Draw(*(tensor[i] for tensor in self._tensors()))

    def load(self, other: "Draw") -> None:
        """Copy another draw into the tensors of this one."""
        for tensor, values in zip(self._tensors(), other._tensors(), strict=True):
            tensor.copy_(values)

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.squares, self.partners, self.share, self.box


@dataclass(frozen=True)
class Mixing:
    """What a recipe does to mini-batches after crops and flips.

    Args:
        recipe: with at least one of the ingredients.
        seed: the run's.
        num_classes: of the labels.
        total_steps: the length of the training.
    """

    recipe: Recipe
    seed: int
    num_classes: int
    total_steps: int

    @property
    def is_drawn_alone(self) -> bool:
        """Whether `draw` has all of a step's chance in it: not that of an augmentation of one's own."""
        return self.recipe.augmentation is None

    @property
    def draws_ahead(self) -> bool:
        """Whether `draw` has all of a step's chance in it, and there is some: smoothed labels have none."""
        chances = (self.recipe.cutout, self.recipe.mixup, self.recipe.cutmix)
        return self.is_drawn_alone and any(chance is not None for chance in chances)

    def draw(self, step: int, num_images: int, rows: int) -> Draw:
        """Return what chance decides about a step, counted from 0, with so many images of so many rows and columns."""
        return self._draw(self._generator(step), step, num_images, rows)

    def __call__(self, images: Tensor, labels: Tensor, step: int, draw: Draw | None = None) -> tuple[Tensor, Tensor]:
        """Return the images and labels that the net is trained on.

        Given a draw, it looks at no value of a tensor, and does not depend on the step.

        Args:
            images: float32 (B, 3, H, H), normalised, so that zero is the mean.
            labels: int64 (B,).
            step: counted from 0.
            draw: the step's; None: it is drawn here.

        Returns:
            The images, and labels as they are, int64 (B,), or as distributions, float32 (B, num_classes).
        """
        recipe = self.recipe
        if draw is None:
            generator = self._generator(step)
            if recipe.augmentation is not None:
                images, labels = augment(recipe.augmentation, images, labels, generator, self.num_classes)
            draw = self._draw(generator, step, len(images), images.shape[-1])
        if recipe.cutout is not None:
            images = cutout(images, recipe.cutout, draw.squares.to(images.device))
        if recipe.mixup is None and recipe.cutmix is None and not recipe.label_smoothing:
            return images, labels
        targets = distributions(labels, self.num_classes, recipe.label_smoothing)
        if recipe.mixup is None and recipe.cutmix is None:
            return images, targets
        partners, share = draw.partners.to(images.device), draw.share.to(images.device)
        if recipe.mixup is not None:
            images = torch.lerp(images[partners], images, share)
        else:
            images = cutmix(images, partners, draw.box.to(images.device))
        return images, torch.lerp(targets[partners], targets, share)

    def _generator(self, step: int) -> Generator:
        return derive_generator(self.seed, Stream.MIXING, step)

    def _draw(self, generator: Generator, step: int, num_images: int, rows: int) -> Draw:
        recipe, drawn = self.recipe, Draw.blank(num_images, torch.device("cpu"))
        if recipe.cutout is not None:
            first = [torch.randint(rows, (num_images, 1), generator=generator) for _ in range(2)]
            drawn.squares.copy_(torch.cat(first, dim=1) - recipe.cutout // 2)
        if (recipe.mixup is None and recipe.cutmix is None) or step >= round(recipe.mixing_until * self.total_steps):
            return drawn
        draw = np.random.default_rng(derive_seed(self.seed, Stream.MIXING, step))
        drawn.partners.copy_(torch.randperm(num_images, generator=generator))
        if recipe.mixup is not None:
            drawn.share.fill_(float(draw.beta(recipe.mixup, recipe.mixup)))
        else:
            assert recipe.cutmix is not None
            box, share = draw_box(float(draw.beta(recipe.cutmix, recipe.cutmix)), rows, draw)
            drawn.box.copy_(torch.tensor(box))
            drawn.share.fill_(share)
        return drawn


def distributions(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return labels, int64 (B,) or float32 (B, C), as float32 (B, C), a share of each spread over all classes."""
    classes = torch.arange(num_classes, device=labels.device)
    targets = (labels[:, None] == classes).float() if labels.ndim == 1 else labels
    return targets * (1 - smoothing) + smoothing / num_classes


def cutout(images: Tensor, size: int, first: Tensor) -> Tensor:
    """Return images (B, C, H, W) with a square of `size` pixels a side set to zero in each.

    Args:
        images: of any channels.
        size: rows and columns.
        first: int64 (B, 2), the first row and column, which may lie outside: so the square reaches over the edge, as
            in the source, DeVries, Taylor, 2017, where its centre is a random pixel of the image.
    """
    inside = []
    for i, extent in enumerate(images.shape[2:]):
        place = torch.arange(extent, device=images.device)[None]  # (1, extent)
        inside.append((place >= first[:, i, None]) & (place < first[:, i, None] + size))  # (B, extent)
    rows, columns = inside
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def draw_box(share: float, rows: int, draw: np.random.Generator) -> tuple[list[int], float]:
    """Draw the place of a rectangle in images of so many rows and columns.

    Args:
        share: of the image that is to stay outside.
        rows: and columns.
        draw: gives the rectangle's centre; at the edges it is cut off.

    Returns:
        First row, row after the last, and so the columns; and the share that does stay.
    """
    side = int(rows * (1 - share) ** 0.5)
    bounds = []
    for _ in range(2):
        first = int(draw.integers(rows)) - side // 2
        bounds += [max(first, 0), min(first + side, rows)]
    top, bottom, left, right = bounds
    return bounds, 1 - (bottom - top) * (right - left) / rows**2


def cutmix(images: Tensor, partners: Tensor, box: Tensor) -> Tensor:
    """Return images (B, C, H, W) with a rectangle of another image in each.

    Args:
        images: of any channels.
        partners: int64 (B,), whose rectangle each image gets.
        box: int64 (4,), see `draw_box`.
    """
    inside = []
    for extent, first, end in zip(images.shape[2:], box[0::2], box[1::2], strict=True):
        place = torch.arange(extent, device=images.device)
        inside.append((place >= first) & (place < end))
    rows, columns = inside
    return torch.where(rows[:, None] & columns, images[partners], images)


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
    if targets.dtype == torch.int64 and not bool(((targets >= 0) & (targets < num_classes)).all()):
        wrong = int(targets[(targets < 0) | (targets >= num_classes)][0])
        raise UserError(f"augmentation {name} returns the label {wrong}: labels must be 0 to {num_classes - 1}")
    return made, targets


def build_mixing(recipe: Recipe, seed: int, num_classes: int, total_steps: int) -> Mixing | None:
    """Return what a recipe does to mini-batches after crops and flips; None where that is nothing."""
    off = recipe.cutout is None and recipe.mixup is None and recipe.cutmix is None and recipe.augmentation is None
    return None if off and not recipe.label_smoothing else Mixing(recipe, seed, num_classes, total_steps)
