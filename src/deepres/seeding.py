"""One seed per run; every generator is derived from it."""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What a generator is for. Different streams of the same seed are independent."""

    WEIGHTS = 0
    BATCHES = 1
    FLIPS = 2
    MIXING = 3


def derive_seed(seed: int, stream: Stream, index: int = 0) -> int:
    """Mix a run's seed with a stream and an index (such as the epoch) into a 64-bit seed."""
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(int(stream), index))
    return int(sequence.generate_state(1, np.uint64)[0])


def derive_generator(seed: int, stream: Stream, index: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on (seed, stream, index) alone.

    It is always the CPU's, so that a seed means the same weights and the same batches on every device.
    """
    return torch.Generator().manual_seed(derive_seed(seed, stream, index))
