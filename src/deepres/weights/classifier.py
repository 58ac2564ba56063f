"""A trained net with its normalisation and its class names inside: pixels in, logits out."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.data.cifar10 import CLASSES
from deepres.errors import UserError
from deepres.inputs import Labels, Pixels, as_images, check_labels, check_pixels
from deepres.models import ResNet, net_name
from deepres.weights.evaluate import EVAL_BATCH


class PixelClassifier(nn.Module):
    """A net, the normalisation that it was trained with, and the names of its classes.

    `forward` takes pixels, uint8 or float in [0, 1], of shape (N, 3, S, S) with channels red, green, blue, and gives
    logits, float (N, num_classes). Anything else raises a `UserError`, since a net computes nonsense from pixels in
    another range or order without a sign of it. S is `image_size`, 32 for all nets trained on CIFAR.

    Its `state_dict` describes itself: an entry `_extra_state` holds the kind of net and the class names, so that
    `load_pretrained` reads it from any file.

    Args:
        net: takes normalised images, float (N, 3, S, S), and gives logits.
        normalization: what the net was trained with.
        name: what the weights are called, such as "resnet20-paper".
        classes: the name of each logit; None is CIFAR-10's, or numbers where there are not ten logits.

    Raises:
        UserError: the class names are not one for each logit.

    Attributes:
        net: the bare net.
        mean: what is subtracted from pixels / 255, (3, 1, 1) or (3, S, S).
        std: what then divides them, (3, 1, 1) or (3, S, S).
        name: see above.

    Example:
        >>> import deepres
        >>> model = deepres.load_pretrained("resnet20")
        >>> model.classes[:3]
        ('airplane', 'automobile', 'bird')
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: ResNet, normalization: Normalization, name: str = "", classes: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", normalization.mean)
        self.register_buffer("std", normalization.std)
        self.name = name
        self._classes: tuple[str, ...] | None = None
        if classes is not None:
            self.classes = classes

    @property
    def normalization(self) -> Normalization:
        """The normalisation, as training and `save_weights` have it."""
        return Normalization(self.mean, self.std)

    @property
    def image_size(self) -> int:
        """Rows and columns of the images, see `Normalization.image_size`."""
        return self.normalization.image_size

    @property
    def classes(self) -> Sequence[str]:
        """The name of each logit: those that were set, else CIFAR-10's, or numbers where there are not ten."""
        num_classes = self.count_logits()
        if self._classes is not None and len(self._classes) == num_classes:
            return self._classes
        return CLASSES if num_classes == len(CLASSES) else [str(i) for i in range(num_classes)]

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self._classes = check_classes(names, self.count_logits())

    def count_logits(self) -> int:
        """Return the number of logits: of the last layer or, with a head of another kind, of one image's answer."""
        head = getattr(self.net, "fc", None)
        if isinstance(self.net, ResNet) and isinstance(head, nn.Linear):
            return head.out_features
        with evaluating(self), torch.no_grad():
            black = torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8, device=self.mean.device)
            return int(self(black).shape[1])

    def forward(self, pixels: Tensor) -> Tensor:  # noqa: D102
        logits: Tensor = self.net(self.normalize(pixels))  # (N, num_classes)
        return logits

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the pooled features before the last layer: pixels (N, 3, S, S) -> float (N, 64)."""
        return self.net.forward_features(self.normalize(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn pixels into what the bare net takes, float of the same shape and of the net's type.

        Raises:
            UserError: the pixels are not what `forward` takes; the message says what they are.
        """
        return normalize_pixels(pixels, self.mean, self.std, next(self.net.parameters(), self.mean))

    def predict_logits(self, pixels: Pixels) -> Tensor:
        """Return the logits of any number of images, computed batch by batch in evaluation mode, on the CPU.

        Raises:
            UserError: these are no pixels, or the net gives logits that are not finite.
        """
        images = as_images(pixels, self.image_size)
        with evaluating(self), torch.inference_mode():
            batches = [self(batch.to(self.mean.device)).float().cpu() for batch in torch.split(images, EVAL_BATCH)]
        logits = torch.cat(batches)  # (N, num_classes)
        if not logits.isfinite().all():
            raise UserError(
                f"{self.name or 'the net'} gives logits that are not finite: its weights are damaged, diverged in "
                f"training, or overflow in {next(self.net.parameters(), self.mean).dtype}"
            )
        return logits

    def predict(self, pixels: Pixels) -> NDArray[np.int64]:
        """Return the class of each image, int64 (N,), as scikit-learn's classifiers do."""
        classes: NDArray[np.int64] = self.predict_logits(pixels).argmax(dim=1).numpy()
        return classes

    def predict_proba(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class for each image, float32 (N, num_classes); rows sum to 1."""
        probabilities: NDArray[np.float32] = self.predict_logits(pixels).softmax(dim=1).numpy()
        return probabilities

    def score(self, pixels: Pixels, labels: Labels) -> float:
        """Return the share of images whose predicted class is the label's, between 0 and 1.

        Raises:
            UserError: these are no pixels, there are none, or the labels do not fit them.
        """
        logits = self.predict_logits(pixels)
        if not len(logits):
            raise UserError("there are no images to score")
        checked = check_labels(labels, *logits.shape)
        return float((logits.argmax(dim=1).numpy() == checked).mean())

    def get_extra_state(self) -> Tensor:
        """Return what weights do not tell: a JSON object as a tensor of bytes, which every kind of file takes."""
        described: dict[str, Any] = {"name": self.name, "classes": self._classes}
        if isinstance(self.net, ResNet):
            described |= {"model": net_name(self.net), "option": self.net.option}
        return torch.frombuffer(bytearray(json.dumps(described).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Take over the class names.

        Raises:
            UserError: the weights are of another kind of net, though their shapes may be the same.
        """
        described = read_extra_state(state)
        if isinstance(self.net, ResNet) and described.get("model"):
            theirs = f"{described['model']}, option {described.get('option')}"
            if theirs != (ours := f"{net_name(self.net)}, option {self.net.option}"):
                raise UserError(f"the weights are of {theirs}, but this net is {ours}")
        if names := described.get("classes"):
            self._classes = check_classes(names, len(names))  # shown only if they are as many as the logits

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if f"{prefix}_extra_state" in missing_keys:  # earlier versions wrote none
            missing_keys.remove(f"{prefix}_extra_state")


@torch.fx.wrap  # a leaf for tracers, which have no values to check
def normalize_pixels(pixels: Tensor, mean: Tensor, std: Tensor, weight: Tensor) -> Tensor:
    """Check pixels and normalise them, in the type of `mean`; the result has the type of `weight`."""
    check_pixels(pixels, Normalization(mean, std).image_size)
    scaled = pixels.to(mean.dtype)
    if pixels.dtype == torch.uint8:
        scaled = scaled / 255
    return ((scaled - mean) / std).to(weight.dtype)


def read_extra_state(state: object) -> dict[str, Any]:
    """Read what `PixelClassifier.get_extra_state` gives; anything else describes nothing."""
    if not isinstance(state, Tensor) or state.dtype != torch.uint8 or state.ndim != 1:
        return {}
    try:
        described = json.loads(bytes(state.tolist()))
    except ValueError:
        return {}
    return described if isinstance(described, dict) and isinstance(described.get("classes") or [], list) else {}


def check_classes(names: object, num_classes: int) -> tuple[str, ...]:
    """Return class names as a tuple.

    Raises:
        UserError: they are not `num_classes` different names.
    """
    expected = f"expected {num_classes} different class names"
    if isinstance(names, str) or not isinstance(names, Sequence | np.ndarray):
        raise UserError(f"{expected}, but got {type(names).__name__}: give a list of names")
    listed = [str(name) if isinstance(name, np.str_) else name for name in names]
    if wrong := [name for name in listed if not isinstance(name, str) or not name.strip()]:
        raise UserError(f"{expected}, but got {wrong[0]!r} among them")
    if len(listed) != num_classes:
        raise UserError(f"{expected}, but got {len(listed)}")
    if len(set(listed)) != len(listed):
        raise UserError(f"{expected}, but {next(n for n in listed if listed.count(n) > 1)!r} is there twice")
    return tuple(listed)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and each of its parts back into the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
