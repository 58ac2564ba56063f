"""The images of a run: what it trains on and what it is evaluated on."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepres.data.cifar10 import CLASSES, Split
from deepres.data.datasets import Dataset
from deepres.data.splits import digest_of, stratified_split, stratified_subset
from deepres.recipes.recipe import Recipe
from deepres.runs.image_sets import DataRecord, ImageSet

VAL_FRACTION = 0.1  # 5,000 of 50,000


@dataclass(frozen=True)
class Sets:
    """The images of a run, on its device: uint8 (N, 3, H, W) and int64 (N,) each."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor]
    record: DataRecord
    """What they are, for recipe.json."""
    classes: tuple[str, ...] = CLASSES
    """The name of each label."""

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """The set evaluated at each epoch: val if there is one."""
        return self.test if self.val is None else self.val

    @property
    def image_rows(self) -> int:
        """Rows, and columns, of an image."""
        return int(self.test[0].shape[-1])

    @property
    def num_classes(self) -> int:
        """The number of logits of a net: one for each class, or more where a label is higher."""
        highest = (int(labels.max()) for _, labels in (self.train, self.test))
        return max(len(self.classes), *(label + 1 for label in highest))


def load_sets(data: Dataset, recipe: Recipe, device: torch.device, fraction: float = 1.0) -> Sets:
    """Put the images on the device, split as the recipe says.

    Args:
        data: training and test images.
        recipe: says whether images are held out.
        device: where they are to lie.
        fraction: the share of the images not held out that is trained on; val and test stay whole.

    Raises:
        UserError: the fraction is not above 0 and at most 1, or leaves no image.
    """
    train, val = data.train, None
    if recipe.held_out == "val":
        parts = stratified_split(train.labels, VAL_FRACTION, recipe.split_seed)
        train, val = (train[index] for index in parts)
    if fraction != 1:
        train = train[stratified_subset(train.labels, fraction)]
    record = DataRecord(
        name=data.name,
        fraction=fraction,
        train=_describe(train),
        val=None if val is None else _describe(val),
        test=_describe(data.test),
    )

    def tensors(split: Split) -> tuple[Tensor, Tensor]:
        images = np.ascontiguousarray(split.images)  # as kernels read them
        return torch.from_numpy(images).to(device), torch.from_numpy(split.labels).to(device)

    return Sets(tensors(train), None if val is None else tensors(val), tensors(data.test), record, tuple(data.classes))


def _describe(split: Split) -> ImageSet:
    return ImageSet(len(split.labels), digest_of(split))
