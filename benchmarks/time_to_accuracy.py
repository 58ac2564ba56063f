"""The first claim of the README, run again: the paper's ResNet-20 accuracy in a fraction of the paper's compute.

    python benchmarks/time_to_accuracy.py --out benchmarks/results/time_to_accuracy.json

Trains ResNet-20 by the recipe `fast` for several seeds, the test error of the last step each, and prints mean,
standard deviation, compute and time beside the paper's. The curve of error against compute, with a picture:

    python benchmarks/time_to_accuracy.py --recipes fast faster --fractions 0.05 0.025 --seeds 5 3 3 3 \
        --out benchmarks/results/error_compute.json --picture docs/error-compute.png \
        --beside benchmarks/results/error_compute_first.json

where fractions are of the paper's compute, for the first recipe at other lengths, and the picture shows an earlier
version's report too. Runs are kept, by the names that
`deepres grid` gives them, so that an interrupted benchmark continues and `--runs` may name a folder of the grid's.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from reports import write_report

from deepres.backends.device import describe_device, resolve_device
from deepres.data.cifar10 import load_cifar10
from deepres.files import read_json, write_atomically
from deepres.recipes.named import get_recipe, paper
from deepres.recipes.recipe import Recipe
from deepres.report.style import (
    PAPER_GRAY,
    add_grid,
    encode_figure,
    family_look,
    house_style,
    new_figure,
    own_points,
    published_points,
)
from deepres.runs.directory import RunDir, run_name
from deepres.runs.finished import family_of
from deepres.runs.published import PUBLISHED
from deepres.training.train import RunConfig, train

NUM_TRAIN = 50_000
PAPER_COMPUTE = paper().compute(NUM_TRAIN)


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--recipes", nargs="+", default=["fast"])
    parser.add_argument("--fractions", nargs="*", type=float, default=[], help="of the paper's compute")
    parser.add_argument("--seeds", nargs="+", type=int, default=[5], help="how many: for all, or for each in turn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/time-to-accuracy"))
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--picture", type=Path, help="write the curve of error against compute, a PNG")
    parser.add_argument("--beside", type=Path, help="an earlier version's report, whose means the picture shows too")
    arguments = parser.parse_args()
    made = [get_recipe(name) for name in arguments.recipes]
    made += [of_length(made[0], fraction) for fraction in arguments.fractions]
    numbers = arguments.seeds * len(made) if len(arguments.seeds) == 1 else arguments.seeds
    if len(numbers) != len(made):
        parser.error(
            f"--seeds gives {len(numbers)} numbers for {len(made)} recipes and lengths: give one, or {len(made)}"
        )
    device = resolve_device(arguments.device)
    data = load_cifar10()
    target = PUBLISHED[arguments.model].paper
    assert target is not None

    print(f"{arguments.model} on {describe_device(device)}; the paper: {target:g}% test error", flush=True)
    rows: list[dict[str, Any]] = []
    for recipe, seeds in zip(made, numbers, strict=True):
        fraction = recipe.compute(NUM_TRAIN) / PAPER_COMPUTE
        label = f"{recipe.name}, 1/{1 / fraction:.1f} of the paper's compute"
        results = []
        for seed in range(seeds):
            run_dir = arguments.runs / run_name(arguments.model, recipe.name, seed)
            result = train(RunConfig(arguments.model, recipe, seed=seed), data, run_dir, device=device)
            environment = read_json(RunDir(run_dir).environment)  # the run's: it may be an older one
            results.append({**result, "device": environment["device_name"]})
            print(
                f"{label}, seed {seed}: {result['test_error_last']:.2f}%, {result['seconds'] / 60:.1f} min", flush=True
            )
        errors = [result["test_error_last"] for result in results]
        spread = f" ± {stdev(errors):.2f}" if len(errors) > 1 else ""
        minutes = mean(result["seconds"] for result in results) / 60
        verdict = "reached" if mean(errors) <= target else "not reached"
        print(
            f"{label}: {mean(errors):.2f}{spread}% (n = {len(errors)}, last step), {minutes:.1f} min a run: "
            f"the paper's {target:g}% is {verdict}",
            flush=True,
        )
        rows.append(describe(recipe, fraction, results))
    if arguments.out:
        report = {
            "model": arguments.model,
            "paper_error": target,
            "rows": rows,
        }
        write_report(arguments.out, report)
    if arguments.picture:
        earlier = read_json(arguments.beside)["rows"] if arguments.beside else []
        write_atomically(arguments.picture, encode_figure(draw_curve(arguments.model, target, rows, earlier), "png"))


def of_length(recipe: Recipe, fraction: float) -> Recipe:
    """Return the recipe at another length, with a name of its own."""
    return replace(recipe, name=f"{recipe.name}-{fraction:g}").with_compute(fraction * PAPER_COMPUTE)


def errors_by_compute(rows: list[dict[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Return fractions of the paper's compute, rising, and for each the test errors of the seeds."""
    rows = sorted(rows, key=lambda row: float(row["compute_fraction"]))
    return [row["compute_fraction"] for row in rows], [[run["test_error_last"] for run in row["runs"]] for row in rows]


def draw_curve(model: str, target: float, rows: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> Figure:
    """Draw the test error of the last step against the compute: all seeds, and means, an earlier version's too."""
    fractions, errors = errors_by_compute(rows)
    earlier_fractions, earlier_errors = errors_by_compute(earlier)
    look = family_look(family_of(model))
    with house_style():
        figure = new_figure(7.4, 4.4)
        axes = figure.add_subplot()
        axes.axhline(target, color=PAPER_GRAY, ls=":", lw=1)
        axes.plot([1], [target], label="the paper", **published_points(look))
        for fraction, each in zip(fractions, errors, strict=True):
            axes.plot([fraction] * len(each), each, ls="", marker=".", ms=5, color=look.color, alpha=0.5, zorder=3)
        if earlier:
            line: dict[str, Any] = {"color": look.color, "ls": "--", "lw": 1, "marker": "o", "ms": 4, "mfc": "white"}
            axes.plot(
                earlier_fractions, list(map(mean, earlier_errors)), label="an earlier version of the recipe", **line
            )
        means = list(map(mean, errors))
        axes.plot(fractions, means, label="mean of the seeds (small points)", **own_points(look))
        axes.set_xscale("log")
        lengths = {f"1/{1 / x:.0f}": x for x in [*earlier_fractions, *fractions]} | {"1": 1.0}
        axes.set_xticks(list(lengths.values()), list(lengths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="training compute, of the paper's", ylabel="test error, last step (%)", title=model)
        add_grid(axes)
        axes.legend()
    return figure


def describe(recipe: Recipe, fraction: float, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the report holds of the runs of one recipe at one length."""
    keys = ["seed", "test_error_last", "test_error_best", "train_error", "seconds", "images_per_second"]
    keys += ["precision", "device"]
    return {
        "recipe": recipe.to_json(),
        "compute_fraction": fraction,
        "runs": [{key: result[key] for key in keys} for result in results],
    }


if __name__ == "__main__":
    main()
