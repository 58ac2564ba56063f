"""Speed of evaluation on a CPU: the C library's way with freed memory against `keep_freed_memory`, in one run.

    python benchmarks/evaluate_speed.py

ResNet-20 in plain torch, as `deepres evaluate`, `verify`, `predict` and `responses` compute, on the first images of
the training set. Each side runs in a process of its own; they take turns, and the table gives medians of images/s.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch

from deepres.backends.device import limit_threads
from deepres.backends.memory import keep_freed_memory
from deepres.data.augment import Normalization
from deepres.data.cifar10 import load_cifar10
from deepres.models import build_model
from deepres.weights.evaluate import predict_logits

SIDES = ("given back", "kept")


def images_per_second(num_images: int) -> float:
    """Return the speed of one evaluation, after another of the same."""
    images = torch.from_numpy(load_cifar10().train.images[:num_images])
    model, normalization = build_model("resnet20").eval(), Normalization.fit(images, "channel")
    for _ in range(2):
        begin = time.perf_counter()
        predict_logits(model, images, normalization)
        seconds = time.perf_counter() - begin
    return num_images / seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        if arguments.side == "kept":
            keep_freed_memory()
        limit_threads()  # as `deepres evaluate` does
        print(images_per_second(arguments.images))
        return
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--images", str(arguments.images), "--side", side]
            speeds[side].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    before = speeds[SIDES[0]]
    print(f"{'freed memory':14}{'images/s':>10}{'lowest':>8}{'highest':>9}{'ratio':>7}")
    for side, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(values, before, strict=True))
        print(f"{side:14}{statistics.median(values):>10,.0f}{min(values):>8,.0f}{max(values):>9,.0f}{ratio:>6.2f}x")


if __name__ == "__main__":
    main()
