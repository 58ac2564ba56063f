"""What does each ingredient of the `fast` recipe bring? Each is removed or changed, at the same compute.

    python benchmarks/ablation.py --seeds 3 --fraction 0.025 --out benchmarks/results/ablation_resnet20.json
    python benchmarks/ablation.py --model resnet56 --fraction 0.025 --variants "the recipe" "Muon's rate halved"

On the 45,000 images of the 45k/5k split; errors are those of the 5,000 validation images at the last step. The test
set decides nothing. Runs are kept under runs/ablation, so that an interrupted study continues, and --out keeps what
the file holds of other variants. The committed files are of the first version of `fast`: they name their commit.
"""

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
from reports import spread, write_report

from deepres.data.cifar10 import load_cifar10
from deepres.files import read_json
from deepres.models import MODELS
from deepres.recipes.named import fast, paper
from deepres.recipes.recipe import OneCycle, Recipe
from deepres.training.train import RunConfig, train


def scale_rate(recipe: Recipe, factor: float) -> Recipe:
    """Return the recipe with Muon's learning rate multiplied by a factor."""
    assert recipe.muon is not None
    return replace(recipe, muon=replace(recipe.muon, learning_rate=recipe.muon.learning_rate * factor))


# Each variant of the recipe, before its length is set to the same compute.
VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "the recipe": lambda recipe: recipe,
    "SGD instead of Muon": lambda recipe: replace(
        recipe, muon=None, norm_adam=None, learning_rate=0.2, batch_size=128, weight_decay=5e-4
    ),
    # Half the mini-batch, twice the steps: a rate lower by the square root of 2 keeps their noise about the same.
    "mini-batches of 128": lambda recipe: replace(scale_rate(recipe, 0.7), batch_size=128),
    "Muon's rate doubled": lambda recipe: scale_rate(recipe, 2.0),
    "Muon's rate halved": lambda recipe: scale_rate(recipe, 0.5),
    "Muon's rate quartered": lambda recipe: scale_rate(recipe, 0.25),
    "random flips": lambda recipe: replace(recipe, flips="random"),
    "zeros as padding": lambda recipe: replace(recipe, padding="zeros"),
    "full size throughout": lambda recipe: replace(recipe, low_resolutions=()),
    "warm-up of a tenth": lambda recipe: replace(recipe, schedule=OneCycle(warmup=0.1)),
    "no decay of BN and biases": lambda recipe: replace(recipe, decay_norm_and_bias=False),
}


def run(model: str, variant: str, fraction: float, seed: int, runs: Path) -> tuple[float, str]:
    """Train one net on one thread; return its val error in percent, and the precision."""
    torch.set_num_threads(1)
    recipe = VARIANTS[variant](replace(fast(), split="45k")).with_compute(fraction * paper().compute(50_000))
    run_dir = runs / f"{model}-{variant.replace(' ', '-')}-{fraction:g}-seed{seed}"
    result = train(RunConfig(model, recipe, seed=seed), load_cifar10(), run_dir, device=torch.device("cpu"))
    return float(result["val_error_last"]), result["precision"]


def with_earlier(path: Path, study: dict[str, Any], errors: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return the errors with those of other variants that the file holds of the same study, in the variants' order."""
    earlier = read_json(path) if path.exists() else {}
    as_read = json.loads(json.dumps(study))  # tuples are lists there
    if all(earlier.get(key) == value for key, value in as_read.items()):
        errors = {**earlier["val_errors"], **errors}
    return {variant: errors[variant] for variant in VARIANTS if variant in errors}


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fraction", type=float, default=0.1, help="of the paper's compute")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    errors: dict[str, list[float]] = {}
    precisions: set[str] = set()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        futures = {
            variant: [
                pool.submit(run, arguments.model, variant, arguments.fraction, seed, arguments.runs)
                for seed in range(arguments.seeds)
            ]
            for variant in arguments.variants
        }
        print(f"{arguments.model}, val error in percent, {arguments.fraction:g} of the paper's compute")
        print(f"{'':25}   mean    std  n")
        for variant, waiting in futures.items():
            results = [future.result() for future in waiting]
            errors[variant] = [error for error, _ in results]
            precisions |= {precision for _, precision in results}
            values = errors[variant]
            print(f"{variant:25}{mean(values):>7.2f}{spread(values):>7.2f}{len(values):>3}", flush=True)
    if arguments.out:
        study = {
            "model": arguments.model,
            "recipe": fast().to_json(),
            "fraction": arguments.fraction,
            "precision": " and ".join(sorted(precisions)),
        }
        write_report(arguments.out, {**study, "val_errors": with_earlier(arguments.out, study, errors)})


if __name__ == "__main__":
    main()
