"""A graph's stand-in on a CPU: the operations of a function, recorded once and repeated on the same memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# With these the host looks at a value, which a graph on a GPU forbids.
LOOKS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique")

# Says torch.use_deterministic_algorithms: the terms of these a GPU may add up in another order each time. Those of
# convolutions too, but cuDNN is held to algorithms that do not.
UNORDERED = (
    *("index_add", "index_add_", "index_put", "index_put_", "_index_put_impl_", "put_", "scatter", "scatter_"),
    *("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "cumsum", "histc", "bincount", "median"),
    *("_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward"),
    *("max_unpool2d", "nll_loss2d_forward", "grid_sampler_2d_backward", "_embedding_bag_dense_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "replication_pad2d_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward"),
    *("upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward"),
)


class Tape(TorchDispatchMode):
    """Takes down operations with the very tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in LOOKS, f"{name}: the host looks at a value"
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """Records functions on tapes; a `deepres.training.graph.Record`."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        for _ in range(2):  # warms up, as for a graph: these calls take steps
            function()
        tape = Tape()
        with tape:
            function()
        self.tapes.append(tape)
        return tape.replay
