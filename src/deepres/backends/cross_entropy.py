"""The loss of backends that compute gradients without autograd."""

import torch
from torch import Tensor


def are_hard_labels(labels: Tensor, num_images: int, num_classes: int) -> bool:
    """Tell whether labels are classes, int64 (num_images,), or distributions, float32 (num_images, num_classes).

    Raises:
        ValueError: they are neither.
    """
    if labels.shape == (num_images,) and labels.dtype == torch.int64:
        return True
    if labels.shape == (num_images, num_classes) and labels.dtype == torch.float32:
        return False
    raise ValueError(
        f"labels are {labels.dtype} {tuple(labels.shape)}: they must be int64 ({num_images},) or float32 "
        f"({num_images}, {num_classes})"
    )


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean loss in nats, the number of wrong predictions, and the gradient of the loss.

    Args:
        logits: float32 (B, num_classes).
        targets: distributions over the classes, float32 (B, num_classes), of which the most probable one is right.
    """
    log_shares = logits.log_softmax(dim=1)  # (B, num_classes)
    loss = -(targets * log_shares).sum(dim=1).mean()
    wrong = (logits.argmax(dim=1) != targets.argmax(dim=1)).sum()
    return loss, wrong, (log_shares.exp() * targets.sum(dim=1, keepdim=True) - targets) / len(targets)
