"""Tune the recipe `fast`: train it with some of the factors below and note the val error of each run.

    python benchmarks/tuning.py --model plain56 --variants none shift+identity+adam+chain --seeds 0
    python benchmarks/tuning.py --design --model plain56   # a half of the 2^4 factorial of the first four
    python benchmarks/tuning.py --show                     # what the rows say

Errors and losses are those of the 5,000 validation images of the 45k/5k split at the last step; the test set decides
nothing. Runs are kept under --runs, so that an interrupted one continues, and each adds a row to --out as it ends,
failures too.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from math import prod, sqrt
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
import torch.nn.functional as F
from ablation import scale_rate
from reports import spread

from deepres.data.cifar10 import Cifar10, load_cifar10
from deepres.errors import UserError
from deepres.files import read_json, write_json
from deepres.models import MODELS
from deepres.recipes.named import fast, paper
from deepres.recipes.recipe import Adam, LowResolution, Muon, OneCycle, Recipe
from deepres.runs.directory import RunDir
from deepres.training.train import RunConfig, load_sets, train
from deepres.weights.evaluate import predict_logits
from deepres.weights.file import load_weights

# The recipe that the factors change, as `fast` was when the tuning began.
BASE = replace(
    fast(),
    muon=Muon(learning_rate=0.05, momentum=0.85),
    schedule=OneCycle(warmup=0.0),
    norm_adam=None,
    chain_gain=None,
    identity_share=None,
)
FACTORS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "shift": lambda recipe: replace(recipe, chain_gain=7.39),  # e²
    "identity": lambda recipe: replace(recipe, identity_share=0.5),
    "adam": lambda recipe: replace(recipe, norm_adam=Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10)),
    "chain": lambda recipe: replace(
        recipe, muon=Muon(learning_rate=0.05, momentum=0.85, full_rate_length=18), schedule=OneCycle(warmup=0.05)
    ),
    "rate": lambda recipe: replace(recipe, muon=Muon(learning_rate=0.05, momentum=0.85, full_rate_length=18)),
    "warmup": lambda recipe: replace(recipe, schedule=OneCycle(warmup=0.05)),
    "half": lambda recipe: scale_rate(recipe, 0.5),
    "double": lambda recipe: scale_rate(recipe, 2.0),
    "smaller": lambda recipe: replace(recipe, low_resolutions=(LowResolution(16, 0.2), LowResolution(24, 0.8))),
}
SCREENED = ("shift", "identity", "adam", "chain")
# Half of the 16 combinations: with "chain" where the number of the other three is odd.
DESIGN = (
    "none",
    "shift+identity+adam+chain",
    "shift+chain",
    "adam+chain",
    "identity+chain",
    "shift+identity",
    "shift+adam",
    "identity+adam",
)


def make_recipe(variant: str, fraction: float) -> Recipe:
    """Return the recipe with the factors of a variant, "none" or names joined by +, at a share of paper's compute."""
    names = [] if variant == "none" else variant.split("+")
    recipe = reduce(lambda recipe, name: FACTORS[name](recipe), names, BASE)
    return replace(recipe, split="45k").with_compute(fraction * paper().compute(50_000))


def val_loss(weights: Path, recipe: Recipe, data: Cifar10) -> float:
    """Return the mean cross-entropy in nats of weights on the 5,000 images that the recipe holds out."""
    net = load_weights(weights)
    held_out = load_sets(data, recipe, torch.device("cpu")).val
    assert held_out is not None
    images, labels = held_out
    logits = predict_logits(net.model, images, net.normalization)
    return round(F.cross_entropy(logits, labels).item(), 4)


def run(config: RunConfig, variant: str, fraction: float, data: Cifar10, run_dir: RunDir) -> dict[str, Any]:
    """Train one net; return its row."""
    row: dict[str, Any] = {"model": config.name, "variant": variant, "fraction": fraction, "seed": config.seed}
    row |= {"precision": config.precision, "recipe": config.recipe.to_json(), "failure": None}
    try:
        result = train(config, data, run_dir.path, device=torch.device("cpu"))
    except UserError as error:  # it diverged
        return {**row, "failure": str(error).partition(";")[0]}
    return {
        **row,
        "steps": result["steps"],
        "backend": result["backend"],
        "val_error": result["val_error_last"],
        "val_loss": val_loss(run_dir.weights, config.recipe, data),
        "train_error": result["train_error"],
        "seconds": result["seconds"],
        "commit": read_json(run_dir.environment)["commit"],
    }


