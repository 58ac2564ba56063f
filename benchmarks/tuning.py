"""Tune the recipe `fast`: train it with some of the factors below and note the val error of each run.

    python benchmarks/tuning.py --model plain56 --variants none shift+identity+adam+chain --seeds 0
    python benchmarks/tuning.py --model plain56 --design chains       # a half of the 2^4 factorial of the first four
    python benchmarks/tuning.py --model resnet20 --design ingredients # eight factors in twelve runs
    python benchmarks/tuning.py --model resnet20 --design long --fraction 0.25 --device cuda --together 8
    python benchmarks/tuning.py --show                                # what the rows say

Errors and losses are those of the 5,000 validation images of the 45k/5k split at the last step; the test set decides
nothing. Runs are kept under --runs, so that an interrupted one continues, and each adds a row to --out as it ends,
failures too.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
import torch.nn.functional as F
from ablation import scale_rate
from designs import DESIGNS, effects
from reports import spread

from deepres.backends.build import BACKENDS
from deepres.backends.device import DEVICES, resolve_device
from deepres.data.cifar10 import Cifar10, load_cifar10
from deepres.errors import UserError
from deepres.files import read_json, write_json
from deepres.models import MODELS
from deepres.recipes.named import paper
from deepres.recipes.recipe import Adam, Chain, Cosine, LookAhead, LowResolution, Muon, OneCycle, Recipe
from deepres.runs.directory import RunDir
from deepres.training.together import train_together
from deepres.training.train import Run, RunConfig, load_sets, train
from deepres.weights.evaluate import predict_logits
from deepres.weights.file import load_weights

# The recipe that the factors change: the first version of `fast`.
BASE = Recipe(
    name="fast",
    steps=1,  # set below
    batch_size=256,
    normalization="channel",
    pad=4,
    padding="reflection",
    flips="alternating",
    low_resolutions=(LowResolution(24, 0.65),),
    muon=Muon(learning_rate=0.05, momentum=0.85),
    learning_rate=0.1,
    schedule=OneCycle(warmup=0.0),
    momentum=0.9,
    nesterov=True,
    weight_decay=0.0001,
    decay_norm_and_bias=True,
)


def in_chains(recipe: Recipe, **settings: Any) -> Recipe:
    """Return the recipe with changes for nets with a chain."""
    return replace(recipe, chain=replace(recipe.chain or Chain(), **settings))


# The second version of `fast`, for nets without a chain.
SECOND = replace(
    BASE,
    pad=2,
    low_resolutions=(LowResolution(16, 0.2), LowResolution(24, 0.8)),
    muon=Muon(learning_rate=0.05, momentum=0.8),
    norm_adam=Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10),
    learning_rate=0.03,
    schedule=OneCycle(warmup=0.05),
)


def with_part(recipe: Recipe, i: int, *, until: float) -> Recipe:
    """Return the recipe with another end of one of its low resolutions."""
    parts = [replace(part, until=until) if j == i else part for j, part in enumerate(recipe.low_resolutions)]
    return replace(recipe, low_resolutions=tuple(parts))


def with_norm_rate(recipe: Recipe, rate: float) -> Recipe:
    """Return the recipe with another rate of batch normalization's scales and shifts."""
    return replace(recipe, norm_adam=Adam(learning_rate=rate, betas=(0.9, 0.99), eps=1e-10))


FACTORS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "shift": lambda recipe: in_chains(recipe, gain=7.39),  # e²
    "identity": lambda recipe: in_chains(recipe, identity_share=0.5),
    "adam": lambda recipe: replace(recipe, norm_adam=Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10)),
    "chain": lambda recipe: in_chains(replace(recipe, schedule=OneCycle(warmup=0.05)), full_rate_length=18),
    "rate": lambda recipe: in_chains(recipe, full_rate_length=18),
    "warmup": lambda recipe: replace(recipe, schedule=OneCycle(warmup=0.05)),
    "quarter": lambda recipe: scale_rate(recipe, 0.25),
    "half": lambda recipe: scale_rate(recipe, 0.5),
    "double": lambda recipe: scale_rate(recipe, 2.0),
    "higher": lambda recipe: scale_rate(recipe, 1.25),
    "momentum": lambda recipe: replace(recipe, muon=Muon(learning_rate=0.05, momentum=0.9)),
    "less_momentum": lambda recipe: replace(recipe, muon=Muon(learning_rate=0.05, momentum=0.8)),
    "least_momentum": lambda recipe: replace(recipe, muon=Muon(learning_rate=0.05, momentum=0.7)),
    "crops": lambda recipe: replace(recipe, small_images="cropped"),
    "head": lambda recipe: replace(recipe, head_rate=3.0),
    "lower_head": lambda recipe: replace(recipe, head_rate=0.3),
    "lowest_head": lambda recipe: replace(recipe, head_rate=0.1),
    "shifts2": lambda recipe: replace(recipe, pad=2),
    "smaller": lambda recipe: replace(recipe, low_resolutions=(LowResolution(16, 0.2), LowResolution(24, 0.8))),
    # On the second version of `fast`, "second" in front of the others.
    "second": lambda recipe: SECOND,
    "ahead": lambda recipe: replace(recipe, look_ahead=LookAhead(reach=0.6)),
    "farther": lambda recipe: replace(recipe, look_ahead=LookAhead(reach=0.8)),
    "smoothing": lambda recipe: replace(recipe, label_smoothing=0.1),
    "longer16": lambda recipe: with_part(recipe, 0, until=0.3),
    "longer24": lambda recipe: with_part(recipe, 1, until=0.88),
    "shorter16": lambda recipe: with_part(recipe, 0, until=0.1),
    "shorter24": lambda recipe: with_part(recipe, 1, until=0.7),
    "lower": lambda recipe: scale_rate(recipe, 0.8),
    "lowest": lambda recipe: scale_rate(recipe, 0.6),
    "shifts3": lambda recipe: replace(recipe, pad=3),
    "shifts4": lambda recipe: replace(recipe, pad=4),
    "cosine": lambda recipe: replace(recipe, schedule=Cosine(warmup=0.05)),
    "more_momentum": lambda recipe: replace(recipe, muon=Muon(learning_rate=0.05, momentum=0.87)),
    "faster_norms": lambda recipe: with_norm_rate(recipe, 0.02),
    "fastest_norms": lambda recipe: with_norm_rate(recipe, 0.03),
    "mixup": lambda recipe: replace(recipe, mixup=0.2),
    "cutout": lambda recipe: replace(recipe, cutout=8),
    "fivefold_norms": lambda recipe: with_norm_rate(recipe, 0.05),
}


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


