"""`deepres grid`: models x recipes x seeds."""

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepres.cli.console import this_command
from deepres.cli.options import (
    CHECKPOINT_MINUTES,
    DATA,
    DATA_DIR,
    DEVICE,
    EVALUATE_EVERY,
    IMAGE_SIZE,
    PATH,
    NumberRange,
)
from deepres.errors import UserError, extra_needed
from deepres.runs.directory import RunDir
from deepres.streams import out, say

if TYPE_CHECKING:
    from deepres.grid.plan import Job
    from deepres.grid.ray import RayCluster
    from deepres.grid.train_process import Outcome
    from deepres.recipes.recipe import Recipe


SMALLEST_SHARE = 0.0001  # of a core or GPU, in Ray's arithmetic


@click.command()
@click.option(
    "--models",
    "model_names",
    multiple=True,
    metavar="NAME,...",
    help="Nets, of your own too: FILE.py:NAME. Default: the eight of 20 to 56 layers.",
)
@click.option("--recipes", "recipe_names", multiple=True, metavar="NAME,...", help="Or FILE.toml. Default: fast.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Change a setting of every recipe; several values make a run for each. Repeatable: all combinations.",
)
@click.option("--option", "options", multiple=True, metavar="A,...", help="Kinds of shortcut. Default: A.")
@click.option(
    "--fraction", "fractions", multiple=True, metavar="SHARE,...", help="Of the training images. Default: 1."
)
@DATA
@IMAGE_SIZE
@click.option("--seeds", default="1", show_default=True, help="Their number, or a list such as 0,2,5-7; 5-5 is one.")
@click.option("--split", help="50k or 45k, see `deepres train`. Default: the recipe's.")
@click.option("--out", "out_dir", type=PATH, default=Path("runs"), show_default=True)
@click.option(
    "--jobs", "parallel", type=click.IntRange(min=1), help="Processes at a time. Default: one per core, or per GPU."
)
@click.option(
    "--together",
    type=click.IntRange(min=1),
    help="Runs that take turns in each process. Default: several on an NVIDIA GPU, else 1.",
)
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", help="Of the Ray cluster. Default: $RAY_ADDRESS, or the one that runs here.")
@click.option("--cpus-per-run", type=NumberRange(min=0), default=1, show_default=True, help="For Ray.")
@click.option("--gpus-per-run", type=NumberRange(min=0), default=0, show_default=True, help="For Ray.")
@DATA_DIR
@DEVICE
@click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--backend", default="auto", show_default=True, help="auto, fused, compiled or eager.")
@CHECKPOINT_MINUTES
@EVALUATE_EVERY
def grid(
    model_names: tuple[str, ...],
    recipe_names: tuple[str, ...],
    settings: tuple[str, ...],
    options: tuple[str, ...],
    fractions: tuple[str, ...],
    data: str,
    image_size: int | None,
    seeds: str,
    split: str | None,
    out_dir: Path,
    parallel: int | None,
    together: int | None,
    engine: str,
    address: str | None,
    cpus_per_run: float,
    gpus_per_run: float,
    data_dir: Path | None,
    device: str,
    precision: str,
    backend: str,
    checkpoint_minutes: float,
    evaluate_every: int | None,
) -> None:
    """Train models x recipes x seeds, each in a run directory of its own.

    Finished runs are skipped, interrupted ones resumed, failed ones listed at the end. Ctrl-C saves all that run; the
    same command continues. Low seeds and shallow nets come first.
    """
    from deepres.backends.build import check_backend
    from deepres.data.datasets import load_data
    from deepres.grid.display import GridDisplay
    from deepres.grid.local import default_parallel, default_together, run_local
    from deepres.grid.plan import PAPER_MODELS, parse_seeds, plan_grid
    from deepres.grid.train_process import Outcome
    from deepres.training.stopping import StopRequest, stop_requests

    recipes, recipe_arguments = read_recipes(listed("--recipes", recipe_names, ["fast"]), settings, split)
    check_backend(backend)
    jobs = plan_grid(
        listed("--models", model_names, PAPER_MODELS),
        recipes,
        parse_seeds(seeds),
        out_dir,
        precision=precision,
        backend=backend,
        evaluate_every=evaluate_every,
        options=listed("--option", options, ["A"]),
        fractions=parse_fractions(listed("--fraction", fractions, ["1"])),
        data=data,
        image_size=image_size,
        dataset=None if data == "cifar10" and image_size is None else load_data(data, data_dir, image_size=image_size),
        recipe_arguments=recipe_arguments,
    )
    pending = [job for job in jobs if not job.is_finished()]
    machine = ["--device", device, "--checkpoint-minutes", f"{checkpoint_minutes:g}"]
    if evaluate_every is not None:
        machine += ["--evaluate-every", str(evaluate_every)]
    if data_dir is not None:
        machine += ["--data-dir", str(data_dir.absolute())]
    cluster = None
    if engine == "local":
        num_gpus, replays = check_machine(device, precision, data_dir, data)
        # Of all jobs, not of those left: a run continues with as many threads.
        parallel = parallel or default_parallel(ceil(len(jobs) / (together or 1)), num_gpus)
        together = together or default_together(len(jobs), parallel, replays)
    elif together is not None:
        raise UserError("--together is for --engine local: on Ray, --gpus-per-run 0.2 lets five runs share a GPU")
    else:
        cluster = connect(address, cpus_per_run, gpus_per_run, device, precision)
        parallel = parallel or max(1, len(pending))

    say(f"deepres: {number_of(jobs)} in {out_dir}, {len(jobs) - len(pending)} of them finished before")
    if pending and together is not None and together > 1:
        say(f"deepres: up to {together} runs take turns in a process; --together 1 gives each a process of its own")
    outcomes = {job.name: Outcome("finished") for job in jobs}
    stop = StopRequest()
    if pending:
        with stop_requests(stop), GridDisplay(jobs, pending) as display:
            if cluster is None:
                ended = run_local(pending, parallel, num_gpus, machine, display, stop, together or 1)
            else:
                ended = cluster.run(pending, parallel, machine, data_dir, display, stop)
            outcomes |= {job.name: ended.get(job.name, Outcome("not begun")) for job in pending}
    tell_outcomes(jobs, outcomes, out_dir)
    if stop.signal_number is not None:
        say(f"deepres: stopped by {signal.Signals(stop.signal_number).name}; continue with: {this_command()}")
        sys.exit(128 + stop.signal_number)
    if any(outcome.state != "finished" for outcome in outcomes.values()):
        sys.exit(1)


