"""Training speed: the usual way of training on a CPU against deepres, both measured in one run.

    python benchmarks/train_speed.py                       # ResNet-20, over 10 minutes; --steps 75 halves it
    python benchmarks/train_speed.py --models resnet20 resnet56 plain56 --out benchmarks/results/train_speed_avx2.json

Each contender runs in a process of its own. They take turns, round after round, so that whatever else the machine does
falls on all of them; the tables give medians with the lowest and highest round.

- `conventional`: see conventional.py.
- `loop`, with precision and epochs from one evaluation to the next: the whole of `deepres train` on
  real images: augmentation, steps, losses read at each step, evaluation, checkpoints, metrics. A round is an epoch, or
  as many as there are to an evaluation, of a subset; the test set is a fifth of its size, as CIFAR-10's is.
- `bare`, with precision and rows of the images: forward, backward and optimizer on one unchanging mini-batch.
- `compiled`: the same through torch.compile instead of the fused kernels.
- `ceiling`: the images/s at which the floating-point operations of a training step would run at the rate of a large
  matrix product, measured in the same rounds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
from reports import write_report

from deepres.backends.device import has_native_bfloat16, limit_threads
from deepres.backends.fused.build import why_no_tiles
from deepres.backends.machine import num_cores
from deepres.backends.memory import keep_freed_memory
from deepres.data.cifar10 import Cifar10, Split, load_cifar10
from deepres.models import build_model
from deepres.models.cost import flop_per_image
from deepres.recipes.named import one_cycle
from deepres.runs.directory import Row
from deepres.training.group import Group
from deepres.training.progress import Reporter
from deepres.training.train import RunConfig, build_trainer, load_sets, train

CPU = torch.device("cpu")
BATCH = 128
MATRIX = 4096
SIZES = (32, 24)  # rows of the images; `fast` takes most of its steps on the smaller ones
PRECISIONS = ("bfloat16", "float32")


def subset(steps: int) -> Cifar10:
    """Return the first images of CIFAR-10: an epoch of `steps` mini-batches, and a fifth as many for the test."""
    data = load_cifar10()
    num_train = steps * BATCH
    train_images = Split(data.train.images[:num_train], data.train.labels[:num_train])
    return Cifar10(train_images, Split(data.test.images[: num_train // 5], data.test.labels[: num_train // 5]))


class Turns(Reporter):
    """Lets a run continue from evaluation to evaluation, when the benchmark says so."""

    def __init__(self, images: int) -> None:
        self.images = images
        self._start = 0.0

    def epoch(self, row: Row) -> None:
        """A round is over, with its evaluation and checkpoint: report it and wait for the next turn."""
        if self._start:
            answer(self.images / (time.perf_counter() - self._start))
        else:
            print("ready", flush=True)
        wait_for_turn()
        self._start = time.perf_counter()


def wait_for_turn() -> None:
    """Block until the benchmark gives the turn; end when it hangs up."""
    if not sys.stdin.readline():
        os._exit(0)


def answer(rate: float) -> None:
    """Report a rate and the peak memory so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rate": rate, "peak_mb": peak}), flush=True)


def take_turns(rounds: Iterator[float]) -> None:
    """Answer each turn with the next rate; the first one warms up."""
    next(rounds)
    print("ready", flush=True)
    while True:
        wait_for_turn()
        answer(next(rounds))


def conventional(name: str, steps: int) -> None:
    """The usual way."""
    from conventional import conventional_steps

    data = subset(100)
    each = conventional_steps(name, data.train.images, data.train.labels, BATCH)
    for _ in range(3):
        next(each)

    def rounds() -> Iterator[float]:
        while True:
            start = time.perf_counter()
            for _ in range(steps):
                next(each)
            yield steps * BATCH / (time.perf_counter() - start)

    take_turns(rounds())


def loop(name: str, steps: int, precision: str, evaluate_every: int) -> None:
    """The whole loop of deepres."""
    recipe = replace(one_cycle(), epochs=1000)
    config = RunConfig(name, recipe, precision=precision, evaluate_every=evaluate_every)
    epoch = steps // evaluate_every
    turns = Turns(epoch * evaluate_every * BATCH)
    with tempfile.TemporaryDirectory() as run_dir:
        train(config, subset(epoch), run_dir, device=CPU, reporter=turns)


def bare(name: str, steps: int, precision: str, backend: str, size: int) -> None:
    """Forward, backward and optimizer alone, on images of size x size pixels."""
    keep_freed_memory()
    recipe = one_cycle()
    config = RunConfig(name, recipe, precision=precision, backend=backend)
    trainer = build_trainer(config, load_sets(subset(100), recipe, CPU), CPU, Group(), notice=print)
    images, labels = trainer.stream.batch(0)
    images = images[..., :size, :size].contiguous()

    def rounds() -> Iterator[float]:
        while True:
            start = time.perf_counter()
            for _ in range(steps):
                trainer.backend.forward_backward(images, labels)
                trainer.update()
            yield steps * BATCH / (time.perf_counter() - start)

    take_turns(rounds())


def ceiling(name: str, precision: str) -> None:
    """The rate of a large matrix product, in images/s."""
    dtype = getattr(torch, precision)
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    out = torch.empty(MATRIX, MATRIX, dtype=dtype)
    flop = flop_per_image(build_model(name))

    def rounds() -> Iterator[float]:
        while True:
            start = time.perf_counter()
            for _ in range(5):
                torch.mm(a, b, out=out)
            yield 5 * 2 * MATRIX**3 / (time.perf_counter() - start) / flop

    take_turns(rounds())


