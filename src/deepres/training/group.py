"""Several processes that train one net: each computes a share of every mini-batch, gradients are summed over gloo."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepres.errors import UserError

TIMEOUT = timedelta(minutes=10)  # longer than anything one process does while the others wait


class LostWorkerError(UserError):
    """Another process of the group has died or hangs."""

    exit_code = 1


class Group:
    """The processes of a run. By default this one alone.

    Process 0 owns the run directory and speaks to the user; the others compute. torchrun starts them, and `join` reads
    the environment variables that it sets.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @staticmethod
    def join(device: torch.device) -> "Group":
        """Join the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; alone if they are not set.

        Raises:
            UserError: there are several processes on another device than the CPU, or they do not find one another.
        """
        size = world_size()
        if size is None:
            return Group()
        if size > 1 and device.type != "cpu":
            raise UserError("several workers train on CPUs only: give --device cpu, or run one process")
        try:
            dist.init_process_group("gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"WORLD_SIZE is {size}, but the workers do not find one another ({error})") from None
        return Group(dist.get_rank(), dist.get_world_size())

    def share(self, num_items: int) -> slice:
        """Return this process's share of `num_items`, in order; shares differ by one item at most."""
        return slice(self.rank * num_items // self.size, (self.rank + 1) * num_items // self.size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors by their sums over all processes, in one message.

        Raises:
            LostWorkerError: another process does not answer.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            dist.all_reduce(flat)
        except RuntimeError as error:  # gloo has no type of its own
            raise LostWorkerError(f"another worker does not answer ({_reason(error)})") from None
        for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def broadcast(self, message: Any = None) -> Any:
        """Return process 0's message in every process.

        Raises:
            LostWorkerError: another process does not answer.
        """
        if self.size == 1:
            return message
        box = [message]
        try:
            dist.broadcast_object_list(box, src=0)
        except RuntimeError as error:
            raise LostWorkerError(f"another worker does not answer ({_reason(error)})") from None
        return box[0]


def _reason(error: RuntimeError) -> str:
    """Return the first sentence of what gloo says, without the place in its source."""
    return str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]


def world_size() -> int | None:
    """Return the number of processes that the environment announces, as torchrun sets it; None if it does not.

    Raises:
        UserError: WORLD_SIZE is no number above 0.
    """
    value = os.environ.get("WORLD_SIZE")
    if not value:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"WORLD_SIZE is {value!r}: it must be the number of workers; torchrun sets it")
    return int(value)


def count_workers(asked: int | None, arguments: str) -> int:
    """Return the number of processes that train together: as many as torchrun has started, else this one.

    Args:
        asked: how many the user wants; None: as many as there are.
        arguments: the command line after the program's name, for the error.

    Raises:
        UserError: there are not as many as were asked for.
    """
    size = world_size()
    if size is None and (asked or 1) > 1:
        command = f"torchrun --standalone --nproc-per-node {asked} -m deepres {arguments}"
        raise UserError(f"--workers {asked}: torchrun starts the processes; run `{command}`")
    if size is not None and asked not in (None, size):
        raise UserError(f"--workers {asked} contradicts WORLD_SIZE {size}: leave one of them out")
    return size or 1
