"""`deepres train`: train a net, or resume its run."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepres.cli.console import result_table, this_command
from deepres.cli.options import (
    CHECKPOINT_MINUTES,
    DATA,
    DATA_DIR,
    DEVICE,
    EVALUATE_EVERY,
    IMAGE_SIZE,
    PATH,
    chosen_release,
)
from deepres.cli.reporter import ConsoleReporter
from deepres.errors import UserError
from deepres.objects import is_object_name, load_object
from deepres.runs.directory import RunDir
from deepres.streams import out, say
from deepres.training.progress import JsonReporter

if TYPE_CHECKING:
    from deepres.training.config import RunConfig


@click.command()
@click.argument("name")
@click.option(
    "--recipe", "recipe_name", default="fast", show_default=True, help="See `deepres recipes`; or FILE.toml."
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--option", default="A", show_default=True, help="Kind of shortcut: A, B or C.")
@click.option("--split", help="50k: train on everything; 45k: hold out 5,000 images as val. Default: the recipe's.")
@click.option("--fraction", type=float, default=1.0, help="Train on this share of the images, of each class the same.")
@DATA
@IMAGE_SIZE
@click.option("--run-dir", type=PATH, help="Default: runs/NAME-RECIPE-seedN.")
@DATA_DIR
@DEVICE
@click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--backend", default="auto", show_default=True, help="auto, fused, compiled or eager.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Fail unless torchrun has started so many processes.",
)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop early; the same command without it continues.")
@CHECKPOINT_MINUTES
@EVALUATE_EVERY
@click.option(
    "--progress",
    type=click.Choice(["bar", "json"]),
    default="bar",
    show_default=True,
    help="json: an object a line on standard output, for programs.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="PROGRAM",
    help="Record the run there too: wandb, mlflow, trackio or tensorboard; repeatable.",
)
def train(
    name: str,
    recipe_name: str,
    settings: tuple[str, ...],
    seed: int,
    option: str,
    split: str | None,
    fraction: float,
    data: str,
    image_size: int | None,
    run_dir: Path | None,
    data_dir: Path | None,
    device: str,
    precision: str,
    backend: str,
    workers: int | None,
    max_steps: int | None,
    checkpoint_minutes: float,
    evaluate_every: int | None,
    progress: str,
    logs: tuple[str, ...],
) -> None:
    """Train the net NAME, or resume its interrupted run.

    NAME is resnet20, plain56 or another net of 6n + 2 layers, with k times the filters resnet20xk; or a net of your
    own, FILE.py:NAME or module:NAME, called with the number of classes.
    """
    from deepres.data.datasets import label_of

    config = configure(
        name=name,
        recipe_name=recipe_name,
        settings=settings,
        seed=seed,
        option=option,
        split=split,
        fraction=fraction,
        precision=precision,
        backend=backend,
        evaluate_every=evaluate_every,
    )
    carry_out(
        config,
        run_dir or Path("runs") / config.run_name(label_of(data, image_size)),
        data=data,
        image_size=image_size,
        data_dir=data_dir,
        device=device,
        workers=workers,
        max_steps=max_steps,
        checkpoint_minutes=checkpoint_minutes,
        progress=progress,
        logs=logs,
    )


def configure(
    *,
    name: str,
    recipe_name: str,
    settings: Sequence[str],
    seed: int,
    option: str,
    split: str | None,
    fraction: float,
    precision: str,
    backend: str,
    evaluate_every: int | None,
    **others: object,
) -> "RunConfig":
    """Return what the options of `deepres train` ask for.

    Raises:
        UserError: an unknown name or setting.
    """
    from deepres.recipes.read import read_recipe
    from deepres.training.config import RunConfig
    from deepres.training.nets import build_net

    net = load_object(name) if is_object_name(name) else name
    recipe = read_recipe(recipe_name, settings)
    if split is not None:
        recipe = replace(recipe, split=split)
    if isinstance(net, str):
        build_net(net, option=option, seed=seed, num_classes=10)  # an unknown name ends here
    return RunConfig(
        net,
        recipe,
        seed=seed,
        option=option,
        precision=precision,
        backend=backend,
        evaluate_every=evaluate_every,
        fraction=fraction,
    )


def carry_out(
    config: "RunConfig",
    run_dir: Path,
    *,
    data: str,
    image_size: int | None,
    data_dir: Path | None,
    device: str,
    workers: int | None = None,
    max_steps: int | None = None,
    checkpoint_minutes: float = 5.0,
    progress: str = "bar",
    logs: Sequence[str] = (),
) -> None:
    """Train as the command line says, show the progress and the result, and end the process if it is interrupted."""
    from deepres.backends.build import check_backend
    from deepres.backends.device import check_precision, describe_device, resolve_device
    from deepres.data.datasets import load_data
    from deepres.integrations.loggers import LoggingReporter, get_loggers
    from deepres.models import count_parameters
    from deepres.runs.finished import read_record
    from deepres.training.group import Group, count_workers
    from deepres.training.nets import build_net
    from deepres.training.stopping import InterruptedRun
    from deepres.training.train import train as train_net

    if run_dir.name == "":
        raise UserError(f"--run-dir {str(run_dir)!r} is no place for a run: name a folder of its own")
    loggers = get_loggers(logs)
    recipe = config.recipe
    chosen = resolve_device(device, lambda notice: say(f"deepres: {notice}"))
    check_precision(config.precision, chosen)  # a wrong one ends here, and so does a wrong backend
    check_backend(config.backend)
    if (size := count_workers(workers, shlex.join(sys.argv[1:]))) > recipe.batch_size:
        raise UserError(f"{size} workers are too many: a mini-batch has {recipe.batch_size} images")
    dataset = load_data(data, data_dir, image_size=image_size, release=chosen_release())
    num_classes = len(dataset.classes)
    parameters = count_parameters(
        build_net(config.model, option=config.option, seed=config.seed, num_classes=num_classes)
    )
    group = Group.join(chosen)
    say(
        f"deepres: {config.name} ({parameters:,} parameters), recipe {recipe.name}, seed {config.seed}, "
        f"on {describe_device(chosen)}{f', {group.size} workers' if group.size > 1 else ''}, in {run_dir}"
    )
    reporter = JsonReporter(sys.stdout) if progress == "json" else ConsoleReporter(config.name)
    settings = {"model": config.name, "option": config.option, "seed": config.seed, "recipe": recipe.to_json()}
    logged = LoggingReporter(reporter, loggers if group.rank == 0 else {}, run_dir, settings)
    try:
        with logged:
            result = train_net(
                config,
                dataset,
                run_dir,
                device=chosen,
                max_steps=max_steps,
                checkpoint_minutes=checkpoint_minutes,
                reporter=logged,
                group=group,
            )
    except InterruptedRun as interrupted:
        say(f"deepres: {interrupted}; resume with: {this_command()}")
        sys.exit(128 + interrupted.signal_number)
    if group.rank > 0:
        return
    if isinstance(reporter, JsonReporter):
        reporter.write("result", result=result)
        return
    out.print(result_table(result, read_record(RunDir(run_dir)).is_as_published))
    curve = f", curve {RunDir(run_dir).curve}" if RunDir(run_dir).curve.exists() else ""
    out.print(f"run directory {run_dir}{curve}", markup=False, soft_wrap=True)
