"""Evaluation: the single view of every image, none dropped (section 4.2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.inputs import check_labels

EVAL_BATCH = 1000  # images; divides 10,000, so that every batch has the same compiled shape


@torch.inference_mode()
def predict_logits(
    forward: Callable[[Tensor], Tensor], images: Tensor, normalization: Normalization, batch_size: int = EVAL_BATCH
) -> Tensor:
    """Return the logits of every image, in order: uint8 (N, 3, H, W) -> float32 (N, num_classes).

    Args:
        forward: a model in evaluation mode, or a backend's `logits`.
        images: on the device of the model.
        normalization: the model's.
        batch_size: how many images `forward` gets at a time.
    """
    return torch.cat([forward(normalization(batch)) for batch in torch.split(images, batch_size)])


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Count images by (true class, predicted class): int64 (C, C), which sums to N.

    Args:
        logits: float (N, C).
        labels: int64 (N,).

    Raises:
        UserError: the labels do not fit the logits.
    """
    num_classes = logits.shape[1]
    labels = _checked(labels, logits)
    pairs = labels * num_classes + logits.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def error_percent(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose highest logit is not the label's, in percent, two decimals.

    Raises:
        UserError: the labels do not fit the logits, or there are no images.
    """
    labels = _checked(labels, logits)
    if not len(labels):
        raise UserError("there are no images of which to take the error")
    return percent(int((logits.argmax(dim=1) != labels).sum()), len(labels))


def _checked(labels: Tensor, logits: Tensor) -> Tensor:
    if logits.ndim != 2:
        raise UserError(f"expected logits of shape (N, num_classes), but got {tuple(logits.shape)}")
    return torch.from_numpy(check_labels(labels, *logits.shape)).to(logits.device)


def percent(part: int, whole: int) -> float:
    """Return `part` in percent of `whole`, two decimals."""
    return round(100 * part / whole, 2)
