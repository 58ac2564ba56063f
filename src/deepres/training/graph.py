"""Work recorded once and replayed: a training step as one CUDA graph, which the host starts by a single call.

A step of a small net is hundreds of operations of a few microseconds, less than the host takes to start each of them.
A graph repeats the same operations on the same memory. So what is recorded reads and writes tensors that stay where
they are, and whatever differs from step to step is a value in one of them: a Python number or a branch is recorded as
it is the first time.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from deepres.errors import first_line

WARM_UP = 3  # calls before recording, in which libraries take their memory, compilers compile and choices are made

Function = Callable[[], None]
Record = Callable[[Function], Function]
"""Calls a function some times, records it, and returns what replays it."""


class CudaRecorder:
    """Records functions as CUDA graphs, which share one pool of memory: nothing in it is needed after a replay."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Function) -> Function:
        """See `Record`."""
        before = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                function()
        before.wait_stream(self._stream)
        torch.cuda.synchronize(self._stream.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            function()
        replay: Function = graph.replay
        return replay


class Replays:
    """Functions by name: each is recorded at its first use and replayed ever after.

    Args:
        record: how; None: functions are called each time.
        notice: is given a line when a function cannot be recorded, after which all are called each time.
    """

    def __init__(self, record: Record | None, notice: Callable[[str], None]) -> None:
        self._record = record
        self._notice = notice
        self._replays: dict[Hashable, Function] = {}

    @property
    def recording(self) -> bool:
        """False where functions are called each time."""
        return self._record is not None

    def clear(self) -> None:
        """Forget what was recorded: it reads tensors that are no longer the ones to read."""
        self._replays.clear()

    def run(self, name: Hashable, function: Function, changed: Callable[[], Sequence[Tensor]]) -> None:
        """Do what the function does.

        Args:
            name: of the function with all that is not a tensor's value, such as the shapes.
            function: of tensors that stay where they are.
            changed: returns the tensors that it reads and changes; they are put back after recording, for which the
                function is called.
        """
        if self._record is not None and name not in self._replays:
            tensors = changed()
            saved = [tensor.detach().clone() for tensor in tensors]
            try:
                self._replays[name] = self._record(function)
            except RuntimeError as error:  # whatever the driver or a library refuses to record
                self._notice(f"no CUDA graph of a step ({first_line(error)}): going on without it, slower")
                self._record = None
            with torch.no_grad():
                for tensor, old in zip(tensors, saved, strict=True):
                    tensor.copy_(old)
                    tensor.grad = None  # of a call that was broken off
        if self._record is None:
            function()
        else:
            self._replays[name]()
