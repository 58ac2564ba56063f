"""Training steps and evaluation of the CIFAR-10 nets in the kernels of kernels.cpp."""

from ctypes import CDLL, addressof

import torch
from torch import Tensor, nn

from deepres.backends.cross_entropy import are_hard_labels, soft_cross_entropy
from deepres.backends.fused.build import (
    CAPABILITIES,
    SIZES,
    Input,
    KernelsUnavailable,
    Layer,
    kernels_error,
    load_kernels,
)
from deepres.backends.fused.pages import HugePages
from deepres.backends.fused.standard import why_not_standard
from deepres.backends.in_place import InPlace
from deepres.models import ResNet
from deepres.models.blocks import Block
from deepres.models.resnet import WIDTHS

SIZE = max(SIZES)  # rows and columns of the largest image, for which memory is laid out


def why_unsupported(model: nn.Module, device: torch.device, precision: str) -> str | None:
    """Return why the kernels cannot compute this net here, or None. It does not look at the processor."""
    if device.type != "cpu":
        return f"there are no kernels for device {device.type!r}"
    if precision not in CAPABILITIES:
        return f"there are no kernels of precision {precision!r}"
    return why_not_standard(model)


class FusedNet:
    """Forward and backward pass of a plain or option A net in hand-written kernels, on images of one of `SIZES`.

    It computes with the model's own parameters and buffers and sees every change made to them in place. Results
    are the same bit for bit from run to run, for any number of threads (`torch.set_num_threads`) and any capacity.

    Args:
        model: its parameters are made contiguous, which optimizer state made before must be too.
        precision: of activations: "float32" or "bfloat16".
        capacity: the most images of one `forward_backward`; memory is proportional to it.
        unit: what computes, see `load_kernels`.

    Raises:
        KernelsUnavailable: the model is not supported (see `why_unsupported`), or the kernels are not available.
    """

    name = "fused"

    def __init__(self, model: ResNet, precision: str, capacity: int, unit: str | None = None) -> None:
        if reason := why_unsupported(model, model.fc.weight.device, precision):
            raise KernelsUnavailable(reason)
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}: it must be at least 1")
        self._precision = precision
        self._unit = unit
        self._kernels = load_kernels(precision, SIZE, unit)  # of the size at hand
        self._kernels_by_size: dict[int, CDLL] = {SIZE: self._kernels}
        self._dtype = getattr(torch, precision)
        self._capacity = capacity
        self._model: ResNet = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._parameters = list(model.parameters())
        self._grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._grad_of = {id(p): grad.data_ptr() for p, grad in zip(self._parameters, self._grads, strict=True)}
        self._in_place = InPlace(model, type(self).__name__)  # the layers hold the addresses
        self._memory: list[Tensor] = []
        self._pages = HugePages()
        self._build_layers(model)

        num_classes, num_features = model.fc.weight.shape
        self._num_classes = num_classes
        self._pooled = self._allocate(capacity, num_features, dtype=torch.float32)
        self._pooled_grad = self._allocate(capacity, num_features, dtype=torch.float32)
        self._logits = torch.zeros(capacity, num_classes)
        self._chunk_grads = self._allocate(self._kernels.chunk_grads_size(), dtype=torch.float32)
        # The gradients of a block's output, of what lies between its convolutions, and of its input.
        self._block_grads = [self._allocate(capacity, SIZE, SIZE, WIDTHS[0]) for _ in range(3)]

    def _allocate(self, *shape: int, dtype: torch.dtype | None = None) -> int:
        """Return the address of memory that lives as long as this object."""
        self._memory.append(self._pages.zeros(*shape, dtype=dtype or self._dtype))
        return self._memory[-1].data_ptr()

    def _build_layers(self, model: ResNet) -> None:
        self._images = self._allocate(self._capacity, SIZE, SIZE, 4)
        self._layers = [self._build_layer(model.conv1, model.bn1, SIZE, Input(values=self._images))]
        size, shortcut, shortcut_channels = SIZE, None, 0  # the shortcut into the next block's input
        for block in model.modules():
            if not isinstance(block, Block):
                continue
            channels = block.conv1.in_channels
            # A residual block's input is kept for its shortcut.
            values = self._allocate(self._capacity, size, size, channels) if model.residual else None
            size //= block.conv1.stride[0]
            source = Input(addressof(self._layers[-1]), shortcut, shortcut_channels, values)
            self._layers.append(self._build_layer(block.conv1, block.bn1, size, source))
            source = Input(addressof(self._layers[-1]), None, 0, None)
            self._layers.append(self._build_layer(block.conv2, block.bn2, size, source))
            if model.residual:
                shortcut, shortcut_channels = values, channels
        values = self._allocate(self._capacity, size, size, WIDTHS[-1])
        self._pool_input = Input(addressof(self._layers[-1]), shortcut, shortcut_channels, values)

        self._layer_addresses = [addressof(layer) for layer in self._layers]
        self._layer_table = torch.tensor(self._layer_addresses)

    def _build_layer(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, out_size: int, source: Input) -> Layer:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        out_channels, in_channels = conv.weight.shape[:2]
        num_weights = self._kernels.packed_size(in_channels, out_channels)
        per_channel = [self._allocate(out_channels, dtype=torch.float32) for _ in range(7)]
        scale, shift, mean, inverse_std, a, b, c = per_channel
        return Layer(
            in_channels=in_channels,
            out_channels=out_channels,
            descending=source.previous is not None and not Layer.from_address(source.previous).descending,
            input=source,
            output=self._allocate(self._capacity, out_size, out_size, out_channels),
            forward_weight=self._allocate(num_weights),
            backward_weight=self._allocate(num_weights) if source.previous else None,
            sums=self._allocate(self._capacity, 2, out_channels, dtype=torch.float32),
            weight=conv.weight.data_ptr(),
            norm_weight=norm.weight.data_ptr(),
            norm_bias=norm.bias.data_ptr(),
            weight_grad=self._grad_of[id(conv.weight)],
            norm_weight_grad=self._grad_of[id(norm.weight)],
            norm_bias_grad=self._grad_of[id(norm.bias)],
            running_mean=norm.running_mean.data_ptr(),
            running_var=norm.running_var.data_ptr(),
            num_batches_tracked=norm.num_batches_tracked.data_ptr(),
            scale=scale,
            shift=shift,
            mean=mean,
            inverse_std=inverse_std,
            a=a,
            b=b,
            c=c,
            eps=norm.eps,
            momentum=norm.momentum,
        )

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean cross-entropy in the parameters' `grad`; update running statistics.

        Whatever `grad` held is replaced. The gradients lie in memory of this object, which the next call overwrites.

        Args:
            images: float32 (B, 3, S, S), normalised; 1 <= B <= capacity, S one of `SIZES`.
            labels: int64 (B,), or distributions over the classes, float32 (B, num_classes).

        Returns:
            The mean loss in nats, float32, and the number of wrong predictions, int64, as tensors of no dimension.

        Raises:
            ValueError: another shape or type, too many images, or a label that is no class.
            RuntimeError: a parameter or buffer was replaced rather than changed in place.
        """
        num_images = len(images)
        if not 1 <= num_images <= self._capacity:
            raise ValueError(f"{num_images} images: it must be 1 to {self._capacity}")
        hard = are_hard_labels(labels, num_images, self._num_classes)
        self._use_kernels_for(images)
        threads = torch.get_num_threads()
        kernels, logits = self._kernels, self._logits.data_ptr()
        fc = self._model.fc
        weight, weight_grad, bias_grad = fc.weight.data_ptr(), self._grad_of[id(fc.weight)], self._grad_of[id(fc.bias)]
        labels = labels.contiguous()
        loss = torch.zeros(())

        self._pack_weights(threads)
        self._forward(images, threads, training=True)
        if hard:
            wrong = kernels.cross_entropy(num_images, self._num_classes, logits, labels.data_ptr(), loss.data_ptr())
        else:
            loss, num_wrong, logits_grad = soft_cross_entropy(self._logits[:num_images], labels)
            self._logits[:num_images].copy_(logits_grad)
            wrong = int(num_wrong)
        if wrong < 0:
            raise ValueError(f"a label is none of the classes 0 to {self._num_classes - 1}")
        kernels.linear_backward(
            num_images,
            self._num_classes,
            logits,  # now their gradient
            self._pooled,
            weight,
            weight_grad,
            bias_grad,
            self._pooled_grad,
            threads,
        )
        self._backward(num_images, threads)
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            parameter.grad = grad
        return loss, torch.tensor(wrong)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits in evaluation mode, that is with running statistics.

        Args:
            images: float32 (N, 3, S, S), normalised; any N, S one of `SIZES`.

        Returns:
            float32 (N, num_classes).

        Raises:
            ValueError: another shape or type.
            RuntimeError: a parameter or buffer was replaced rather than changed in place.
            UserError: there are no kernels for images of this size.
        """
        self._use_kernels_for(images)
        threads = torch.get_num_threads()
        self._pack_weights(threads)
        logits = torch.empty(len(images), self._num_classes)
        for start in range(0, len(images), self._capacity):
            piece = images[start : start + self._capacity]
            self._forward(piece, threads, training=False)
            logits[start : start + len(piece)] = self._logits[: len(piece)]
        return logits

    def _use_kernels_for(self, images: Tensor) -> None:
        size = images.shape[-1]
        square = images.shape[1:] == (3, size, size) and size in SIZES
        if not square or images.dtype != torch.float32 or images.device.type != "cpu":
            found = f"{images.dtype} {tuple(images.shape)} on {images.device.type}"
            sizes = ", ".join(map(str, SIZES))
            raise ValueError(f"images are {found}: they must be float32 (B, 3, S, S) on cpu, S one of {sizes}")
        if size not in self._kernels_by_size:
            try:
                self._kernels_by_size[size] = load_kernels(self._precision, size, self._unit)
            except KernelsUnavailable as error:
                raise kernels_error(str(error)) from None
        self._kernels = self._kernels_by_size[size]

    def _pack_weights(self, threads: int) -> None:
        self._in_place.check()
        self._kernels.pack_weights(self._layer_table.data_ptr(), len(self._layers), threads)

    def _forward(self, images: Tensor, threads: int, *, training: bool) -> None:
        """Compute self._logits of up to `capacity` images."""
        kernels, num_images, fc = self._kernels, len(images), self._model.fc
        kernels.load_images(num_images, images.data_ptr(), *images.stride(), self._images, threads)
        for layer in self._layer_addresses:
            kernels.layer_forward(layer, num_images, training, threads)
        kernels.pool_forward(addressof(self._pool_input), num_images, self._pooled, threads)
        kernels.linear_forward(
            num_images,
            self._num_classes,
            self._pooled,
            fc.weight.data_ptr(),
            fc.bias.data_ptr(),
            self._logits.data_ptr(),
            threads,
        )

    def _backward(self, num_images: int, threads: int) -> None:
        """Compute the gradients of all layers from self._pooled_grad."""
        backward, chunk_grads = self._kernels.layer_backward, self._chunk_grads
        out_grad, middle_grad, in_grad = self._block_grads
        self._kernels.pool_backward(addressof(self._pool_input), num_images, self._pooled_grad, out_grad, threads)
        first, *others = self._layer_addresses
        for conv2, conv1 in zip(others[::-2], others[-2::-2], strict=True):
            shortcut_grad = out_grad if self._model.residual else None
            backward(conv2, num_images, out_grad, None, middle_grad, chunk_grads, threads)
            backward(conv1, num_images, middle_grad, shortcut_grad, in_grad, chunk_grads, threads)
            out_grad, in_grad = in_grad, out_grad
        backward(first, num_images, out_grad, None, None, chunk_grads, threads)
