"""A trained net with its normalisation inside: pixels in, logits out."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.data.cifar10 import CLASSES
from deepres.errors import UserError
from deepres.models import ResNet
from deepres.training.evaluate import EVAL_BATCH

IMAGE_SIZE = 32  # pixels; the nets are trained on images of this size and no other

Pixels: TypeAlias = Tensor | NDArray[Any]


class PixelClassifier(nn.Module):
    """A net and the normalisation that it was trained with.

    `forward` takes pixels, uint8 or float in [0, 1], of shape (N, 3, 32, 32) with channels red, green, blue, and gives
    logits, float (N, num_classes). Anything else is refused, since a net computes nonsense from pixels in another
    range or order without a sign of it.

    Attributes:
        net: the bare net, which takes normalised images.
        mean: what is subtracted from pixels / 255, (3, 1, 1) or (3, 32, 32).
        std: what then divides them, (3, 1, 1) or (3, 32, 32).
        name: what the weights are called, such as "resnet20-paper".
        classes: the name of each logit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: ResNet, normalization: Normalization, name: str = "") -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", normalization.mean)
        self.register_buffer("std", normalization.std)
        self.name = name

    @property
    def normalization(self) -> Normalization:
        """The normalisation, as training and `save_weights` have it."""
        return Normalization(self.mean, self.std)

    @property
    def classes(self) -> Sequence[str]:
        """The name of each logit: CIFAR-10's classes, or numbers where there are not ten."""
        num_classes = self.net.fc.out_features
        return CLASSES if num_classes == len(CLASSES) else [str(i) for i in range(num_classes)]

    def forward(self, pixels: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.net(self.normalize(pixels))  # (N, num_classes)
        return logits

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the pooled features before the last layer: pixels (N, 3, 32, 32) -> float (N, 64)."""
        return self.net.forward_features(self.normalize(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn pixels into what the bare net takes, float of the same shape.

        Raises:
            UserError: the pixels are not what `forward` takes; the message says what they are.
        """
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # it has shapes, not values
            check_pixels(pixels)
        scaled = pixels.to(self.mean.dtype)
        if pixels.dtype == torch.uint8:
            scaled = scaled / 255
        return (scaled - self.mean) / self.std

    def predict_logits(self, pixels: Pixels) -> Tensor:
        """Return the logits of any number of images, computed batch by batch in evaluation mode, on the CPU."""
        images = torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels
        check_pixels(images)
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                batches = [self(batch.to(self.mean.device)).float().cpu() for batch in torch.split(images, EVAL_BATCH)]
        finally:
            self.train(training)
        return torch.cat(batches)  # (N, num_classes)

    def predict(self, pixels: Pixels) -> NDArray[np.int64]:
        """Return the class of each image, int64 (N,), as scikit-learn's classifiers do."""
        classes: NDArray[np.int64] = self.predict_logits(pixels).argmax(dim=1).numpy()
        return classes

    def predict_proba(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class for each image, float32 (N, num_classes); rows sum to 1."""
        probabilities: NDArray[np.float32] = self.predict_logits(pixels).softmax(dim=1).numpy()
        return probabilities

    def score(self, pixels: Pixels, labels: Sequence[int] | NDArray[np.int64] | Tensor) -> float:
        """Return the share of images whose predicted class is the label's, between 0 and 1."""
        return float((self.predict(pixels) == np.asarray(labels)).mean())


def check_pixels(pixels: object) -> None:
    """Check what `PixelClassifier` is given.

    Raises:
        UserError: it is no tensor of pixels of the right type, shape and range.
    """
    if fault := _fault(pixels):
        expected = f"(N, 3, {IMAGE_SIZE}, {IMAGE_SIZE})"
        raise UserError(f"expected pixels of shape {expected}, uint8 or float in [0, 1], but {fault}")


def _fault(pixels: object) -> str | None:
    if not isinstance(pixels, Tensor):
        return f"got {type(pixels).__name__}: give a torch.Tensor"
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        return f"got {pixels.dtype}: convert with .to(torch.uint8) if they run from 0 to 255"
    size = (IMAGE_SIZE, IMAGE_SIZE)
    if tuple(pixels.shape[1:]) != (3, *size):
        hint = "resize them, as deepres.images.read_image does"
        if tuple(pixels.shape) == (3, *size):
            hint = "add the batch dimension with .unsqueeze(0)"
        elif tuple(pixels.shape[1:]) == (*size, 3):
            hint = "channels come first: .permute(0, 3, 1, 2)"
        elif tuple(pixels.shape[1:]) == (1, *size):
            hint = "repeat the grey channel with .repeat(1, 3, 1, 1)"
        return f"got shape {tuple(pixels.shape)}: {hint}"
    # What follows looks at the values, which a compiler does not have.
    if pixels.dtype == torch.uint8 or torch.compiler.is_compiling() or not pixels.numel():
        return None
    low, high = (float(bound) for bound in pixels.aminmax())
    if low >= 0 and high <= 1:
        return None
    hint = "divide by 255, or give uint8" if low >= 0 and high <= 255 else "give pixels that are not normalised yet"
    return f"got values from {low:g} to {high:g}: {hint}"
