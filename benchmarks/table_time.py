"""How long `make reproduce-table` takes on this machine: the eight nets of figure 6, one seed each.

    python benchmarks/table_time.py     # a few minutes
    python benchmarks/table_time.py --device cuda --out benchmarks/results/table_time_gpu.json

No net is trained to the end: the times are extrapolated from measured speed. Each of the eight nets, none is
interpolated, takes training steps of each recipe by what `deepres bench` measures with, on the backend that a run
would choose, in as many processes at once as `deepres grid` would have runs: on a CPU one of one thread per core.
Counted are all steps, those on smaller images by the speed measured on such, and an evaluation of the test set at
each epoch; start-up and checkpoints are not. The runs are taken in the grid's order, each begun where a place is free.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
from reports import write_report
from train_speed import wait_for_turn

from deepres.backends.device import describe_device, resolve_device
from deepres.backends.machine import num_cores
from deepres.formatting import duration
from deepres.grid.local import default_parallel, place_environment
from deepres.grid.plan import PAPER_MODELS, plan_grid
from deepres.grid.timing import seconds_together
from deepres.recipes.named import get_recipe
from deepres.recipes.recipe import SPLITS, Recipe
from deepres.training.bench import Speed, measure_speed

RESULT = Path(__file__).parent / "results" / "table_time.json"
RECIPES = ("fast", "paper")  # what RECIPE of `make reproduce-table` may be
HOW = "extrapolated from measured speed"


def take_turns(recipes: Sequence[str], names: Sequence[str], device: torch.device, seconds: float) -> None:
    """Measure each net by each recipe in this process, at its turn, and answer with the speed."""
    for recipe in recipes:
        for name in names:
            wait_for_turn()
            print(json.dumps(vars(measure_speed(name, [get_recipe(recipe)], device, "auto", seconds))), flush=True)


def measure_together(
    recipes: Sequence[str], names: Sequence[str], device: torch.device, seconds: float, jobs: int, num_gpus: int
) -> Generator[Speed, None, None]:
    """Measure in `jobs` processes, all of them the same net at a time; yield the mean speed of a process."""
    command = [sys.executable, __file__, "--measure", "--recipes", *recipes, "--models", *names]
    command += ["--seconds", str(seconds), "--device", device.type]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **place_environment(place, jobs, num_gpus)},
                )
            )
            for place in range(jobs)
        ]
        for _ in range(len(recipes) * len(names)):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            speeds = []
            for process in processes:
                assert process.stdout is not None
                if not (line := process.stdout.readline()):
                    sys.exit(f"a process that measured ended with exit code {process.wait()}")
                speeds.append(Speed(**json.loads(line)))
            yield mean_speed(speeds)


def mean_speed(speeds: Sequence[Speed]) -> Speed:
    """Return the mean speed of processes that measured the same net."""
    train, evaluate = (statistics.mean(getattr(of, field) for of in speeds) for field in ("train", "evaluate"))
    small = [(size, statistics.mean(dict(of.small)[size] for of in speeds)) for size, _ in speeds[0].small]
    return Speed(train, evaluate, speeds[0].precision, speeds[0].backend, small)


def table_seconds(speeds: dict[str, Speed], recipe: Recipe, jobs: int) -> float:
    """Return the time of one seed of every net, `jobs` at a time in the grid's order."""
    planned = plan_grid(tuple(speeds), [recipe], [0], Path())
    return seconds_together((speeds[job.config.model].seconds(recipe) for job in planned), jobs)


def print_table(speeds: dict[str, Speed], recipe: Recipe, jobs: int) -> None:
    """Print each net's speed and time, and the time of all together."""
    print(f"\nrecipe {recipe.name}, {jobs} at a time")
    print(f"{'':10}{'backend':>10}{'images/s of each':>18}{'hours:min:s':>13}")
    for name, speed in speeds.items():
        print(f"{name:10}{speed.backend:>10}{speed.train:>18,.0f}{duration(speed.seconds(recipe)):>13}")
    print(f"one seed of each: {duration(table_seconds(speeds, recipe, jobs))}, {HOW}", flush=True)


def main() -> None:
    """Measure every net, print the tables and write the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--models", nargs="+", default=list(PAPER_MODELS))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each net and recipe, beside its warm-up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="processes at once; default: as the grid")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    if arguments.measure:
        take_turns(arguments.recipes, arguments.models, device, arguments.seconds)
        return
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    jobs = arguments.jobs or default_parallel(len(arguments.models), num_gpus)
    report: dict[str, Any] = {
        "how": HOW,
        "device": describe_device(device).split(", ")[0],
        "cores": num_cores(),
        "jobs": jobs,
        "threads": int(place_environment(0, jobs, num_gpus)["OMP_NUM_THREADS"]),
        "recipes": {},
    }
    print(f"{report['device']}; {HOW}", flush=True)
    settings = (arguments.recipes, arguments.models, device, arguments.seconds, jobs, num_gpus)
    precisions: set[str] = set()
    with closing(measure_together(*settings)) as measured:
        for recipe in map(get_recipe, arguments.recipes):
            speeds = {name: next(measured) for name in arguments.models}
            print_table(speeds, recipe, jobs)
            precisions |= {speed.precision for speed in speeds.values()}
            report["recipes"][recipe.name] = {
                "epochs": recipe.total_epochs(SPLITS[recipe.split]),
                "seconds": round(table_seconds(speeds, recipe, jobs)),
                "models": {name: describe(speed, recipe) for name, speed in speeds.items()},
            }
    write_report(arguments.out, {**report, "precision": " and ".join(sorted(precisions))})


def describe(speed: Speed, recipe: Recipe) -> dict[str, Any]:
    """Return what the report holds of one net by one recipe."""
    return {
        "images_per_second": round(speed.train, 1),
        "on_small_images": {str(size): round(small, 1) for size, small in speed.small},
        "seconds": round(speed.seconds(recipe)),
        "precision": speed.precision,
        "backend": speed.backend,
    }


if __name__ == "__main__":
    main()
