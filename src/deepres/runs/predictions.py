"""What a trained net answers on the test images: predictions.npz of a run directory. Needs no torch."""

import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepres.errors import UserError

Classes = NDArray[np.unsignedinteger[Any]]
"""Indices of classes: uint8, or uint16 where there are more than 256."""


@dataclass(frozen=True)
class Predictions:
    """The answers to N test images, in the order of the data set, with what is right."""

    labels: Classes
    """(N,), the true classes."""
    predicted: Classes
    """(N,), the classes with the highest logit."""
    probability: NDArray[np.float32]
    """(N,), the softmax probability of the predicted class."""
    logits: NDArray[np.float16] | None = None
    """(N, num_classes), rounded to float16; None in files of versions that did not keep them."""

    @classmethod
    def of_logits(cls, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> "Predictions":
        """Take the highest of the logits, (N, num_classes)."""
        exponentials = np.exp(
            logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        )  # (N, C), the highest is 1
        kind = np.uint8 if logits.shape[1] <= 256 else np.uint16
        largest = np.finfo(np.float16).max
        return cls(
            labels=labels.astype(kind),
            predicted=logits.argmax(axis=1).astype(kind),
            probability=(1 / exponentials.sum(axis=1)).astype(np.float32),
            logits=logits.clip(-largest, largest).astype(np.float16),
        )

    def encode(self) -> bytes:
        """Return the content of predictions.npz, 250 KB or less for 10,000 images of ten classes."""
        buffer = io.BytesIO()
        logits: dict[str, Any] = {} if self.logits is None else {"logits": self.logits}
        np.savez_compressed(
            buffer, labels=self.labels, predicted=self.predicted, probability=self.probability, **logits
        )
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read predictions.npz.

        Raises:
            UserError: the file is missing or damaged.
        """
        try:
            with np.load(path) as content:
                logits = content.get("logits")
                made = cls(content["labels"], content["predicted"], content["probability"], logits)
        except FileNotFoundError:
            raise UserError(f"no file {path}") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is damaged ({error})") from None
        shapes = {made.labels.shape, made.predicted.shape, made.probability.shape}
        if made.logits is not None:
            shapes.add(made.logits.shape[:1])
        if len(shapes) != 1 or made.labels.ndim != 1 or len(made.labels) == 0:
            raise UserError(f"{path} is damaged (arrays of different lengths, or empty ones)")
        if made.logits is not None and (made.logits.ndim != 2 or made.labels.max() >= made.logits.shape[1]):
            raise UserError(f"{path} is damaged (logits of shape {made.logits.shape})")
        return made

    def confusion(self, num_classes: int) -> NDArray[np.int64]:
        """Count images by (true class, predicted class): (C, C), which sums to N."""
        pairs = self.labels.astype(np.int64) * num_classes + self.predicted
        return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
