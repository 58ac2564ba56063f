"""The command line: parsing, and nothing else. Modules that need torch are imported where they are used."""

import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import click
from rich.table import Table

from deepres._version import __version__
from deepres.backends.memory import keep_freed_memory
from deepres.cli.console import err, out, result_table, say, this_command
from deepres.cli.evaluate import evaluate
from deepres.cli.export import export
from deepres.cli.figures import figures
from deepres.cli.grid import grid
from deepres.cli.import_ import import_checkpoint
from deepres.cli.options import DATA_DIR, DEVICE
from deepres.cli.predict import predict
from deepres.cli.report import report
from deepres.cli.reporter import ConsoleReporter
from deepres.cli.responses import responses
from deepres.cli.results import results
from deepres.cli.verify import verify
from deepres.cli.zoo import zoo
from deepres.errors import UserError, first_line
from deepres.formatting import duration
from deepres.runs.directory import run_name
from deepres.training.progress import JsonReporter


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="deepres %(version)s")
def cli() -> None:
    """Deep residual learning on CIFAR-10, reproduced."""


cli.add_command(grid)
cli.add_command(results)
cli.add_command(figures)
cli.add_command(report)
cli.add_command(responses)
cli.add_command(evaluate)
cli.add_command(predict)
cli.add_command(verify)
cli.add_command(export)
cli.add_command(import_checkpoint)
cli.add_command(zoo)


@cli.command()
@DATA_DIR
@click.option("--source", type=click.Choice(["auto", "official", "mirror"]), default="auto", show_default=True)
def fetch(data_dir: Path | None, source: str) -> None:
    """Download CIFAR-10 and verify it; nothing is downloaded twice."""
    from deepres.data.fetch import fetch_cifar10

    fetch_cifar10(data_dir, source, console=err)


@cli.command()
def models() -> None:
    """List the nets."""
    from deepres.models import MODELS, build_model, count_parameters
    from deepres.runs.published import PUBLISHED, published_notes
    from deepres.zoo.catalogue import list_cards_if_any

    cards = list_cards_if_any()
    table = Table(caption=f"paper: {published_notes()}", caption_justify="left")
    for heading in ("model", "layers", "parameters", "paper: test error %", "weights"):
        table.add_column(heading, justify="left" if heading in ("model", "weights") else "right")
    for name in MODELS:
        model = build_model(name)
        paper = PUBLISHED[name].paper if name in PUBLISHED else None
        weights = ", ".join(card.name.removeprefix(f"{name}-") for card in cards if card.model == name)
        published = "" if paper is None else f"{paper:.2f}"
        table.add_row(name, str(model.depth), f"{count_parameters(model):,}", published, weights)
    out.print(table)


@cli.command()
def recipes() -> None:
    """List the training recipes."""
    from deepres.recipes.named import RECIPES
    from deepres.recipes.recipe import Recipe

    made = [make() for make in RECIPES.values()]
    table = Table("setting", *(recipe.name for recipe in made))
    for field in fields(Recipe):
        if field.name != "name":
            values = [getattr(recipe, field.name) for recipe in made]
            table.add_row(field.name, *(_cell(value) for value in values))
    out.print(table)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


