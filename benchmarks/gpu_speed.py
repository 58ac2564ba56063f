"""Training speed on an NVIDIA GPU: the usual way of training against deepres, both measured in one run.

    python benchmarks/gpu_speed.py                       # ResNet-20, about a minute
    python benchmarks/gpu_speed.py --models resnet20 resnet56 --out benchmarks/results/gpu_speed_h100.json

All contenders are in one process and take turns, round after round; the table has medians, with the lowest and highest
round. Milliseconds are those of a whole training step: the choice of images, augmentation, forward and backward pass,
and the optimizer.

- `conventional`: see conventional.py, with as many workers as there are cores.
- `eager` and `fused`, plain: the backends of deepres, whose operations the host starts one by one.
- the same, graph: each step is one CUDA graph, as in a run.
- the same, graph, 3 or 6: so many nets take turns, each on a stream of its own, as in a grid; the milliseconds are the
  time in which each takes a step, divided by their number.
- `evaluation`: milliseconds for 10,000 images.
- `ceiling`: the milliseconds that the floating-point operations of a step would take at the rate of a large matrix
  product in bfloat16, measured in the same rounds.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from conventional import conventional_steps
from reports import write_report
from torch import Tensor

from deepres.backends.device import describe_device, resolve_device
from deepres.backends.machine import num_cores
from deepres.data.loader import build_stream
from deepres.errors import first_line
from deepres.models import build_model
from deepres.models.cost import flop_per_image
from deepres.recipes.named import get_recipe
from deepres.training.together import own_stream
from deepres.training.trainer import Trainer

NUM_IMAGES, NUM_TEST = 50_000, 10_000
TOGETHER = (3, 6)
MATRIX = 8192
CONVENTIONAL_BATCH = 128  # the paper's

Measure = Callable[[float], float]
"""Works for about so many seconds and returns milliseconds."""


def each_step(function: Callable[[], None]) -> Callable[[], None]:
    """Record nothing: what would be replayed is called each time."""
    return function


def random_images() -> tuple[Tensor, Tensor]:
    """Return images, uint8 (N, 3, 32, 32), and labels, as many as CIFAR-10 has to train on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (NUM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(10, (NUM_IMAGES,), generator=generator)


def milliseconds(turn: Callable[[], None], device: torch.device, seconds: float, at_least: int) -> float:
    """Take turns for about so many seconds, some at least; return the time of one, with all that it leaves the GPU."""
    torch.cuda.synchronize(device)
    start, turns = time.perf_counter(), 0
    while turns < at_least or time.perf_counter() - start < seconds:
        turn()
        turns += 1
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / turns * 1e3


class Contenders:
    """What is measured of one net by one recipe.

    Args:
        name: the net.
        recipe: says what a step is; it is measured on the images of most of its steps.
        device: an NVIDIA GPU.
        backends: "eager", "fused", "compiled".
    """

    def __init__(self, name: str, recipe: str, device: torch.device, backends: list[str]) -> None:
        self.name = name
        self.recipe = get_recipe(recipe)
        self.device = device
        self.total_steps = self.recipe.total_steps(NUM_IMAGES)
        parts = self.recipe.parts(self.total_steps)
        self.size, self.first_step, _ = max(parts, key=lambda part: part[2] - part[1])
        images, labels = random_images()
        self._there = images.to(device), labels.to(device)
        self.ways: dict[str, Measure] = {}
        self.failures: dict[str, str] = {}
        for backend in backends:
            self._add(f"{backend}, plain", partial(self._training, backend, 1, graph=False))
            self._add(f"{backend}, graph", partial(self._training, backend, 1, graph=True))
            for number in TOGETHER:
                self._add(f"{backend}, graph, {number}", partial(self._training, backend, number, graph=True))
            self._add(f"{backend}, evaluation", partial(self._evaluation, backend))

    def _add(self, way: str, build: Callable[[], Measure]) -> None:
        """Build a contender and let it warm up; note what goes wrong."""
        try:
            measure = build()
            measure(0.0)
        except Exception as error:  # whatever torch, Triton or the driver raises
            self.failures[way] = first_line(error)
        else:
            self.ways[way] = measure

    def _trainer(self, backend: str, seed: int, *, graph: bool) -> Trainer:
        images, labels = self._there
        trainer = Trainer(
            name=self.name,
            option="A",
            recipe=self.recipe,
            seed=seed,
            stream=build_stream(images, labels, self.recipe, seed=seed),
            total_steps=self.total_steps,
            device=self.device,
            precision="bfloat16",
            backend=backend,
            notice=print,
            record=None if graph else each_step,
        )
        trainer.step = self.first_step
        return trainer

    def _training(self, backend: str, number: int, *, graph: bool) -> Measure:
        """So many nets, which take turns."""
        streams = [own_stream(self.device) for _ in range(number)]
        trainers: list[Trainer] = []
        for seed, stream in enumerate(streams):
            with stream:
                trainers.append(self._trainer(backend, seed, graph=graph))

        def turns() -> None:
            for trainer, stream in zip(trainers, streams, strict=True):
                with stream:
                    trainer.advance()
                    trainer.step = self.first_step + trainer.step % 100  # its images stay of one size

        return lambda seconds: milliseconds(turns, self.device, seconds, at_least=5) / number

    def _evaluation(self, backend: str) -> Measure:
        trainer = self._trainer(backend, 0, graph=True)
        images = self._there[0][:NUM_TEST]
        for _ in range(2):  # the second is recorded
            trainer.evaluate(images)

        def evaluate() -> None:
            trainer.evaluate(images).sum().item()

        return lambda seconds: milliseconds(evaluate, self.device, seconds, at_least=2)

    @property
    def pixels(self) -> float:
        """Those of a step, in images of full size."""
        return self.recipe.batch_size * ((self.size or 32) / 32) ** 2


def conventional(name: str, device: torch.device) -> Measure:
    """The usual way of the public repositories, on the GPU."""
    images, labels = (tensor.numpy() for tensor in random_images())
    steps: Iterator[float] = conventional_steps(
        name, images, labels, CONVENTIONAL_BATCH, device=device, num_workers=num_cores()
    )

    def step() -> None:
        next(steps)

    def measure(seconds: float) -> float:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=False, allow_tf32=True
        ):  # as usual
            for _ in range(3):
                next(steps)
            return milliseconds(step, device, seconds, at_least=5)

    return measure


