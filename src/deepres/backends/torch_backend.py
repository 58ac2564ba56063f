"""What computes a training step: torch, torch.compile, or the fused kernels."""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.backends.device import autocast, compile_function
from deepres.errors import first_line
from deepres.models import ResNet

# In float16 the smallest gradients of activations vanish, so those of a multiple of the loss are computed, and divided
# where they are float32. A power of two changes no digit. The factor stays while a net trains, so that every step
# counts and nobody has to look whether one did; a loss that is not finite ends the run.
LOSS_SCALE = 1024.0


class Backend(Protocol):
    """Computes with a model's own parameters and buffers."""

    name: str
    """One of `BACKENDS`."""

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the gradient of the mean cross-entropy in the parameters' `grad`; update running statistics.

        Args:
            images: float32 (B, 3, H, W), normalised.
            labels: int64 (B,), or distributions over the classes, float32 (B, num_classes), of which the most
                probable class is the right one.

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
        precision: "float32", or "bfloat16" or "float16" for autocast.
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
        right = labels if labels.ndim == 1 else labels.argmax(dim=1)
        return loss, (logits.argmax(dim=1) != right).sum()

    def forward_backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backend.forward_backward`."""
        self._model.train()
        for module in self._frozen:
            module.training = False
        if not self._is_first(True, images):
            loss, wrong = self._objective(images, labels)
            self._backward(loss)
            return loss.detach(), wrong

        buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        try:
            return self.forward_backward(images, labels)
        except Exception as error:  # whatever the compiler raises: torch documents no type
            self._go_on_without(error)
            self._model.load_state_dict(buffers, strict=False)
            self._model.zero_grad(set_to_none=True)
            return self.forward_backward(images, labels)

    def _backward(self, loss: Tensor) -> None:
        """Leave the loss's gradients in the parameters' `grad`."""
        if self._precision != "float16":
            loss.backward()  # type: ignore[no-untyped-call]
            return
        (loss * LOSS_SCALE).backward()  # type: ignore[no-untyped-call]
        torch._foreach_div_([p.grad for p in self._model.parameters() if p.grad is not None], LOSS_SCALE)

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
