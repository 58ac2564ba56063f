"""Muon: steps of filter banks made semi-orthogonal."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepres.training.optimizer import Optimizer, ParamGroup

# Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024: a quintic whose iteration drives all
# singular values of a matrix towards 1, to within 30%, fast.
QUINTIC = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5

# Of a matrix whose norm is 1, entries below this change no digit of a step. They are those of filters that get no
# gradient any more, whose momentum decays into denormal numbers, with which a CPU multiplies many times more slowly.
NEGLIGIBLE = 1e-15


def orthogonalize(matrices: Tensor, negligible: float = NEGLIGIBLE) -> Tensor:
    """Return for each matrix approximately the semi-orthogonal one nearest to it: its singular values become about 1.

    Args:
        matrices: float (B, M, N); the fewer rows, the faster.
        negligible: entries up to this count as 0, where the norm of a matrix is 1.

    Returns:
        Same shape and type; singular values between 0.7 and 1.2 unless they were tiny.
    """
    a, b, c = QUINTIC
    x: Tensor = F.hardshrink(matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7), negligible)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT  # (B, M, M)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(Optimizer):
    """SGD with Nesterov momentum, each step of a filter bank made semi-orthogonal, each filter bank kept at one norm.

    A filter bank (out channels, in channels, 3, 3) counts as a matrix of one row a filter. Batch normalisation after a
    convolution makes the net indifferent to the bank's norm, so it is set to the square root of the matrix's smaller
    side before each step, at which a step, whose norm is about the same, turns the bank by about `lr` radians.

    Source: Jordan et al., "Muon", 2024; without the optimizer's many small products: banks of one shape are stacked.

    Args:
        params: convolutions' weights, (out, in, height, width).
        peak_lr: the size of a step relative to the weights, where the schedule is highest.
        momentum: of the gradients' running sum.
    """

    def __init__(self, params: Iterable[Tensor], peak_lr: float, momentum: float) -> None:
        super().__init__([ParamGroup(list(params), peak_lr)], momentum)

    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None:
        stacks: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
        for tensors in zip(group.params, gradients, buffers, strict=True):
            stacks[tensors[0].shape].append(tensors)
        for stack in stacks.values():
            self._step_stack(*map(list, zip(*stack, strict=True)), lr=float(group.lr))

    def _step_stack(self, params: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], *, lr: float) -> None:
        torch._foreach_mul_(buffers, self.momentum)
        torch._foreach_add_(buffers, gradients)
        updates = torch.stack(torch._foreach_add(gradients, buffers, alpha=self.momentum))  # (B, out, in, h, w)
        updates = orthogonalize(updates.flatten(2)).view_as(updates)
        target_norm = min(updates.shape[1], updates[0, 0].numel()) ** 0.5
        norms = torch._foreach_norm(params)
        torch._foreach_div_(params, [norm / target_norm for norm in norms])
        torch._foreach_add_(params, list(updates.unbind()), alpha=-lr)


class StackedMuon(Muon):
    """`Muon` in fewer and larger operations, for devices on which the number of operations counts.

    All filter banks lie in one stack of matrices, padded with zeros, which steps leave at zero: a bank of M filters of
    N weights is the corner of M rows and N columns. The weights of a filter are ordered as they lie in memory channels
    last; what the step does to a matrix does not depend on the order of its columns. Nothing looks at a value.

    Args:
        params: see `Muon`.
        peak_lr: see `Muon`.
        momentum: see `Muon`.
    """

    def __init__(self, params: Iterable[Tensor], peak_lr: float, momentum: float) -> None:
        super().__init__(params, peak_lr, momentum)
        banks = self.groups[0].params
        device = banks[0].device
        rows, columns = max(len(bank) for bank in banks), max(bank[0].numel() for bank in banks)
        self._stack = torch.zeros(len(banks), rows, columns, device=device)  # the momentum buffers
        for i, bank in enumerate(banks):
            corner = self._stack[i, : len(bank), : bank[0].numel()]
            self._buffers[bank] = _channels_first(corner, bank)
        sides = [min(len(bank), bank[0].numel()) for bank in banks]
        self._target_norms = torch.tensor(sides, device=device).sqrt().view(-1, 1, 1)
        # For each weight its place in the stack, and for each place of the stack its weight or, past the last, zero.
        places = torch.arange(self._stack.numel()).view_as(self._stack)
        corners = [places[i, : len(bank), : bank[0].numel()].flatten() for i, bank in enumerate(banks)]
        inside = torch.cat(corners)
        sources = torch.full((self._stack.numel(),), len(inside))
        sources[inside] = torch.arange(len(inside))
        self._inside, self._sources = inside.to(device), sources.to(device)
        self._sizes = [bank.numel() for bank in banks]

    def _gather(self, banks: Sequence[Tensor]) -> Tensor:
        """Return filter banks as a new stack."""
        flat = torch.cat([bank.permute(0, 2, 3, 1).reshape(-1) for bank in banks])
        return F.pad(flat, (0, 1)).index_select(0, self._sources).view_as(self._stack)

    def _step_group(self, group: ParamGroup, gradients: list[Tensor], buffers: list[Tensor]) -> None:
        gradient, weight = self._gather(gradients), self._gather(group.params)
        self._stack.mul_(self.momentum).add_(gradient)
        update = orthogonalize(torch.add(gradient, self._stack, alpha=self.momentum))
        weight.mul_(self._target_norms / weight.norm(dim=(1, 2), keepdim=True)).sub_(update * group.lr)
        flat = weight.view(-1).index_select(0, self._inside)
        pieces = torch.split(flat, self._sizes)
        news = [_channels_first(piece, bank) for piece, bank in zip(pieces, group.params, strict=True)]
        torch._foreach_copy_(group.params, news)


def _channels_first(weights: Tensor, bank: Tensor) -> Tensor:
    """View the weights of a bank's filters, ordered channels last, as a tensor of the bank's shape."""
    out_channels, in_channels, height, width = bank.shape
    return weights.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
