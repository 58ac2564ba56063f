"""Layer responses of figure 7: how strongly each 3x3 layer answers, after its batch normalisation."""

import math

from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.weights.evaluate import EVAL_BATCH, predict_logits


class Moments:
    """The variance of numbers that come in batches. Their mean is of the order of their spread, as it is behind BN."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self.sum_of_squares = 0.0

    def add(self, values: Tensor) -> None:
        """Take a batch, float32 (B, C, H, W): in float32 within a map, in float64 beyond."""
        self.count += values.numel()
        self.sum += float(values.sum(dim=(2, 3)).double().sum())
        self.sum_of_squares += float(values.square().sum(dim=(2, 3)).double().sum())

    @property
    def std(self) -> float:
        """The standard deviation of all numbers so far."""
        return math.sqrt(max(0.0, self.sum_of_squares / self.count - (self.sum / self.count) ** 2))


def layer_responses(
    model: nn.Module, images: Tensor, normalization: Normalization, batch_size: int = EVAL_BATCH
) -> dict[str, float]:
    """Return the standard deviation of each 3x3 layer's response by the layer's name, in the order of the layers.

    The response is the output after batch normalisation and before the nonlinearity or the addition (figure 7): a
    standard deviation over all images, channels and positions, the net in evaluation mode.

    Args:
        model: in evaluation mode; each of its 3x3 convolutions has a batch normalisation behind it.
        images: uint8 (N, 3, H, W) on the model's device.
        normalization: the model's.
        batch_size: how many images the model gets at a time.

    Raises:
        UserError: a 3x3 convolution has no batch normalisation right behind it.
    """
    convolutions = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    moments: dict[str, Moments] = {}
    latest: tuple[str, Tensor] | None = None  # what a 3x3 convolution has put out last

    def convolved(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal latest
        assert isinstance(module, nn.Conv2d)
        latest = convolutions[module], output

    def normalized(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if latest is not None and latest[1] is inputs[0]:
            moments.setdefault(latest[0], Moments()).add(output)

    hooks = [module.register_forward_hook(convolved) for module in convolutions]
    hooks += [m.register_forward_hook(normalized) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        predict_logits(model, images, normalization, batch_size)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in convolutions.values() if name not in moments]:
        raise UserError(f"layer {missing[0]} has no batch normalisation right behind it, so it has no such response")
    return {name: moment.std for name, moment in moments.items()}
