"""The stream of training mini-batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from deepres.data.augment import SMALLER, Augmentation, Normalization, crop_and_flip, shrink
from deepres.data.mixing import Draw, Mixing, build_mixing
from deepres.recipes.recipe import Recipe
from deepres.seeding import Stream, derive_generator

DRAWN_TOGETHER = 64  # steps


@dataclass(frozen=True)
class Choice:
    """Which images a mini-batch has, and how each of them is cropped, flipped and mixed.

    Attributes:
        indices: int64 (B,), of the training images.
        augmentation: the crops and flips.
        draw: what is mixed and cut out, where chance decides that before the images are made.
    """

    indices: Tensor
    augmentation: Augmentation
    draw: Draw | None = None

    @classmethod
    def blank(cls, num_images: int, device: torch.device, *, mixed: bool = False) -> "Choice":
        """Return tensors for a choice that `load` fills in."""
        offsets = torch.zeros(num_images, 2, dtype=torch.int64, device=device)
        flips = torch.zeros(num_images, dtype=torch.bool, device=device)
        indices = torch.zeros(num_images, dtype=torch.int64, device=device)
        return cls(indices, Augmentation(offsets, flips), Draw.blank(num_images, device) if mixed else None)

    def load(self, other: "Choice") -> None:
        """Copy another choice of as many images into the tensors of this one."""
        self.indices.copy_(other.indices)
        self.augmentation.offsets.copy_(other.augmentation.offsets)
        self.augmentation.flips.copy_(other.augmentation.flips)
        assert (self.draw is None) == (other.draw is None)
        if self.draw is not None and other.draw is not None:
            self.draw.load(other.draw)


class TrainStream:
    """Endless mini-batches of augmented training images, each of exactly `batch_size`.

    Epochs follow one another without a seam: an epoch is a fresh random order of all images, and a mini-batch
    that reaches the end of one takes the rest from the next, so every image is seen equally often, none is
    dropped and no mini-batch is short. The batch of a step depends on (seed, step) alone: there is no state, and
    a resumed run needs only its step.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        normalization: applied before the padding, so that the padded zeros are the mean.
        batch_size: images per mini-batch.
        pad: pixels of padding on each side before the random crop.
        padding: "zeros" or "reflection".
        flips: "random", "alternating" or "none", see `deepres.recipes.recipe.Recipe`.
        seed: the run's.
        image_size: gives the rows and columns of the images of a step, or None: as they are.
        make_smaller: makes images (B, 3, H, W) of that size, after the crop and the flip.
        mixing: what is done to images and labels after that.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        normalization: Normalization,
        batch_size: int,
        pad: int,
        seed: int,
        padding: str = "zeros",
        flips: str = "random",
        image_size: Callable[[int], int | None] = lambda _: None,
        make_smaller: Callable[[Tensor, int], Tensor] = shrink,
        mixing: Mixing | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.normalization = normalization
        self.batch_size = batch_size
        self.pad = pad
        self.seed = seed
        self.padding = padding
        self.image_size = image_size
        self.make_smaller = make_smaller
        self.mixing = mixing
        self.flips = flips
        self.make_images: Callable[[Choice, int | None], Tensor] = self._make_images
        """Makes the images of a choice, float32 (B, 3, H, W), of so many rows, or as they are, before they are mixed.
        Another function that makes the same may take its place."""
        self._first_flips: Tensor | None = None
        if flips == "alternating":
            self._first_flips = torch.rand(len(images), generator=derive_generator(seed, Stream.FLIPS)) < 0.5
        self._epoch_plan = lru_cache(maxsize=2)(self._draw_epoch)
        self._mixing_plan = lru_cache(maxsize=2)(self._draw_mixing)

    def batch(self, step: int, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return the mini-batch of a step, counted from 0, or a share of it.

        Returns:
            Images, float32 (B, 3, H, W), and labels, int64 (B,), or distributions over the classes, float32 (B, C),
            where the recipe smooths or mixes labels.
        """
        return self.make(self.choose(step, share), step)

    def choose(self, step: int, share: slice = slice(None)) -> Choice:
        """Return which images make up the mini-batch of a step, counted from 0, or a share of it, and how."""
        indices, augmentation = self._choose(step)
        choice = Choice(indices[share], augmentation[share])
        if not self.is_mixed_by_choice:
            return choice
        block, place = divmod(step, DRAWN_TOGETHER)
        return replace(choice, draw=self._mixing_plan(block, len(choice.indices))[place])

    @property
    def is_mixed_by_choice(self) -> bool:
        """Whether `choose` draws what is mixed or cut out."""
        return self.mixing is not None and self.mixing.draws_ahead

    @property
    def is_made_by_choice(self) -> bool:
        """Whether `make` depends on the step by the size of images alone: a graph can hold it for all of that size."""
        return self.mixing is None or self.mixing.is_drawn_alone

    def make(self, choice: Choice, step: int) -> tuple[Tensor, Tensor]:
        """Return the mini-batch of a choice, see `batch`.

        It looks at no value of a tensor, but for an augmentation of one's own; see `is_made_by_choice`.
        """
        images = self.make_images(choice, self.image_size(step))
        labels = self.labels[choice.indices]
        return (images, labels) if self.mixing is None else self.mixing(images, labels, step, choice.draw)

    def _make_images(self, choice: Choice, size: int | None) -> Tensor:
        images = self.normalization(self.images[choice.indices])
        images = crop_and_flip(images, choice.augmentation, self.pad, self.padding)
        return images if size is None else self.make_smaller(images, size)

    def examples(self, num_images: int, sizes: Sequence[int | None]) -> list[tuple[Tensor, Tensor]]:
        """Return the first images as they are trained on but for crops and flips, with labels, once for each size."""
        images, labels = self.normalization(self.images[:num_images]), self.labels[:num_images]
        return [(images if size is None else self.make_smaller(images, size), labels) for size in sizes]

    def _choose(self, step: int) -> tuple[Tensor, Augmentation]:
        """Cut the step's piece out of the concatenated epochs: indices (B,) and the choices for them."""
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        pieces = []
        while position < end:
            epoch, start = divmod(position, len(self.images))
            order, choices = self._epoch_plan(epoch)
            piece = slice(start, start + end - position)
            pieces.append((order[piece], choices[piece]))
            position += len(order[piece])
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat([order for order, _ in pieces]), Augmentation(
            torch.cat([choices.offsets for _, choices in pieces]),
            torch.cat([choices.flips for _, choices in pieces]),
        )

    def _draw_mixing(self, block: int, num_images: int) -> Draw:
        """Return what is drawn for the steps of a block, stacked: a device gets it at once and waits for no step's."""
        assert self.mixing is not None
        rows = self.images.shape[-1]
        steps = range(block * DRAWN_TOGETHER, (block + 1) * DRAWN_TOGETHER)
        draws = [self.mixing.draw(step, num_images, self.image_size(step) or rows) for step in steps]
        return Draw.stack(draws, self.images.device)

    def _draw_epoch(self, epoch: int) -> tuple[Tensor, Augmentation]:
        generator = derive_generator(self.seed, Stream.BATCHES, epoch)
        order = torch.randperm(len(self.images), generator=generator)
        choices = Augmentation.draw(len(self.images), self.pad, generator)
        if self._first_flips is not None:
            choices = replace(choices, flips=self._first_flips[order] ^ bool(epoch % 2))
        if self.flips == "none":
            choices = replace(choices, flips=torch.zeros_like(choices.flips))
        return order.to(self.images.device), choices.to(self.images.device)


def build_stream(
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    num_classes: int = 10,
    normalization: Normalization | None = None,
) -> TrainStream:
    """Return the mini-batches that a recipe makes of training images.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,).
        recipe: says how.
        seed: the run's.
        num_classes: of the labels.
        normalization: of a net that is trained further; None: by the statistics of these images.
    """
    total_steps = recipe.total_steps(len(images))
    rows = images.shape[-1]
    if normalization is None:
        normalization = Normalization.fit(images, recipe.normalization)
    recipe = recipe.for_images_of(rows)
    return TrainStream(
        images,
        labels,
        normalization=normalization.for_images_of(rows),
        batch_size=recipe.batch_size,
        pad=recipe.pad,
        padding=recipe.padding,
        flips=recipe.flips,
        seed=seed,
        image_size=lambda step: recipe.image_size(step, total_steps),
        make_smaller=SMALLER[recipe.small_images],
        mixing=build_mixing(recipe, seed, num_classes, total_steps),
    )
