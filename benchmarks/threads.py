"""Speed of the fused kernels on a CPU by the number of threads, all measured in one run.

    python benchmarks/threads.py --threads 1 2 4 8 12 16 --out benchmarks/results/threads.json

What is timed is forward and backward pass of a mini-batch of 128 random images, without the choice of images, the
augmentation and the optimizer. All contenders are in one process and take turns, round after round; the table has
medians, with the lowest and highest round, and the ratio to the first number of threads.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
from reports import write_report

from deepres.backends.build import build_backend
from deepres.backends.device import describe_device
from deepres.models import build_model

BATCH = 128
CPU = torch.device("cpu")
Contender = tuple[str, str, int]  # the net, the precision, the number of threads


def measure(contenders: list[Contender], rounds: int, seconds: float) -> dict[Contender, list[float]]:
    """Return images a second, a value for each round."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    backends = {
        (name, precision): build_backend("fused", build_model(name), CPU, precision, BATCH, print)
        for name, precision in dict.fromkeys(contender[:2] for contender in contenders)
    }
    speeds: dict[Contender, list[float]] = {contender: [] for contender in contenders}
    for round_ in range(rounds + 1):  # one more, to warm up
        for contender in contenders:
            name, precision, threads = contender
            torch.set_num_threads(threads)
            backend = backends[name, precision]
            backend.forward_backward(images, labels)  # starts the threads
            begin, steps = time.perf_counter(), 0
            while (spent := time.perf_counter() - begin) < seconds:
                backend.forward_backward(images, labels)
                steps += 1
            if round_:
                speeds[contender].append(steps * BATCH / spent)
    return speeds


def rows(speeds: dict[Contender, list[float]]) -> Iterator[dict[str, Any]]:
    """Yield a row of the table for each contender."""
    first: dict[tuple[str, str], list[float]] = {}
    for (name, precision, threads), values in speeds.items():
        base = first.setdefault((name, precision), values)
        yield {
            "model": name,
            "precision": precision,
            "threads": threads,
            "images_per_second": round(median(values), 1),
            "lowest": round(min(values), 1),
            "highest": round(max(values), 1),
            "ratio": round(median(a / b for a, b in zip(values, base, strict=True)), 3),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20"])
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    contenders = [(m, p, t) for m in arguments.models for p in arguments.precisions for t in arguments.threads]
    device = describe_device(CPU).partition(",")[0]  # without the number of threads
    table = list(rows(measure(contenders, arguments.rounds, arguments.seconds)))
    print(f"{device}, {os.cpu_count()} processors")
    print(f"{'net':10}{'precision':10}{'threads':>8}{'images/s':>10}{'lowest':>9}{'highest':>9}{'ratio':>7}")
    for row in table:
        print(
            f"{row['model']:10}{row['precision']:10}{row['threads']:>8}{row['images_per_second']:>10,.0f}"
            f"{row['lowest']:>9,.0f}{row['highest']:>9,.0f}{row['ratio']:>6.2f}x"
        )
    if arguments.out:
        write_report(arguments.out, {"device": device, "processors": os.cpu_count(), "rows": table})


if __name__ == "__main__":
    main()