def contenders() -> list[str]:
    """Name what this machine can measure."""
    precisions = [p for p in PRECISIONS if p == "float32" or has_native_bfloat16(CPU)]
    names = ["conventional"]
    for precision in precisions:
        loops = [f"loop {precision} 1", f"loop {precision} 4"]
        bare_steps = [f"bare {precision} {size}" for size in SIZES]
        names += [*loops, *bare_steps, f"compiled {precision}", f"ceiling {precision}"]
    return names


def compete(contender: str, name: str, steps: int) -> None:
    """Run one contender in this process."""
    limit_threads()  # as `deepres train` does
    kind, *rest = contender.split()
    if kind == "conventional":
        conventional(name, max(10, steps // 3))
    elif kind == "loop":
        loop(name, steps, rest[0], int(rest[1]))
    elif kind == "bare":
        bare(name, steps, rest[0], "fused", int(rest[1]))
    elif kind == "compiled":
        bare(name, steps, rest[0], "compiled", max(SIZES))
    else:
        ceiling(name, rest[0])


def measure(name: str, num_rounds: int, steps: int) -> dict[str, Any]:
    """Measure all contenders for one net."""
    processes = {}
    for contender in contenders():
        command = [sys.executable, __file__, "--contender", contender, "--models", name, "--steps", str(steps)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes[contender] = process
        assert process.stdout is not None
        while (line := process.stdout.readline().strip()) != "ready":  # one after the other: they warm up undisturbed
            if not line and process.poll() is not None:
                sys.exit(f"contender {contender!r} ended with exit code {process.returncode}")
    rates: dict[str, list[float]] = {contender: [] for contender in processes}
    peaks: dict[str, float] = {}
    for _ in range(num_rounds):
        for contender, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline())
            rates[contender].append(reply["rate"])
            peaks[contender] = reply["peak_mb"]
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
        process.terminate()
        process.wait()
    return {"flop_per_image": flop_per_image(build_model(name)), "rates": rates, "peak_mb": peaks}


def startup(cold: bool) -> float:
    """Seconds from typing `deepres train` to the end of the first step; cold: with empty caches."""
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, DEEPRES_DATA=str(load_dir()))
        if cold:
            environment["XDG_CACHE_HOME"] = folder
        command = [sys.executable, "-m", "deepres", "train", "resnet20", "--device", "cpu", "--progress", "json"]
        command += ["--run-dir", f"{folder}/run"]
        start = time.perf_counter()
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            for line in run.stdout:
                if json.loads(line)["event"] == "step":
                    seconds = time.perf_counter() - start
                    run.kill()
                    return seconds
    sys.exit(f"a training ended with exit code {run.returncode} before its first step")


def load_dir() -> Path:
    """Return the data directory in use."""
    from deepres.data.cifar10 import resolve_data_dir

    return resolve_data_dir(None)


def work(contender: str) -> float:
    """Return the floating-point operations of one of a contender's images, relative to one of full size."""
    kind, *rest = contender.split()
    return (int(rest[1]) / max(SIZES)) ** 2 if kind == "bare" else 1.0


def print_table(name: str, measured: dict[str, Any]) -> None:
    """Print one net's rates, medians and the ratios within each round."""
    rates: dict[str, list[float]] = measured["rates"]

    def ratio(contender: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[contender], rates[to], strict=True))

    print(f"\n{name}, {measured['flop_per_image'] / 1e6:.1f} MFLOP a training image")
    print(f"{'':24}{'images/s':>10}{'lowest':>8}{'highest':>9}{'x conventional':>16}{'of ceiling':>12}{'peak MB':>9}")
    for contender, values in rates.items():
        precision = next((p for p in PRECISIONS if p in contender), "float32")
        of_ceiling = work(contender) * ratio(contender, f"ceiling {precision}")
        print(
            f"{contender:24}{statistics.median(values):>10,.0f}{min(values):>8,.0f}{max(values):>9,.0f}"
            f"{ratio(contender, 'conventional'):>16.2f}{of_ceiling:>12.0%}"
            f"{measured['peak_mb'][contender]:>9,.0f}"
        )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150, help="mini-batches in a round; fewer for larger nets")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        compete(arguments.contender, arguments.models[0], arguments.steps)
        return
    report: dict[str, Any] = {
        "processor": str(torch.cpu.get_capabilities().get("cpu_name")),
        "cores": num_cores(),
        "tiles": why_no_tiles() is None,  # AMX's, which bfloat16 is computed on
        "rounds": arguments.rounds,
        "startup_cold_seconds": startup(cold=True),
        "startup_warm_seconds": statistics.median(startup(cold=False) for _ in range(3)),
        "models": {},
    }
    print(f"first step after {report['startup_warm_seconds']:.1f} s, cold {report['startup_cold_seconds']:.1f} s")
    for name in arguments.models:
        steps = round(arguments.steps * flop_per_image(build_model("resnet20")) / flop_per_image(build_model(name)))
        report["models"][name] = measure(name, arguments.rounds, steps)
        print_table(name, report["models"][name])
    if arguments.out:
        write_report(arguments.out, report)


if __name__ == "__main__":
    main()
