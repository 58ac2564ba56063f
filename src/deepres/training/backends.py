"""What computes a training step: torch, torch.compile, or the fused kernels."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.errors import first_line, unknown_name
from deepres.models import ResNet
from deepres.training.device import autocast, compile_function, find_compiler
from deepres.training.fused import SIZE, FusedNet, why_unsupported
from deepres.training.kernels import KernelsUnavailable, kernels_error, load_kernels

BACKENDS = ("auto", "fused", "compiled", "eager")
COMPILE_STEPS = 500  # shorter runs end before torch.compile has paid for itself


class Backend(Protocol):
    """Computes with a model's own parameters and buffers."""

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
        self._objective_unproven = self._forward_unproven = compiled
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
        if not self._objective_unproven:
            loss, wrong = self._objective(images, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach(), wrong

        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        self._objective_unproven = False
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
        if not self._forward_unproven:
            with autocast(self._device, self._precision):
                return self._forward(images.contiguous(memory_format=torch.channels_last)).float()

        self._forward_unproven = False
        try:
            return self.logits(images)
        except Exception as error:  # as above
            self._go_on_without(error)
            return self.logits(images)

    def _go_on_without(self, error: Exception) -> None:
        """Take the plain way from now on."""
        self._notice(f"torch.compile does not work here ({first_line(error)}): going on without it, slower")
        self._objective, self._forward = self._eager_objective, self._model
        self._objective_unproven = self._forward_unproven = False


def check_backend(name: str) -> None:
    """Raise the error for an unknown backend."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)


def choose_backend(
    model: ResNet,
    device: torch.device,
    precision: str,
    num_steps: int,
    notice: Callable[[str], None],
    sizes: Iterable[int] = (),
) -> str:
    """Return the fastest backend that works here for a run of `num_steps`; tell `notice` what would be faster.

    `sizes` are the rows of images other than 32 that the run trains on.
    """
    if why_unsupported(model, device, precision) is None:
        try:
            for size in (SIZE, *sizes):
                load_kernels(precision, size)
            return "fused"
        except KernelsUnavailable as reason:
            notice(f"no fused kernels ({reason}): going on without them, slower")
    if num_steps < COMPILE_STEPS:
        return "eager"
    if find_compiler() is None:
        notice("no C++ compiler found, which torch.compile needs: going on without it, slower")
        return "eager"
    return "compiled"


def build_backend(
    name: str,
    model: ResNet,
    device: torch.device,
    precision: str,
    capacity: int,
    notice: Callable[[str], None],
) -> Backend:
    """Build a backend by name for mini-batches of up to `capacity` images.

    Raises:
        UserError: an unknown name, or the fused kernels do not work for this model or machine.
    """
    check_backend(name)
    if name != "fused":
        return TorchBackend(model, device, precision, name == "compiled", notice)
    reason = why_unsupported(model, device, precision)
    if reason is None:
        try:
            return FusedNet(model, precision, capacity)
        except KernelsUnavailable as error:
            reason = str(error)
    raise kernels_error(reason)
