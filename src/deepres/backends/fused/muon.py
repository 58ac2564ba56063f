"""Muon's steps by a kernel: all of a step of a filter bank while it lies in a core's cache."""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor

from deepres.backends.fused.build import KernelsUnavailable, load_kernels

MAX_ROWS, MAX_COLUMNS = 64, 576


class Bank(ctypes.Structure):
    """`Bank` of muon.h, where the fields are explained."""

    _fields_ = (
        ("rows", c_int64),
        ("columns", c_int64),
        ("weight", c_void_p),
        ("gradient", c_void_p),
        ("momentum", c_void_p),
    )


class MuonStep(ctypes.Structure):
    """`MuonStep` of muon.h, where the fields are explained."""

    _fields_ = (
        ("lr", c_float),
        ("momentum", c_float),
        ("negligible", c_float),
        ("a", c_float),
        ("b", c_float),
        ("c", c_float),
        ("num_iterations", c_int64),
    )


class MuonKernel:
    """Takes Muon's steps, see `deepres.training.muon`, of filter banks on a CPU.

    Args:
        momentum: of the gradients' running sum.
        negligible: entries up to this count as 0, where the norm of a matrix is 1.
        quintic: what an iteration makes of a singular value s: a s + b s^3 + c s^5.
        num_iterations: of a step.
        precision: of kernels that are loaded anyway.
        unit: see `load_kernels`.

    Raises:
        KernelsUnavailable: there are no kernels.
    """

    def __init__(
        self,
        momentum: float,
        negligible: float,
        quintic: tuple[float, float, float],
        num_iterations: int,
        precision: str,
        unit: str | None = None,
    ) -> None:
        self._kernels = load_kernels(precision, unit=unit)
        self._step = MuonStep(0.0, momentum, negligible, *quintic, num_iterations)

    def check(self, weights: Sequence[Tensor]) -> None:
        """Raise KernelsUnavailable unless all of these filter banks, float32 (out, ...), can take steps."""
        for weight in weights:
            rows, columns = len(weight), weight[0].numel()
            if rows % 16 or rows > MAX_ROWS or columns > MAX_COLUMNS:
                raise KernelsUnavailable(f"there is no step of Muon for filter banks of {rows} x {columns}")
            if weight.dtype != torch.float32 or weight.device.type != "cpu" or not weight.is_contiguous():
                raise KernelsUnavailable("the filter banks are no plain ones on a CPU")

    def __call__(
        self, weights: Sequence[Tensor], gradients: Sequence[Tensor], buffers: Sequence[Tensor], lr: float
    ) -> None:
        """Take a step: change weights and momentum buffers in place.

        Args:
            weights: filter banks that pass `check`.
            gradients: of each, of the same layout.
            buffers: the momentum of each, of the same layout.
            lr: the size of a step relative to the weights.
        """
        banks = (Bank * len(weights))()
        largest_first = sorted(zip(weights, gradients, buffers, strict=True), key=lambda each: -each[0].numel())
        for bank, (weight, gradient, buffer) in zip(banks, largest_first, strict=True):
            assert all(tensor.is_contiguous() for tensor in (weight, gradient, buffer))
            bank.rows, bank.columns = len(weight), weight.numel() // len(weight)
            bank.weight, bank.gradient, bank.momentum = weight.data_ptr(), gradient.data_ptr(), buffer.data_ptr()
        self._step.lr = lr
        self._kernels.muon_step(banks, len(banks), ctypes.byref(self._step), torch.get_num_threads())