@dataclass(frozen=True)
class Trained:
    """A net to be trained, and where."""

    variant: str
    fraction: float
    config: RunConfig
    run_dir: RunDir

    def row(self, data: Cifar10, end: Mapping[str, Any] | Exception) -> dict[str, Any]:
        """Return what there is to say of it, by its result.json or the error that it ended with."""
        config = self.config
        row = {"model": config.name, "variant": self.variant, "fraction": self.fraction, "seed": config.seed}
        row |= {"precision": config.precision, "recipe": config.recipe.to_json(), "failure": None}
        if isinstance(end, Exception):
            if not isinstance(end, UserError):
                raise end
            return {**row, "failure": str(end).partition(";")[0]}  # it diverged
        environment = read_json(self.run_dir.environment)
        starts = [*environment["earlier_starts"], environment]
        return {
            **row,
            "steps": end["steps"],
            "backend": end["backend"],
            "devices": list(dict.fromkeys(start["device"] for start in starts)),
            "val_error": end["val_error_last"],
            "val_loss": val_loss(self.run_dir.weights, config.recipe, data),
            "train_error": end["train_error"],
            "seconds": end["seconds"],
            "commit": environment["commit"],
        }


def train_all(
    runs: Sequence[Trained], data: Cifar10, device: torch.device, together: int
) -> Iterator[tuple[Trained, Mapping[str, Any] | Exception]]:
    """Train nets, one after the other or several that take turns; yield the result.json or the error of each."""
    if together > 1:
        by_path = {each.run_dir.path: each for each in runs}
        all_ended = train_together(
            (Run(each.config, data, each.run_dir.path) for each in runs), device=device, at_a_time=together
        )
        for ended in all_ended:
            yield by_path[Path(ended.run.path)], ended.error or ended.result or {}
        return
    for each in runs:
        try:
            yield each, train(each.config, data, each.run_dir.path, device=device)
        except UserError as error:
            yield each, error


def analyse(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the effects for each net, length and design of which all variants have ended."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if not row["failure"]:
            groups[row["model"], row["fraction"]].append(row)
    found = []
    for (model, fraction), ended in groups.items():
        for name, design in DESIGNS.items():
            members = [row for row in ended if row["variant"] in design.variants]
            if {row["variant"] for row in members} != set(design.variants):
                continue
            entry: dict[str, Any] = {"model": model, "fraction": fraction, "design": name, "runs": len(members)}
            for key in ("val_error", "val_loss"):
                cells = {v: mean(row[key] for row in members if row["variant"] == v) for v in design.variants}
                entry[key] = effects(design, cells)
                entry[f"{key}_standard_error"] = sqrt(mean(entry[key][noise] ** 2 for noise in design.noise))
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
        length = f"{entry['fraction']:g} of the paper's compute"
        print(f"\n{entry['model']}, {length}, {entry['design']}: effects on val error and val loss")
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
    parser.add_argument("--design", choices=DESIGNS, help="the variants of a design")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fraction", type=float, default=0.025, help="of the paper's compute")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=DEVICES)
    parser.add_argument("--backend", default="auto", choices=BACKENDS)
    parser.add_argument("--together", type=int, default=1, help="runs that take turns, for a GPU")
    parser.add_argument("--runs", type=Path, default=Path("runs/tuning"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.json"))
    parser.add_argument("--show", action="store_true", help="print what the rows in --out say")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = read_json(arguments.out)["rows"] if arguments.out.exists() else []
    variants = DESIGNS[arguments.design].variants if arguments.design else arguments.variants
    if variants:
        data, device = load_cifar10(), resolve_device(arguments.device)
        runs = []
        for seed in arguments.seeds:
            for variant in variants:
                recipe = make_recipe(variant, arguments.fraction)
                config = RunConfig(
                    arguments.model, recipe, seed=seed, precision=arguments.precision, backend=arguments.backend
                )
                name = f"{arguments.model}-{variant}-{arguments.fraction:g}-seed{seed}"
                runs.append(Trained(variant, arguments.fraction, config, RunDir(arguments.runs / name)))
        keys = ("model", "variant", "fraction", "seed", "precision")
        for each, end in train_all(runs, data, device, arguments.together):
            row = each.row(data, end)
            rows = [*(other for other in rows if any(other[key] != row[key] for key in keys)), row]
            write_json(arguments.out, {"rows": rows, "effects": analyse(rows)})
            print(each.run_dir.path.name, row.get("val_error", row["failure"]), flush=True)
    if arguments.show:
        show(rows)
        write_json(arguments.out, {"rows": rows, "effects": analyse(rows)})  # rows of an older version have none


if __name__ == "__main__":
    main()
