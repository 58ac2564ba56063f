"""`deepres bench`: how long runs take on this machine."""

import click

from deepres.cli.console import new_table
from deepres.cli.options import DEVICE, NumberRange
from deepres.formatting import duration
from deepres.streams import err, out, say


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--recipe", "recipe_names", multiple=True, help="Default: all of them.")
@click.option(
    "--seconds",
    type=NumberRange(min=0.1),
    default=3.0,
    show_default=True,
    help="For each net and image size.",
)
@DEVICE
@click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
def bench(names: tuple[str, ...], recipe_names: tuple[str, ...], seconds: float, device: str, precision: str) -> None:
    """Measure how fast this machine trains, and tell how long a run of each net and recipe will take."""
    from deepres.backends.device import check_precision, describe_device, resolve_device
    from deepres.models import MODELS, build_model
    from deepres.recipes.named import RECIPES, get_recipe
    from deepres.training.bench import Speed, measure_speed

    said: set[str] = set()

    def reported(notice: str) -> None:
        if notice not in said:
            say(f"deepres: {notice}")
        said.add(notice)

    chosen = resolve_device(device, reported)
    check_precision(precision, chosen)
    made = [get_recipe(name) for name in recipe_names or [name for name in RECIPES if name != "finetune"]]
    for name in names:
        build_model(name)  # an unknown one ends here
    # Unless asked for, the deepest nets are not measured: their blocks are those of 56 layers, only more of them.
    estimated = {} if names else {name: f"{name.rstrip('0123456789')}56" for name in MODELS if name.endswith(DEEPEST)}
    names = names or tuple(MODELS)
    table = new_table(title=describe_device(chosen), title_justify="left")
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
