"""What computes a training step: torch, torch.compile, or the fused kernels."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.errors import first_line, unknown_name
from deepres.models import ResNet
from deepres.training.agreement import disagreement
from deepres.training.device import autocast, compile_function, find_compiler
from deepres.training.fused import FusedNet, why_unsupported
from deepres.training.kernels import KernelsUnavailable, kernels_error, load_kernels

BACKENDS = ("auto", "fused", "compiled", "eager")
COMPILE_STEPS = 500  # shorter runs end before torch.compile has paid for itself


class Backend(Protocol):
    """Computes with a model's own parameters and buffers."""

    name: str
    """One of `BACKENDS`."""

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean cross-entropy in the parameters' `grad`; update running statistics.

        Args:
            images: float32 (B, 3, H, W), normalised.
            labels: int64 (B,).

        Returns:
            The mean loss in nats and the number of wrong predictions, as tensors of no dimension.
        """
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits in evaluation mode: float32 (B, 3, H, W), normalised -> float32 (B, num_classes)."""
        ...


class TorchBackend:
    """Autograd, plain or through torch.compile.

    Args:
        model: computes on `device`.
        device: where.
        precision: "float32", or "bfloat16" for autocast.
        compiled: whether to use torch.compile.
        notice: is given a line when compilation fails and the plain way is taken.
    """

    def __init__(
        self,
        model: ResNet,
        device: torch.device,
        precision: str,
        compiled: bool,
        notice: Callable[[str], None],
    ) -> None:
        self._model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self._precision = precision
        self._notice = notice
        self._objective: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = self._eager_objective
        self._forward: Callable[[Tensor], Tensor] = self._model
        self._proven: set[tuple[bool, torch.Size]] = set()  # what was compiled without an error: training?, shape
        # Within a net in training mode parts in evaluation mode stay so: batch normalisation that is frozen.
        self._frozen = [module for module in model.modules() if model.training and not module.training]
        self.name = "compiled" if compiled else "eager"
        if compiled:
            self._objective = compile_function(self._eager_objective)
            self._forward = compile_function(self._model)

    def _eager_objective(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss in nats and the number of wrong predictions."""
        with autocast(self._device, self._precision):
            logits = self._model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels)
        return loss, (logits.argmax(dim=1) != labels).sum()

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend.forward_backward`."""
        self._model.train()
        for module in self._frozen:
            module.training = False
        if not self._is_first(True, images):
            loss, wrong = self._objective(images, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), wrong

        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        try:
            return self.forward_backward(images, labels)
        except Exception as error:  # whatever the compiler raises: torch documents no type
            self._go_on_without(error)
            self._model.load_state_dict(buffers, strict=False)
            self._model.zero_grad(set_to_none=True)
            return self.forward_backward(images, labels)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """See `Backend.logits`."""
        self._model.eval()
        if not self._is_first(False, images):
            with autocast(self._device, self._precision):
                return self._forward(images.contiguous(memory_format=torch.channels_last)).float()

        try:
            return self.logits(images)
        except Exception as error:  # as above
            self._go_on_without(error)
            return self.logits(images)

    def _is_first(self, training: bool, images: Tensor) -> bool:
        """Tell whether this call compiles: the first one, and the first for each other shape of images."""
        compiles = self._objective != self._eager_objective and (training, images.shape) not in self._proven
        self._proven.add((training, images.shape))
        return compiles

    def _go_on_without(self, error: Exception) -> None:
        """Take the plain way from now on."""
        self._notice(f"torch.compile does not work here ({first_line(error)}): going on without it, slower")
        self._objective, self._forward = self._eager_objective, self._model


def check_backend(name: str) -> None:
    """Raise the error for an unknown backend."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)


def plain_backend(num_steps: int, notice: Callable[[str], None]) -> str:
    """Return the faster of torch's two for a run of `num_steps`; tell `notice` what would be faster."""
    if num_steps < COMPILE_STEPS:
        return "eager"
    if find_compiler() is None:
        notice("no C++ compiler found, which torch.compile needs: going on without it, slower")
        return "eager"
    return "compiled"


def why_not_fused(model: nn.Module, device: torch.device, precision: str, sizes: Sequence[int]) -> str | None:
    """Return why there are no fused kernels for a net and images of these rows here, or None: they are loaded."""
    if reason := why_unsupported(model, device, precision):
        return reason
    try:
        for size in sizes:
            load_kernels(precision, size)
    except KernelsUnavailable as error:
        return str(error)
    return None


def build_backend(
    name: str,
    model: ResNet,
    device: torch.device,
    precision: str,
    capacity: int,
    notice: Callable[[str], None],
    *,
    examples: Sequence[tuple[Tensor, Tensor]] = (),
    fall_back: bool = False,
) -> Backend:
    """Build a backend by name for mini-batches of up to `capacity` images.

    Args:
        name: "fused", "compiled" or "eager".
        model: computes on `device`.
        device: where.
        precision: "float32" or "bfloat16".
        capacity: the most images of a mini-batch.
        notice: is given lines for the user.
        examples: images as they are trained on and their labels, a pair for each size of image, on which the fused
            kernels are compared with the net itself, see `deepres.training.agreement`.
        fall_back: whether plain torch takes the place of fused kernels that do not compute this net.

    Raises:
        UserError: an unknown name, or the fused kernels do not work for this net or machine.
    """
    check_backend(name)
    if name != "fused":
        return TorchBackend(model, device, precision, name == "compiled", notice)
    reason = why_not_fused(model, device, precision, [images.shape[-1] for images, _ in examples])
    if reason is None:
        try:
            reason = disagreement(model, precision, examples) if examples else None
            if reason is None:
                return FusedNet(model, precision, capacity)
        except KernelsUnavailable as error:
            reason = str(error)
    if not fall_back:
        raise kernels_error(reason)
    notice(f"no fused kernels ({reason}): going on without them, slower")
    return TorchBackend(model, device, precision, False, notice)