def listed(option: str, values: Sequence[str], default: Sequence[str]) -> list[str]:
    """Return the names of an option that may be given several times and may list several, each once.

    Raises:
        UserError: the option was given, but without a name, as where a shell variable is not set.
    """
    names = list(dict.fromkeys(name.strip() for value in values for name in value.split(",") if name.strip()))
    if values and not names:
        raise UserError(f"{option} {','.join(values)!r} names nothing: name some, or leave it out for the default")
    return names or list(default)


def read_recipes(
    sources: Sequence[str], settings: Sequence[str], split: str | None
) -> tuple[list["Recipe"], dict[str, list[str]]]:
    """Return every recipe with every combination of settings, and what `deepres train` is given for each, by name.

    Raises:
        UserError: an unknown recipe or setting, or one name for two recipes.
    """
    from deepres.recipes.read import read_recipe, recipe_arguments, setting_variants

    recipes: dict[str, Recipe] = {}
    arguments: dict[str, list[str]] = {}
    for source in sources:
        for chosen in product(*map(setting_variants, settings)):
            recipe = read_recipe(source, chosen)
            if split is not None:
                recipe = replace(recipe, split=split)
            if recipes.setdefault(recipe.name, recipe) != recipe:
                raise UserError(
                    f"two recipes of this grid are named {recipe.name}: leave out name, or name them apart"
                )
            arguments[recipe.name] = recipe_arguments(source, chosen)
    return list(recipes.values()), arguments


def parse_fractions(texts: Sequence[str]) -> list[float]:
    """Read shares of the training images.

    Raises:
        UserError: one is no number above 0 and at most 1.
    """
    fractions = []
    for text in texts:
        try:
            fractions.append(float(text))
        except ValueError:
            raise UserError(f"--fraction {text!r} is no number: give shares such as 0.1,1") from None
    return fractions


def check_machine(device: str, precision: str, data_dir: Path | None, data: str = "cifar10") -> tuple[int, bool]:
    """Let what would make every run here fail end now.

    Returns:
        The number of GPUs, 0 for the CPU, and whether they replay recorded steps.

    Raises:
        UserError: no such device or precision, or no CIFAR-10.
    """
    import torch

    from deepres.backends.device import check_precision, replays_graphs, resolve_device
    from deepres.data.cifar10 import check_cifar10

    chosen = resolve_device(device, lambda notice: say(f"deepres: {notice}"), prove=False)
    check_precision(precision, chosen)
    if data == "cifar10":
        check_cifar10(data_dir)
    return torch.cuda.device_count() if chosen.type == "cuda" else 0, replays_graphs(chosen)


def connect(address: str | None, cpus: float, gpus: float, device: str, precision: str) -> "RayCluster":
    """Connect to a Ray cluster.

    Raises:
        UserError: there is none, or Ray is not installed, or there is no such device or precision, or Ray cannot share
            cores and GPUs out so.
    """
    from deepres.backends.device import check_device, check_precision

    check_device(device)
    check_precision(precision)  # what the nodes compute in they know themselves
    for option, number in (("--cpus-per-run", cpus), ("--gpus-per-run", gpus)):
        if 0 < number < SMALLEST_SHARE:
            raise UserError(
                f"{option} {number:g}: Ray shares nothing out in parts below {SMALLEST_SHARE:g}; give more, or 0"
            )
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus-per-run {gpus:g}: more than one GPU goes to a run as a whole number only")
    with extra_needed("--engine ray", "ray"):
        from deepres.grid.ray import RayCluster, Resources
    return RayCluster(address, Resources(cpus, gpus), notice=lambda line: say(f"deepres: {line}"))


def number_of(jobs: Sequence["Job"]) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{len(jobs)} run{'' if len(jobs) == 1 else 's'}"


def tell_outcomes(jobs: Sequence["Job"], outcomes: Mapping[str, "Outcome"], out_dir: Path) -> None:
    """Say how the grid ended: numbers, and every run that is not finished with its reason."""
    counts = Counter(outcome.state for outcome in outcomes.values())
    out.print(f"{number_of(jobs)}: {', '.join(f'{n} {state}' for state, n in counts.items())}", markup=False)
    for job in jobs:
        outcome = outcomes[job.name]
        if outcome.message:
            out.print(f"{job.name}: {outcome.state}: {outcome.message}", markup=False, soft_wrap=True)
            if outcome.state == "failed" and RunDir(job.path).log.exists():
                out.print(f"  all that it said: {RunDir(job.path).log}", markup=False, soft_wrap=True)
    if counts["finished"]:
        out.print(f"statistics: deepres results {shlex.quote(str(out_dir))}", markup=False, soft_wrap=True)
