"""Tensors whose addresses kernels hold."""

from torch import Tensor, nn


class InPlace:
    """The parameters and buffers of a model, which may change in place and must not be replaced.

    Args:
        model: whose tensors kernels read and write by their addresses.
        holder: the class that holds the addresses, for the error.
    """

    def __init__(self, model: nn.Module, holder: str) -> None:
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._holder = holder

    def check(self) -> None:
        """Raise RuntimeError if a tensor lies elsewhere than at the beginning."""
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            raise RuntimeError(f"a parameter or buffer of the model has been replaced: build another {self._holder}")
