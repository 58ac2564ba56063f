"""Lets a kernel take Muon's steps, where it takes the same ones as torch up to rounding."""

from collections.abc import Iterable

import torch
from torch import Tensor

from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.muon import MuonKernel
from deepres.training.muon import NEGLIGIBLE, NEWTON_SCHULZ_STEPS, QUINTIC, Muon
from deepres.training.optimizer import ParamGroup

AGREEMENT = 1e-3  # the most that a step may differ from torch's, relative to the step; rounding makes some 1e-6


def muon_kernel(momentum: float, precision: str, num_iterations: int = NEWTON_SCHULZ_STEPS) -> MuonKernel:
    """Return the kernel for Muon's steps.

    Args:
        momentum: see `Muon`.
        precision: of kernels that are loaded anyway.
        num_iterations: towards a semi-orthogonal matrix.

    Raises:
        KernelsUnavailable: there are no kernels.
    """
    return MuonKernel(momentum, NEGLIGIBLE, QUINTIC, num_iterations, precision)


class FastMuon(Muon):
    """`Muon` by a kernel.

    Args:
        params: see `Muon`.
        peak_lr: see `Muon`.
        momentum: see `Muon`.
        kernel: takes its steps, see `muon_kernel`.

    Raises:
        KernelsUnavailable: there is no kernel for such filter banks, or its steps are others than torch's.
    """

    def __init__(self, params: Iterable[Tensor], peak_lr: float, momentum: float, kernel: MuonKernel) -> None:
        super().__init__(params, peak_lr, momentum)
        self._kernel = kernel
        kernel.check(self.groups[0].params)
        self._compare()

    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None:
        self._kernel(group.params, gradients, buffers, float(group.lr))

    def _compare(self) -> None:
        """Take a step of a filter bank of each shape by the kernel and by torch."""
        generator = torch.Generator().manual_seed(0)
        for shape in {parameter.shape for parameter in self.groups[0].params}:
            weight, gradient, buffer = (torch.randn(shape, generator=generator) for _ in range(3))
            torchs = [weight.clone()], [gradient], [buffer.clone()]
            kernels = [weight.clone()], [gradient], [buffer.clone()]
            lr = 0.1
            self._step_stack(*torchs, lr=lr)
            self._kernel(*kernels, lr)
            for ours, theirs in ((kernels[0], torchs[0]), (kernels[2], torchs[2])):
                difference = float((ours[0] - theirs[0]).norm() / (lr * theirs[0].norm()))
                if not difference < AGREEMENT:
                    raise KernelsUnavailable(f"Muon's step differs from torch's by {difference:.1g}")