def matrix_rate(device: torch.device, seconds: float) -> float:
    """Return the floating-point operations per second of a large matrix product in bfloat16."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device).bfloat16() for _ in range(2))
    out = torch.mm(a, b)
    torch.cuda.synchronize(device)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize(device)
        products += 10
    return products * 2 * MATRIX**3 / (time.perf_counter() - start)


def measure(name: str, recipe: str, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all contenders of one net and recipe."""
    contenders = Contenders(name, recipe, device, arguments.backends)
    ways = dict(contenders.ways)
    if arguments.conventional:
        ways["conventional"] = conventional(name, device)
        ways["conventional"](0.0)
    times: dict[str, list[float]] = {way: [] for way in [*ways, "ceiling"]}
    flop = flop_per_image(build_model(name)) * contenders.pixels
    for _ in range(arguments.rounds):
        for way, each in ways.items():
            times[way].append(each(arguments.seconds))
        times["ceiling"].append(flop / matrix_rate(device, 0.05) * 1e3)
    return {
        "batch_size": contenders.recipe.batch_size,
        "size": contenders.size or 32,
        "gflop_per_step": flop / 1e9,
        "milliseconds": times,
        "failures": contenders.failures,
        "peak_mb": torch.cuda.max_memory_allocated(device) / 1e6,
    }


def print_table(name: str, recipe: str, measured: dict[str, Any]) -> None:
    """Print one net's times, and how many times slower or faster than the usual way and the ceiling."""
    times: dict[str, list[float]] = measured["milliseconds"]
    batch = measured["batch_size"]
    print(f"\n{name}, {recipe}: {batch} images of {measured['size']} x {measured['size']} a step")
    print(f"{'':24}{'ms':>9}{'lowest':>9}{'highest':>9}{'images/s':>12}{'x conventional':>16}{'of ceiling':>12}")
    for way, values in times.items():
        line = f"{way:24}{median(values):>9.3f}{min(values):>9.3f}{max(values):>9.3f}"
        if "evaluation" in way:
            print(f"{line}{NUM_TEST / median(values) * 1e3:>12,.0f}")
            continue
        per_step = CONVENTIONAL_BATCH if way == "conventional" else batch
        line += f"{per_step / median(values) * 1e3:>12,.0f}"
        if usual := times.get("conventional"):
            line += f"{(per_step / median(values)) / (CONVENTIONAL_BATCH / median(usual)):>16.1f}"
        else:
            line += f"{'':16}"
        print(line + f"{median(times['ceiling']) / median(values):>12.1%}")
    for way, reason in measured["failures"].items():
        print(f"{way:24} {reason}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20"])
    parser.add_argument("--recipes", nargs="+", default=["paper", "fast"])
    parser.add_argument("--backends", nargs="+", default=["eager", "fused"], help="of eager, fused and compiled")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a contender in a round")
    parser.add_argument("--conventional", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    device = resolve_device("cuda")
    report: dict[str, Any] = {"gpu": describe_device(device), "cores": num_cores(), "rounds": arguments.rounds}
    report["measured"] = {}
    for name in arguments.models:
        for recipe in arguments.recipes:
            measured = measure(name, recipe, device, arguments)
            report["measured"][f"{name} {recipe}"] = measured
            print_table(name, recipe, measured)
            if arguments.out:
                write_report(arguments.out, report)


if __name__ == "__main__":
    main()
