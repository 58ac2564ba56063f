"""Where the time of one training step goes: torch.compile (before), and the fused kernels (after).

    python benchmarks/profile_step.py            # ResNet-20, mini-batch 128; add a name for another net

Milliseconds per step, the mean of some steps. Fusing shows in what is missing: in the kernels there is no time apart
for batch normalisation, ReLU and addition.
"""

import os
import sys
import time
from collections import defaultdict
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
from torch.profiler import ProfilerActivity, profile

from deepres.backends.device import limit_threads, native_precisions
from deepres.backends.memory import keep_freed_memory
from deepres.data.augment import Normalization
from deepres.data.loader import TrainStream
from deepres.recipes.named import one_cycle
from deepres.training.trainer import Trainer

STEPS = 20
PRECISION = native_precisions(torch.device("cpu"))[-1]

Parts = defaultdict[str, float]  # milliseconds per step


def build_trainer(name: str, backend: str) -> Trainer:
    """Build a trainer on random images."""
    images = torch.randint(256, (2000, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (2000,))
    normalization = Normalization.fit(images, "channel")
    stream = TrainStream(images, labels, normalization=normalization, batch_size=128, pad=4, seed=0)
    return Trainer(
        name=name,
        option="A",
        recipe=one_cycle(),
        seed=0,
        stream=stream,
        total_steps=1000,
        device=torch.device("cpu"),
        precision=PRECISION,
        backend=backend,
        notice=print,
    )


def time_steps(trainer: Trainer) -> float:
    """Return milliseconds per step, after some to warm up."""
    for _ in range(5):
        trainer.advance()
    start = time.perf_counter()
    for _ in range(STEPS):
        trainer.advance()
    return (time.perf_counter() - start) / STEPS * 1e3


def category(operator: str) -> str:
    """Name the part of a step that a profiled operator belongs to."""
    if "convolution_backward" in operator:
        return "convolutions, backward"
    if "convolution" in operator:
        return "convolutions, forward"
    if "sgd" in operator.lower():
        return "optimizer"
    if operator.startswith(("graph_", "cpp_fused", "triton", "inductor")) or "fused" in operator:
        return "batch normalisation, ReLU, addition (compiled)"
    return "everything else: augmentation, casts, Python"


def profile_compiled(name: str) -> tuple[float, Parts]:
    """Return milliseconds per step, and by category, for torch.compile."""
    import torch._inductor.config as inductor

    inductor.cpp.enable_kernel_profile = True
    trainer = build_trainer(name, "compiled")
    total = time_steps(trainer)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            trainer.advance()
    parts: Parts = defaultdict(float)
    for event in profiled.key_averages():
        parts[category(event.key)] += event.self_cpu_time_total / STEPS / 1e3
    return total, parts


class Timed:
    """Stands for the kernels and adds up the time of each."""

    def __init__(self, kernels: Any, parts: Parts) -> None:
        self._kernels = kernels
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._kernels, name)

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            self._parts[name] += (time.perf_counter() - start) / STEPS * 1e3
            return result

        return timed


def profile_fused(name: str) -> tuple[float, Parts]:
    """Return milliseconds per step, and by kernel, for the fused kernels."""
    trainer = build_trainer(name, "fused")
    total = time_steps(trainer)
    parts: Parts = defaultdict(float)
    net: Any = trainer.backend
    net._kernels_by_size = {size: Timed(kernels, parts) for size, kernels in net._kernels_by_size.items()}
    stream: Any = trainer.stream
    batch, update = stream.batch, trainer.update

    def timed(label: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments)
            parts[label] += (time.perf_counter() - start) / STEPS * 1e3
            return result

        return call

    stream.batch = timed("augmentation", batch)
    trainer.update = timed("optimizer", update)  # type: ignore[method-assign]
    for _ in range(STEPS):
        trainer.advance()
    parts["Python"] = total - sum(parts.values())
    return total, parts


if __name__ == "__main__":
    keep_freed_memory()
    limit_threads()  # as `deepres train` does
    torch.manual_seed(0)
    model = sys.argv[1] if len(sys.argv) > 1 else "resnet20"
    for title, measure in (
        (f"torch.compile, {PRECISION}", profile_compiled),
        (f"fused kernels, {PRECISION}", profile_fused),
    ):
        total, parts = measure(model)
        print(f"{model}, {title}: {total:.1f} ms a step, {128 / total * 1e3:,.0f} images/s")
        for part, milliseconds in sorted(parts.items(), key=lambda item: -item[1]):
            print(f"  {milliseconds:7.2f} ms  {part}")
