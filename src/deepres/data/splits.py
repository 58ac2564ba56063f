"""Parts of the training images: those held out as val, and a fraction of the others."""

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from deepres.data.cifar10 import Split
from deepres.errors import UserError

IntArray = NDArray[np.int64]
FRACTION_SEED = 1  # another order than that of the held-out images, which are the first of seed 0


def digest_of(split: Split) -> str:
    """Return sixteen hexadecimal digits that depend on all pixels and labels and on their order."""
    digest = sha256(np.ascontiguousarray(split.images, np.uint8).data)
    digest.update(np.ascontiguousarray(split.labels, "<i8").data)
    return digest.hexdigest()[:16]


def stratified_split(labels: IntArray, val_fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split image indices into train and val, with the same fraction of every class in val.

    The paper holds out 5,000 images too (section 4.2); which ones it does not say.

    Args:
        labels: int64 (N,).
        val_fraction: the share of each class that goes to val; 0.1 gives 45k/5k of CIFAR-10's 50k.
        seed: fixes which images; not to be confused with the seed of a training run.

    Returns:
        Two sorted int64 arrays of indices, disjoint, together 0 ... N-1.

    Raises:
        UserError: the fraction is not strictly between 0 and 1.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"val fraction {val_fraction} is not between 0 and 1")
    val = _first_of_each_class(labels, val_fraction, seed)
    train = np.setdiff1d(np.arange(len(labels)), val, assume_unique=True)
    return train, val


def stratified_subset(labels: IntArray, fraction: float) -> IntArray:
    """Return the sorted indices of a fraction of every class; a larger fraction holds all images of a smaller one.

    Raises:
        UserError: the fraction is not above 0 and at most 1, or leaves no image.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction {fraction:g} is not above 0 and at most 1: give the share of the training images")
    index = _first_of_each_class(labels, fraction, FRACTION_SEED)
    if not len(index):
        raise UserError(f"fraction {fraction:g} of {len(labels):,} training images is none: give a larger one")
    return index


def _first_of_each_class(labels: IntArray, fraction: float, seed: int) -> IntArray:
    """Return the sorted indices of a fraction of every class, the first ones of a random order."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate(
        [
            rng.permutation(members)[: round(len(members) * fraction)]
            for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
        ]
    )
    chosen.sort()
    return chosen
