"""How long the whole of the paper's table takes on this machine: the eight nets, one seed each.

    python benchmarks/table_time.py                # every core a process of one thread, as `deepres grid` does
    python benchmarks/table_time.py --device cuda --jobs 1

Each net is measured by what `deepres bench` measures with, in as many processes at once as the grid would run. The
time of the table is extrapolated from these speeds: the runs in the grid's order, each begun where a place is free.
"""

import argparse
import heapq
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch

from deepres.grid.local import default_parallel, place_environment
from deepres.grid.plan import PAPER_MODELS, plan_grid
from deepres.recipes import RECIPES
from deepres.rundir import write_json
from deepres.training.bench import Speed, measure_speed
from deepres.training.device import describe_device, resolve_device, resolve_precision
from deepres.training.environment import find_commit

RESULT = Path(__file__).parent / "results" / "table_time.json"


def measure(name: str, recipe: str, device: torch.device, seconds: float) -> None:
    """Measure one net in this process and print the speed as JSON."""
    speed = measure_speed(name, RECIPES[recipe](), device, resolve_precision("auto", device), seconds)
    print(json.dumps(vars(speed)))


def measure_together(name: str, recipe: str, device: torch.device, seconds: float, jobs: int) -> Speed:
    """Measure one net in `jobs` processes at once; return the mean speed of a process."""
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    command = [sys.executable, __file__, "--measure", name, "--recipes", recipe, "--seconds", str(seconds)]
    processes = [
        subprocess.Popen(
            [*command, "--device", device.type],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **place_environment(place, jobs, num_gpus)},
        )
        for place in range(jobs)
    ]
    speeds = []
    for process in processes:
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"measuring {name} failed")
        speeds.append(Speed(**json.loads(output.splitlines()[-1])))
    train, evaluate = (statistics.mean(getattr(speed, field) for speed in speeds) for field in ("train", "evaluate"))
    return Speed(train=train, evaluate=evaluate, backend=speeds[0].backend)


def table_seconds(speeds: dict[str, Speed], recipe: str, jobs: int) -> float:
    """Return the time of one seed of every net, `jobs` at a time."""
    places = [0.0] * jobs
    made = RECIPES[recipe]()
    for job in plan_grid(PAPER_MODELS, [made], [0], Path()):
        heapq.heappush(places, heapq.heappop(places) + speeds[job.config.model].seconds(made))
    return max(places)


def main() -> None:
    """Measure every net, print the table's time and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help="measure this net alone, in this process")
    parser.add_argument("--recipes", nargs="+", default=["fast", "paper"])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each net and recipe")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="processes at once; default: as the grid")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    if arguments.measure:
        measure(arguments.measure, arguments.recipes[0], device, arguments.seconds)
        return
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    jobs = arguments.jobs or default_parallel(len(PAPER_MODELS), num_gpus)
    report: dict[str, Any] = {
        "device": describe_device(device).split(", ")[0],
        "jobs": jobs,
        "threads": int(place_environment(0, jobs, num_gpus)["OMP_NUM_THREADS"]),
        "precision": resolve_precision("auto", device),
        "torch": torch.__version__,
        "commit": find_commit(),
        "recipes": {},
    }
    for recipe in arguments.recipes:
        speeds = {}
        for name in PAPER_MODELS:
            speeds[name] = measure_together(name, recipe, device, arguments.seconds, jobs)
            print(f"{recipe} {name}: {jobs} x {speeds[name].train:,.0f} images/s ({speeds[name].backend})", flush=True)
        seconds = table_seconds(speeds, recipe, jobs)
        print(f"{recipe}: the table in {seconds / 3600:.1f} hours")
        report["recipes"][recipe] = {
            "epochs": RECIPES[recipe]().total_epochs(50_000),
            "seconds": round(seconds),
            "images_per_second": {name: round(speed.train, 1) for name, speed in speeds.items()},
        }
    write_json(arguments.out, report)


if __name__ == "__main__":
    main()
