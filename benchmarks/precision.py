"""Does speed change results? The same seeds trained in different arithmetic, on a shortened schedule.

    python benchmarks/precision.py --out benchmarks/results/precision.json

`fused` are the kernels, `eager` is plain torch, whose bfloat16 is autocast. ResNet-20, recipe `one-cycle` cut to
a few epochs, trained on the 45,000 images of the 45k/5k split; errors are those of the 5,000 validation images at the
last step. Runs are kept under runs/precision, so that an interrupted study continues.
"""

import argparse
import os
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

from reports import spread, write_report

from deepres.backends.device import resolve_device
from deepres.data.cifar10 import load_cifar10
from deepres.recipes.named import one_cycle
from deepres.training.train import RunConfig, train

WAYS = ("eager float32", "eager bfloat16", "fused float32", "fused bfloat16")


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=["fused float32", "fused bfloat16"], choices=WAYS)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    recipe = replace(one_cycle(), epochs=arguments.epochs, split="45k")
    data = load_cifar10()
    errors: dict[str, list[float]] = {way: [] for way in arguments.ways}
    for seed in range(arguments.seeds):
        for way in arguments.ways:
            backend, precision = way.split()
            config = RunConfig("resnet20", recipe, seed=seed, backend=backend, precision=precision)
            run_dir = arguments.runs / f"{backend}-{precision}-{arguments.epochs:g}epochs-seed{seed}"
            result = train(config, data, run_dir, device=resolve_device("cpu"))
            errors[way].append(result["val_error_last"])
            print(f"seed {seed}, {way}: {result['val_error_last']:.2f}%", flush=True)

    reference, *others = errors
    print(f"\n{'':18}{'mean':>7}{'std':>6}   difference to {reference} in mean, with its standard error")
    for way, values in errors.items():
        line = f"{way:18}{mean(values):>7.2f}{spread(values):>6.2f}"
        if way in others:
            error = sqrt((spread(values) ** 2 + spread(errors[reference]) ** 2) / arguments.seeds)
            line += f"   {mean(values) - mean(errors[reference]):+.2f} ± {error:.2f}"
        print(line)
    if arguments.out:
        report: dict[str, Any] = {
            "model": "resnet20",
            "recipe": recipe.to_json(),
            "val_errors": errors,
        }
        write_report(arguments.out, report)


if __name__ == "__main__":
    main()
