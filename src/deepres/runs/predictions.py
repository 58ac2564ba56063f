"""What a trained net answers on the test images: predictions.npz of a run directory. Needs no torch."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepres.errors import UserError


@dataclass(frozen=True)
class Predictions:
    """The answers to N test images, in the order of the data set, with what is right."""

    labels: NDArray[np.uint8]
    """(N,), the true classes."""
    predicted: NDArray[np.uint8]
    """(N,), the classes with the highest logit."""
    probability: NDArray[np.float32]
    """(N,), the softmax probability of the predicted class."""

    @classmethod
    def of_logits(cls, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> "Predictions":
        """Take the highest of the logits, (N, num_classes); at most 256 classes."""
        exponentials = np.exp(
            logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        )  # (N, C), the highest is 1
        return cls(
            labels=labels.astype(np.uint8),
            predicted=logits.argmax(axis=1).astype(np.uint8),
            probability=(1 / exponentials.sum(axis=1)).astype(np.float32),
        )

    def encode(self) -> bytes:
        """Return the content of predictions.npz, 50 KB or less for 10,000 images."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, labels=self.labels, predicted=self.predicted, probability=self.probability)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read predictions.npz.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            with np.load(path) as content:
                made = cls(content["labels"], content["predicted"], content["probability"])
        except FileNotFoundError:
            raise UserError(f"no file {path}") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error})") from None
        shapes = {made.labels.shape, made.predicted.shape, made.probability.shape}
        if len(shapes) != 1 or made.labels.ndim != 1 or len(made.labels) == 0:
            raise UserError(f"{path} is damaged (arrays of different lengths, or empty ones)")
        return made

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """Count images by (true class, predicted class): (C, C), which sums to N."""
        pairs = self.labels.astype(np.int64) * num_classes + self.predicted
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
