"""How the work of the GPU's fused kernels is best split up: tiles, parts, warps and stages of each.

    python benchmarks/gpu_splits.py --out benchmarks/results/gpu_splits_h100.json    # on an NVIDIA GPU, two minutes

Each of the candidates below is a split for every kernel and number of channels. All kernels of ResNet-20's training
steps are timed by each of them, with six nets at once, as in a grid: a kernel that leaves room for others is worth
more than one that is fast alone. For each kernel and number of channels the fastest candidate is named; these are what
`deepres.backends.fused_cuda.layer` has.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from reports import write_report

from deepres.backends.device import describe_device, resolve_device
from deepres.backends.fused_cuda import layer
from deepres.backends.fused_cuda.launch import Launch
from deepres.backends.fused_cuda.layer import Call, Split
from deepres.backends.fused_cuda.net import FusedCudaNet
from deepres.models import build_model

NUM_NETS = 6
REPEATS = 8  # of a kernel in each net's turn
REPLAYS = 5
UNITS = ((128, 32), (256, 24))  # images of a step, and their rows: by `paper`, and by most steps of `fast`
CHANNELS = (16, 32, 64)

Splits = Mapping[int, Split]
"""By channels."""


def splits(*each: Split) -> Splits:
    """Return splits for 16, 32 and 64 channels."""
    return dict(zip(CHANNELS, each, strict=True))


# By name: of the convolutions and of their input's gradients, and of the weights' gradients.
CANDIDATES: Mapping[str, tuple[Splits, Splits]] = {
    "one stage": (
        splits(Split(128), Split(128), Split(64)),
        splits(Split(128, part=1024), Split(128, part=512), Split(32, part=256)),
    ),
    "three stages": (
        splits(Split(128, stages=3), Split(128, stages=3), Split(64, stages=3)),
        splits(Split(128, part=1024, stages=3), Split(64, part=512, stages=3), Split(32, part=256, stages=3)),
    ),
    "large": (
        splits(Split(256), Split(256), Split(128)),
        splits(Split(256, part=1024), Split(128, part=1024), Split(64, part=256)),
    ),
    "large and small": (
        splits(Split(256, stages=2), Split(64, stages=3), Split(32, stages=3)),
        splits(Split(256, part=2048, stages=2), Split(64, part=256, stages=2), Split(64, part=256, stages=2)),
    ),
    "eight warps": (
        splits(Split(256, warps=8), Split(256, warps=8, stages=2), Split(128, warps=8, stages=2)),
        splits(Split(256, part=2048, warps=8), Split(128, part=512, warps=8), Split(64, part=256, warps=8)),
    ),
    "two warps": (
        splits(Split(64, warps=2), Split(64, warps=2, stages=2), Split(32, warps=2, stages=2)),
        splits(Split(128, part=2048), Split(128, part=1024, stages=2), Split(32, part=128, stages=2)),
    ),
}
# The table that a kernel's split stands in, and which of its arguments are the channels; and the same of kernels whose
# time depends on another one's split.
TABLES = {
    "conv3x3_forward": ("FORWARD", "OUT_CHANNELS"),
    "batch_statistics": ("FORWARD", "CHANNELS"),
    "conv3x3_input_gradient": ("INPUT_GRADIENT", "IN_CHANNELS"),
    "batch_gradients": ("INPUT_GRADIENT", "CHANNELS"),
    "conv3x3_weight_gradient": ("WEIGHT_GRADIENT", "OUT_CHANNELS"),
}


def take(candidate: tuple[Splits, Splits]) -> None:
    """Let nets that are built from now on be split in this way."""
    pixels, weights = candidate
    layer.FORWARD.update(pixels)
    layer.INPUT_GRADIENT.update(pixels)
    layer.WEIGHT_GRADIENT.update(weights)


def table_of(call: Call) -> tuple[str, int]:
    """Return the table and the number of channels that a kernel's time belongs to; "others" and 0: to none."""
    if not isinstance(call, Launch):  # the sum over the parts of a weight gradient
        return "WEIGHT_GRADIENT", int(call.args[0].shape[1])  # type: ignore[attr-defined]
    table, channels = TABLES.get(call.kernel.fn.__name__, ("others", ""))
    return table, int(call.arguments[channels]) if channels else 0  # type: ignore[arg-type]


def key_of(call: Call) -> str:
    """Return what is the same for kernels that take the same time."""
    if not isinstance(call, Launch):
        return f"sum {tuple(call.args[0].shape)}"  # type: ignore[attr-defined]
    sizes = {name: value for name, value in call.arguments.items() if name.isupper()}
    left_out = [name for name, value in call.arguments.items() if value is None]
    return f"{call.kernel.fn.__name__} {sizes} without {left_out}"


def microseconds(turns: Sequence[Sequence[Call]], repeats: int) -> float:
    """Return the time of one turn while all of them are taken at once, each on a stream of its own."""
    main = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=main):
        streams = [torch.cuda.Stream() for _ in turns]  # type: ignore[no-untyped-call]
        for stream, calls in zip(streams, turns, strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                for _ in range(repeats):
                    for call in calls:
                        call()
        for stream in streams:
            main.wait_stream(stream)
    times: list[float] = []
    for _ in range(REPLAYS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return median(times[1:]) / repeats / len(turns)


def plans(batch: int, size: int, device: torch.device) -> list[list[Call]]:
    """Return what a training step of each of the nets calls, after one step."""
    found = []
    for seed in range(NUM_NETS):
        generator = torch.Generator().manual_seed(seed)
        net = FusedCudaNet(build_model("resnet20", generator=generator).to(device), "bfloat16", batch)
        images = torch.randn(batch, 3, size, size, generator=generator).to(device)
        labels = torch.randint(10, (batch,), generator=generator).to(device)
        net.forward_backward(images, labels)
        passes = net._passes[size]
        found.append(passes.plan_forward(batch, training=True) + passes.plan_backward(batch))
    return found


def measure(device: torch.device) -> dict[str, float]:
    """Return microseconds per step of ResNet-20 by table and channels, and of the whole, with the splits at hand."""
    times: defaultdict[str, float] = defaultdict(float)
    for batch, size in UNITS:
        each = plans(batch, size, device)
        known: dict[str, float] = {}
        for i, call in enumerate(each[0]):
            key = key_of(call)
            if key not in known:
                known[key] = microseconds([[calls[i]] for calls in each], REPEATS)
            table, channels = table_of(call)
            times[f"{table} {channels}"] += known[key]
        times[f"whole {batch}x{size}"] = microseconds(each, 1)
    return dict(times)


def fastest(candidates: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Return the name of the fastest candidate for each table and number of channels."""
    keys = [key for key in next(iter(candidates.values())) if key.isupper()]
    return {key: min(candidates, key=lambda name: candidates[name][key]) for key in keys}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    device = resolve_device("cuda")
    found: dict[str, dict[str, float]] = {}
    for name, candidate in CANDIDATES.items():
        take(candidate)
        found[name] = measure(device)
        print(name, {key: round(time) for key, time in found[name].items()}, flush=True)
    best = fastest(found)
    for key, name in best.items():
        table, channels = key.split()
        print(key, CANDIDATES[name][table == "WEIGHT_GRADIENT"][int(channels)])
    if arguments.out:
        report: dict[str, Any] = {"gpu": describe_device(device), "microseconds": found, "fastest": best}
        write_report(arguments.out, report)


if __name__ == "__main__":
    main()