def effects(cells: Mapping[str, float]) -> dict[str, float]:
    """Return the effects of the screened factors, and of pairs of them, on a value of each variant of the design.

    A factor's effect is the mean over the variants with it minus that over those without. A pair's is half of what one
    of its factors changes in the effect of the other; in this half of the factorial it is added to that of the two
    other factors, so that three such sums are all that can be said of interactions.
    """
    columns = [(factor,) for factor in SCREENED] + [(SCREENED[0], other) for other in SCREENED[1:]]
    found = {}
    for column in columns:
        sides: dict[int, list[float]] = {1: [], -1: []}
        for variant, value in cells.items():
            present = variant.split("+")
            sides[prod(1 if factor in present else -1 for factor in column)].append(value)
        found[" x ".join(column)] = mean(sides[1]) - mean(sides[-1])
    return found


def analyse(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the effects for each net and length of which all variants of the design have ended.

    The standard error takes the sums of interactions for noise, so that it is too large where there are interactions:
    with one seed a variant there is nothing else to estimate it from.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["variant"] in DESIGN and not row["failure"]:
            groups[row["model"], row["fraction"]].append(row)
    found = []
    for (model, fraction), members in groups.items():
        if {row["variant"] for row in members} == set(DESIGN):
            entry: dict[str, Any] = {"model": model, "fraction": fraction, "runs": len(members)}
            for key in ("val_error", "val_loss"):
                cells = {v: mean(row[key] for row in members if row["variant"] == v) for v in DESIGN}
                entry[key] = effects(cells)
                pairs = [value for name, value in entry[key].items() if " x " in name]
                entry[f"{key}_standard_error"] = sqrt(mean(value**2 for value in pairs))
            found.append(entry)
    return found


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the means of each variant, and the effects."""
    groups: dict[tuple[str, float, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["model"], row["fraction"], row["variant"]].append(row)
    print(f"{'':48} val error   std  val loss  train error  n")
    for (model, fraction, variant), members in groups.items():
        done = [row for row in members if not row["failure"]]
        line = f"{model:9} {fraction:<6g} {variant:30}"
        if done:
            errors = [row["val_error"] for row in done]
            means = [mean(row[key] for row in done) for key in ("val_loss", "train_error")]
            line += f"{mean(errors):>12.2f} {spread(errors):>5.2f} {means[0]:>9.4f} {means[1]:>12.2f} {len(done):>2}"
        print(line + "".join(f"  seed {row['seed']}: {row['failure']}" for row in members if row["failure"]))
    for entry in analyse(rows):
        print(f"\n{entry['model']}, {entry['fraction']:g} of the paper's compute: effects on val error and val loss")
        for name in entry["val_error"]:
            print(f"{name:20}{entry['val_error'][name]:>+8.2f}{entry['val_loss'][name]:>+9.3f}")
        print(
            f"{'standard error':20}{entry['val_error_standard_error']:>8.2f}{entry['val_loss_standard_error']:>9.3f}"
        )


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="plain56", choices=MODELS)
    parser.add_argument("--variants", nargs="+", default=[], metavar="FACTOR+FACTOR", help=", ".join(FACTORS))
    parser.add_argument("--design", action="store_true", help="the variants of the half factorial")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fraction", type=float, default=0.025, help="of the paper's compute")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--runs", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.json"))
    parser.add_argument("--show", action="store_true", help="print what the rows in --out say")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    variants = DESIGN if arguments.design else arguments.variants
    data = load_cifar10() if variants else None
    for seed in arguments.seeds:
        for variant in variants:
            assert data is not None
            recipe = make_recipe(variant, arguments.fraction)
            config = RunConfig(arguments.model, recipe, seed=seed, precision=arguments.precision)
            path = arguments.runs / f"{arguments.model}-{variant}-{arguments.fraction:g}-seed{seed}"
            row = run(config, variant, arguments.fraction, data, RunDir(path))
            keys = ("model", "variant", "fraction", "seed", "precision")
            others = [other for other in rows if any(other[key] != row[key] for key in keys)]
            rows = [*others, row]
            write_json(arguments.out, {"rows": rows, "effects": analyse(rows)})
            print(path.name, row.get("val_error", row["failure"]), flush=True)
    if arguments.show:
        show(rows)
        write_json(arguments.out, {"rows": rows, "effects": analyse(rows)})  # rows of an older version have none


if __name__ == "__main__":
    main()
