"""What a net's answers on the test images come to, beyond their error. Needs NumPy alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepres.errors import UserError
from deepres.runs.content import check_numbers

if TYPE_CHECKING:  # imported where it is used, so that the command line starts quickly
    import numpy as np
    from numpy.typing import NDArray

BINS = 15  # of equal width, in which probabilities are held against the share of right answers
TOP = 5


@dataclass(frozen=True)
class Metrics:
    """What the answers to a set of images come to. What needs all logits is None where only the answers were kept."""

    class_errors: Sequence[float | None]
    """The error of the images of each class, in percent; None for a class without images."""
    calibration_error: float
    """The expected calibration error over 15 bins, in percent points: by how much the probability of the predicted
    class differs from the share of right answers, mean over the images."""
    top5_error: float | None = None
    """The share of images whose class is not among the five highest logits, in percent; None for five classes or
    fewer too."""
    negative_log_likelihood: float | None = None
    """The mean over the images, in nats."""
    brier_score: float | None = None
    """The squared distance of the probabilities from the one-hot label, summed over classes and averaged over the
    images: from 0 to 2."""

    @classmethod
    def from_json(cls, content: Any, path: Path) -> "Metrics":
        """Read what `to_json` returned.

        Raises:
            UserError: a value is missing or no number.
        """
        if not isinstance(content, dict) or not isinstance(content.get("class_errors"), list):
            raise UserError(f"{path} is damaged (test_metrics)")
        errors = {f"error of class {i}": error for i, error in enumerate(content["class_errors"])}
        check_numbers(errors, [key for key, error in errors.items() if error is not None], path)
        optional = ("top5_error", "negative_log_likelihood", "brier_score")
        check_numbers(content, ["calibration_error", *(key for key in optional if content.get(key) is not None)], path)
        return cls(content["class_errors"], content["calibration_error"], *map(content.get, optional))

    def to_json(self) -> dict[str, Any]:
        """Return the metrics as plain data."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Reliability:
    """Answers by the probability that the net gives them, in 15 bins of equal width; (BINS,) each."""

    images: "NDArray[np.int64]"
    """How many."""
    probability: "NDArray[np.float64]"
    """The mean probability of the predicted class; NaN in an empty bin, as the next."""
    right: "NDArray[np.float64]"
    """The share of right answers."""

    @property
    def error(self) -> float:
        """The expected calibration error, in percent points."""
        import numpy as np

        gaps = np.abs(self.probability - self.right) * self.images
        return float(100 * np.nansum(gaps) / self.images.sum())


def reliability(probability: "NDArray[Any]", right: "NDArray[np.bool_]") -> Reliability:
    """Hold probabilities against what became of them.

    Args:
        probability: of the predicted class of each image, (N,).
        right: whether the prediction is, (N,).
    """
    import numpy as np

    probability = np.nan_to_num(probability.astype(np.float64))  # of logits that are no numbers
    # A bin holds its upper end: a probability of 1 belongs to the last.
    places = np.clip(np.ceil(probability * BINS).astype(np.int64) - 1, 0, BINS - 1)
    images = np.bincount(places, minlength=BINS)
    with np.errstate(invalid="ignore"):
        return Reliability(
            images,
            np.bincount(places, weights=probability, minlength=BINS) / images,
            np.bincount(places, weights=right, minlength=BINS) / images,
        )


def class_errors(labels: "NDArray[Any]", predicted: "NDArray[Any]", num_classes: int) -> list[float | None]:
    """Return the error of each class in percent, two decimals; None for a class without images."""
    import numpy as np

    images = np.bincount(labels, minlength=num_classes)
    wrong = np.bincount(labels[labels != predicted], minlength=num_classes)
    return [round(100 * int(w) / int(n), 2) if n else None for w, n in zip(wrong, images, strict=True)]


def metrics_of_logits(logits: "NDArray[Any]", labels: "NDArray[Any]") -> Metrics:
    """Return all metrics of logits, float (N, C), and labels, whole numbers (N,); one image or more."""
    import numpy as np

    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))  # of the probabilities, (N, C)
    labels = labels.astype(np.int64)
    num_images, num_classes = logs.shape
    predicted = logits.argmax(axis=1)
    chances = np.exp(logs)
    of_label = logs[np.arange(num_images), labels]
    top5_error = None
    if num_classes > TOP:
        above = (logits > logits[np.arange(num_images), labels, None]).sum(axis=1)
        top5_error = round(100 * float((above >= TOP).mean()), 2)
    squares = (chances**2).sum(axis=1) - 2 * np.exp(of_label) + 1
    return Metrics(
        class_errors=class_errors(labels, predicted, num_classes),
        calibration_error=round(reliability(chances.max(axis=1), predicted == labels).error, 4),
        top5_error=top5_error,
        negative_log_likelihood=_finite(-of_label.mean()),
        brier_score=_finite(squares.mean()),
    )


def _finite(value: Any) -> float | None:
    """Return a number with six decimals; None for what is none, of logits that are none."""
    return round(float(value), 6) if math.isfinite(value) else None
