"""Losses and errors of steps on their way from the device, for which nobody waits."""

import torch
from torch import Tensor

WINDOW = 20  # steps whose losses a GPU sends home together


class Losses:
    """What steps leave of themselves. A CPU's are read at once, a GPU's a window later: they are there by then.

    Args:
        device: where the steps are computed.
        window: steps whose losses are fetched together; 1: each step's at once.
    """

    def __init__(self, device: torch.device, window: int) -> None:
        self.latest = torch.zeros(2, device=device)
        """Mean loss in nats and number of wrong predictions of the last step, which writes them here."""
        on_cuda = device.type == "cuda"
        self._window = window
        self._there = torch.zeros(2, window, 2, device=device)
        self._here = torch.zeros(2, window, 2, pin_memory=on_cuda)
        self._arrivals = [torch.cuda.Event() for _ in range(2)] if on_cuda else None  # type: ignore[no-untyped-call]
        self._at = 0  # the window that is being filled
        self._filled = 0  # how far
        self._underway = False  # whether the other one has been sent
        self.num_unread = 0

    def push(self) -> list[tuple[float, int]]:
        """Take note of `latest`; return losses and errors of earlier steps that have arrived, in order."""
        if self._window == 1:
            return [_read(self.latest)]
        self._there[self._at, self._filled].copy_(self.latest)
        self._filled += 1
        self.num_unread += 1
        if self._filled < self._window:
            return []
        arrived = self._receive()
        self._here[self._at].copy_(self._there[self._at], non_blocking=True)
        if self._arrivals is not None:
            self._arrivals[self._at].record()
        self._at, self._filled, self._underway = 1 - self._at, 0, True
        return arrived

    def flush(self) -> list[tuple[float, int]]:
        """Return losses and errors of all steps that were not returned yet, in order; this waits for them."""
        arrived = self._receive()
        if self._filled:
            arrived += map(_read, self._there[self._at, : self._filled].cpu())
        self._filled = self.num_unread = 0
        return arrived

    def _receive(self) -> list[tuple[float, int]]:
        if not self._underway:
            return []
        other = 1 - self._at
        if self._arrivals is not None:
            self._arrivals[other].synchronize()
        self._underway = False
        self.num_unread -= self._window
        return list(map(_read, self._here[other]))


def _read(pair: Tensor) -> tuple[float, int]:
    loss, wrong = pair.tolist()
    return loss, int(wrong)