@cli.command()
@click.argument("name")
@click.option("--recipe", "recipe_name", default="fast", show_default=True, help="See `deepres recipes`.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--option", default="A", show_default=True, help="Kind of shortcut: A, B or C.")
@click.option("--split", help="50k: train on everything; 45k: hold out 5,000 images as val. Default: the recipe's.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: runs/NAME-RECIPE-seedN.")
@DATA_DIR
@DEVICE
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
@click.option("--backend", default="auto", show_default=True, help="auto, fused, compiled or eager.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that share each mini-batch. Default: 1.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop early; the same command without it goes on.")
@click.option("--checkpoint-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True)
@click.option(
    "--evaluate-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="EPOCHS",
    help="Fewer evaluations save time; the last step has one in any case.",
)
@click.option(
    "--progress",
    type=click.Choice(["bar", "json"]),
    default="bar",
    show_default=True,
    help="json: an object a line on standard output, for programs.",
)
def train(
    name: str,
    recipe_name: str,
    seed: int,
    option: str,
    split: str | None,
    run_dir: Path | None,
    data_dir: Path | None,
    device: str,
    precision: str,
    backend: str,
    workers: int | None,
    max_steps: int | None,
    checkpoint_minutes: float,
    evaluate_every: int,
    progress: str,
) -> None:
    """Train the net NAME, or go on with its interrupted run."""
    from deepres.models import build_model, count_parameters
    from deepres.recipes.named import get_recipe

    recipe = get_recipe(recipe_name)
    if split is not None:
        recipe = replace(recipe, split=split)
    parameters = count_parameters(build_model(name, option=option))
    if run_dir is not None and run_dir.name == "":
        raise UserError(f"--run-dir {str(run_dir)!r} is no place for a run: name a folder of its own")
    if run_dir is None:
        run_dir = Path("runs") / run_name(name, recipe.name, seed, option=option, split=recipe.split)

    from deepres.backends.build import check_backend
    from deepres.backends.device import check_precision, describe_device, resolve_device
    from deepres.data.cifar10 import load_cifar10
    from deepres.training.group import Group, launch, world_size
    from deepres.training.stopping import InterruptedRun
    from deepres.training.train import RunConfig
    from deepres.training.train import train as train_net

    chosen = resolve_device(device, lambda notice: say(f"deepres: {notice}"))
    check_precision(precision, chosen)  # a wrong one ends here, and so does a wrong backend
    check_backend(backend)
    config = RunConfig(
        name, recipe, seed=seed, option=option, precision=precision, backend=backend, evaluate_every=evaluate_every
    )
    if (size := world_size() or workers or 1) > recipe.batch_size:
        raise UserError(f"{size} workers are too many: a mini-batch has {recipe.batch_size} images")
    data = load_cifar10(data_dir)
    if world_size() is None and size > 1:
        del data  # every worker has its own
        sys.exit(launch(size, chosen))
    group = Group.join(workers, chosen)
    say(
        f"deepres: {name} ({parameters:,} parameters), recipe {recipe.name}, seed {seed}, "
        f"on {describe_device(chosen)}{f', {group.size} workers' if group.size > 1 else ''}, in {run_dir}"
    )
    reporter = JsonReporter(sys.stdout) if progress == "json" else ConsoleReporter(name)
    try:
        with reporter:
            result = train_net(
                config,
                data,
                run_dir,
                device=chosen,
                max_steps=max_steps,
                checkpoint_minutes=checkpoint_minutes,
                reporter=reporter,
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
    out.print(result_table(result))
    out.print(f"run directory {run_dir}, curve {run_dir / 'curve.png'}", markup=False, soft_wrap=True)


@cli.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--recipe", "recipe_names", multiple=True, help="Default: all of them.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    help="For each net and image size.",
)
@DEVICE
@click.option("--precision", default="auto", show_default=True, help="auto, float32 or bfloat16.")
def bench(names: tuple[str, ...], recipe_names: tuple[str, ...], seconds: float, device: str, precision: str) -> None:
    """Measure how fast this machine trains, and tell how long a run of each net and recipe will take."""
    from deepres.backends.device import check_precision, describe_device, resolve_device
    from deepres.models import MODELS, build_model
    from deepres.recipes.named import RECIPES, get_recipe
    from deepres.training.bench import Speed, measure_speed

    told: set[str] = set()

    def reported(notice: str) -> None:
        if notice not in told:
            say(f"deepres: {notice}")
        told.add(notice)

    chosen = resolve_device(device, reported)
    check_precision(precision, chosen)
    made = [get_recipe(name) for name in recipe_names or RECIPES]
    for name in names:
        build_model(name)  # an unknown one ends here
    # Unless asked for, the deepest nets are not measured: their blocks are those of 56 layers, only more of them.
    estimated = {} if names else {name: f"{name.rstrip('0123456789')}56" for name in MODELS if name.endswith(DEEPEST)}
    names = names or tuple(MODELS)
    table = Table(title=describe_device(chosen), title_justify="left")
    for heading in ("net", "backend", "precision", "images/s", *(f"{recipe.name}, hours:min:s" for recipe in made)):
        table.add_column(heading, justify="left" if heading in ("net", "backend", "precision") else "right")
    speeds: dict[str, Speed] = {}

    def num_blocks(name: str) -> int:
        return (build_model(name).depth - 2) // 2

    with err.status("") as status:
        for name in names:
            status.update(f"measuring {name}")
            if name in estimated:
                speed = speeds[estimated[name]].scaled(num_blocks(name) / num_blocks(estimated[name]))
            else:
                speed = measure_speed(name, made, chosen, precision, seconds, reported)
            speeds[name] = speed
            durations = [duration(speed.seconds(recipe)) for recipe in made]
            label = f"{name} (estimated)" if name in estimated else name
            table.add_row(label, speed.backend, speed.precision, f"{speed.train:,.0f}", *durations)
    out.print(table)


DEEPEST = ("110", "1202")  # layers


def main() -> None:
    """Run the command line and end the process."""
    try:
        run()
    except SystemExit as ended:
        if "RANK" not in os.environ:
            raise
        # A worker: gloo's threads, which wait for the others, may abort a shutdown of the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)


def run() -> None:
    """Run the command line; every foreseen error is one line and exit code 2."""
    # Threads of GNU OpenMP that wait spin for minutes by default, which ruins whatever shares the cores with them.
    # Read when torch is imported, which comes later.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except UserError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory: a smaller net, or a machine with more", 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        _fail(f"out of memory ({first_line(error)}): a smaller net, or a machine with more", 2)
    except BrokenPipeError:  # whoever read our output has gone; say nothing more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        say(f"deepres: error: {line}")
    elif not line.startswith(("another worker", "training diverged")):  # that one, or worker 0, speaks for itself
        say(f"deepres: error in worker {rank}: {line}", all_workers=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
