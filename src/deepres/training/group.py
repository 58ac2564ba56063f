"""Several processes that train one net: each computes a share of every mini-batch, gradients are summed over gloo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepres.errors import UserError

TIMEOUT = timedelta(minutes=10)  # longer than anything one process does while the others wait
GRACE_SECONDS = 30.0  # for the others to end when one has died


class LostWorkerError(UserError):
    """Another process of the group has died or hangs."""

    exit_code = 1


class Group:
    """The processes of a run. By default this one alone.

    Process 0 owns the run directory and speaks to the user; the others compute. Launch them with `--workers`, or with
    torchrun, whose environment variables `join` reads.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @staticmethod
    def join(workers: int | None, device: torch.device) -> "Group":
        """Join the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; alone if they are not set.

        Raises:
            UserError: `workers` contradicts WORLD_SIZE, or a group was asked for on another device than the CPU.
        """
        size = world_size()
        if size is None:
            return Group()
        if workers is not None and workers != size:
            raise UserError(f"--workers {workers} contradicts WORLD_SIZE {size}: leave one of them out")
        if size > 1 and device.type != "cpu":
            raise UserError("several workers train on CPUs only: give --device cpu, or --workers 1")
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


def launch(workers: int, device: torch.device) -> int:
    """Run this very command in `workers` processes, with the environment variables that torchrun would set.

    Returns the exit code once all have ended: the first above 0. When one worker dies the others notice within
    seconds and end, for half a step is not worth saving; whatever still runs half a minute later is ended.

    Raises:
        UserError: on another device than the CPU.
    """
    if device.type != "cpu":
        raise UserError("several workers train on CPUs only: give --device cpu, or --workers 1")
    # The store finds a free port by itself.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "WORLD_SIZE": str(workers),
        "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, not in worker 0
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // workers))),
    }
    command = [sys.executable, *sys.orig_argv[1:]]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(workers)
    ]

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    # Ctrl-C reaches the workers by itself: a terminal sends it to all processes in the foreground.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, forward)
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.1)
        failed = any(process.poll() for process in processes)
        deadline = time.monotonic() + GRACE_SECONDS
        hanging = set()
        for rank, process in enumerate(processes):
            try:
                # Those that end well have nothing left to do, while the first still evaluates and writes.
                process.wait(max(0.0, deadline - time.monotonic()) if failed else None)
            except subprocess.TimeoutExpired:
                hanging.add(rank)
                process.kill()
                process.wait()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
            signal.signal(number, handler)
    for rank, process in enumerate(processes):
        if process.returncode < 0 and rank not in hanging:
            name = signal.Signals(-process.returncode).name
            raise LostWorkerError(f"worker {rank} was killed by {name}: run the same command to go on")
    return next((process.returncode for process in processes if process.returncode > 0), 0)
