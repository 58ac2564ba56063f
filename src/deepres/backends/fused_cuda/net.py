"""Training steps and evaluation of the CIFAR-10 nets in Triton kernels."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.backends.cross_entropy import are_hard_labels, soft_cross_entropy
from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.standard import why_not_standard
from deepres.backends.fused_cuda.availability import MULTIPLE
from deepres.backends.fused_cuda.layer import Weights
from deepres.backends.fused_cuda.passes import IMAGE_CHANNELS, PADDED_CHANNELS, Passes
from deepres.backends.in_place import InPlace
from deepres.models import ResNet
from deepres.models.blocks import Block


class FusedCudaNet:
    """Forward and backward pass of a plain or option A net in Triton kernels, on square images.

    It computes with the model's own parameters and buffers and sees every change made to them in place. It reads and
    writes memory that stays where it is and never waits for a result, so that its steps can be recorded as a CUDA
    graph. The same inputs give the same bits each time. Pooled features, logits and loss are float32.

    Without a GPU it computes in Triton's interpreter, where the environment has TRITON_INTERPRET=1: for tests.

    Args:
        model: its parameters are put in the order of channels-last, which optimizer state made before must be in too.
        precision: of activations and their gradients: "bfloat16"; in the interpreter "float32" too.
        capacity: the most images of one `forward_backward`; memory is proportional to it, for each size of image.

    Raises:
        KernelsUnavailable: the model is not one that the kernels were written for.
    """

    name = "fused"

    def __init__(self, model: ResNet, precision: str, capacity: int) -> None:
        self._device = model.fc.weight.device
        if reason := why_not_standard(model, self._device.type):
            raise KernelsUnavailable(reason)
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self._dtype: torch.dtype = getattr(torch, precision)
        self._capacity = capacity
        self._model: ResNet = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = list(model.parameters())
        self._grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._in_place = InPlace(model, type(self).__name__)
        self._num_classes = model.fc.out_features
        self._classes = torch.arange(self._num_classes, device=self._device)
        self._weights = self._collect_weights()
        self._passes: dict[int, Passes] = {}  # by rows of an image

    def _collect_weights(self) -> list[Weights]:
        grads = dict(zip(map(id, self._parameters), self._grads, strict=True))
        pairs = [(self._model.conv1, self._model.bn1)]
        for block in self._model.modules():
            if isinstance(block, Block):
                pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        weights = []
        for conv, norm in pairs:
            rounded, conv_grad = _innermost_channels(conv.weight), _innermost_channels(grads[id(conv.weight)])
            if conv.in_channels == IMAGE_CHANNELS:
                rounded, conv_grad = (
                    F.pad(each, (0, PADDED_CHANNELS - IMAGE_CHANNELS)) for each in (rounded, conv_grad)
                )
            rounded = rounded.to(self._dtype)
            weights.append(Weights(conv, norm, rounded, conv_grad, grads[id(norm.weight)], grads[id(norm.bias)]))
        return weights

    @torch.no_grad()
    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean cross-entropy in the parameters' `grad`; update running statistics.

        Whatever `grad` held is replaced. The gradients lie in memory of this object, which the next call overwrites.

        Args:
            images: float32 (B, 3, S, S), normalised; 1 <= B <= capacity, S a multiple of 4.
            labels: int64 (B,), or distributions over the classes, float32 (B, num_classes). Nobody looks whether they
                are classes of the net: that would be to wait for the GPU.

        Returns:
            The mean loss in nats, float32, and the number of wrong predictions, int64, as tensors of no dimension.

        Raises:
            ValueError: another shape or type, or too many images.
            RuntimeError: a parameter or buffer was replaced rather than changed in place.
        """
        if not 1 <= len(images) <= self._capacity:
            raise ValueError(f"{len(images)} images: it must be 1 to {self._capacity}")
        hard = are_hard_labels(labels, len(images), self._num_classes)
        targets = (labels[:, None] == self._classes).float() if hard else labels
        passes = self._passes_for(images)
        fc = self._model.fc
        *_, fc_weight_grad, fc_bias_grad = self._grads
        with self._on_device():
            self._round_weights()
            pooled = self._pool(passes, images, training=True)
            loss, wrong, logits_grad = soft_cross_entropy(torch.addmm(fc.bias, pooled, fc.weight.t()), targets)
            torch.mm(logits_grad.t(), pooled, out=fc_weight_grad)
            torch.sum(logits_grad, dim=0, out=fc_bias_grad)
            passes.backward(logits_grad @ fc.weight)
            _innermost_channels(self._grads[0]).copy_(self._weights[0].conv_grad[..., :IMAGE_CHANNELS])
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad
        return loss, wrong

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits in evaluation mode, that is with running statistics.

        Args:
            images: float32 (N, 3, S, S), normalised; any N, S a multiple of 4.

        Returns:
            float32 (N, num_classes).

        Raises:
            ValueError: another shape or type.
            RuntimeError: a parameter or buffer was replaced rather than changed in place.
        """
        passes = self._passes_for(images)
        fc = self._model.fc
        with self._on_device():
            self._round_weights()
            pooled = images.new_empty(len(images), fc.in_features)
            for start in range(0, len(images), self._capacity):
                piece = images[start : start + self._capacity]
                pooled[start : start + len(piece)] = self._pool(passes, piece, training=False)
            return torch.addmm(fc.bias, pooled, fc.weight.t())

    def _passes_for(self, images: Tensor) -> Passes:
        size = images.shape[-1]
        square = images.shape[1:] == (IMAGE_CHANNELS, size, size) and size > 0 and size % MULTIPLE == 0
        if not square or images.dtype != torch.float32 or images.device != self._device:
            found = f"{images.dtype} {tuple(images.shape)} on {images.device}"
            raise ValueError(
                f"images are {found}: they must be float32 (B, 3, S, S) on {self._device}, S a multiple of {MULTIPLE}"
            )
        if size not in self._passes:
            with torch.inference_mode(False):  # of which the first evaluation's memory would be no use in training
                self._passes[size] = Passes(self._weights, size, self._capacity, residual=self._model.residual)
        return self._passes[size]

    def _round_weights(self) -> None:
        self._in_place.check()
        # In float32 the kernels read most parameters themselves.
        weights = self._weights if self._dtype != torch.float32 else self._weights[:1]
        rounded = [each.rounded[..., : each.conv.in_channels] for each in weights]
        torch._foreach_copy_(rounded, [_innermost_channels(each.conv.weight) for each in weights])

    def _pool(self, passes: Passes, images: Tensor, *, training: bool) -> Tensor:
        """Return the pooled features, float32 (B, 64)."""
        passes.images[: len(images), ..., :IMAGE_CHANNELS].copy_(images.permute(0, 2, 3, 1))
        return passes.forward(len(images), training=training)

    def _on_device(self) -> AbstractContextManager[object]:
        """Return the context in which Triton starts kernels on the net's GPU."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _innermost_channels(weight: Tensor) -> Tensor:
    """Return a view of a filter bank, (out, in, 3, 3) in channels-last order: (out, 3, 3, in)."""
    return weight.detach().permute(0, 2, 3, 1)
