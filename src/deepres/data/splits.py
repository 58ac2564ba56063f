"""A 45k/5k split of the training images, as the paper has (section 4.2); which images it held out it does not say."""

import numpy as np
from numpy.typing import NDArray

from deepres.errors import UserError

IntArray = NDArray[np.int64]


def stratified_split(labels: IntArray, val_fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Split image indices into train and val, with the same fraction of every class in val.

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
    rng = np.random.default_rng(seed)
    val = np.concatenate(
        [
            rng.permutation(members)[: round(len(members) * val_fraction)]
            for members in (np.flatnonzero(labels == label) for label in np.unique(labels))
        ]
    )
    val.sort()
    train = np.setdiff1d(np.arange(len(labels)), val, assume_unique=True)
    return train, val
