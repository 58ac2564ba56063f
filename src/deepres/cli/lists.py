"""`deepres fetch`, `models` and `recipes`: the data, and what there is to train."""

from dataclasses import fields
from pathlib import Path

import click

from deepres.cli.console import new_table
from deepres.cli.options import DATA_DIR, chosen_release
from deepres.errors import UserError
from deepres.streams import err, out, say

RECIPE_WIDTH = 15  # characters of a column in the table of recipes, at least


@click.command()
@DATA_DIR
@click.option("--data", type=click.Choice(["cifar10", "cifar100"]), default="cifar10", show_default=True)
@click.option("--source", type=click.Choice(["auto", "official", "mirror"]), default="auto", show_default=True)
def fetch(data_dir: Path | None, data: str, source: str) -> None:
    """Download CIFAR-10 or CIFAR-100 and verify it; nothing is downloaded twice."""
    from deepres.data.cifar100 import fetch_cifar100
    from deepres.data.fetch import fetch_cifar10

    if data == "cifar100":
        if source == "mirror":
            raise UserError("there is no mirror of CIFAR-100: leave out --source")
        say(f"CIFAR-100 is ready in {fetch_cifar100(data_dir)}: three files, all with the published md5")
        return
    fetch_cifar10(data_dir, source, console=err, release=chosen_release())


@click.command()
def models() -> None:
    """List the nets."""
    from deepres.models import MODELS, build_model, count_parameters
    from deepres.runs.published import PUBLISHED, published_notes
    from deepres.zoo.catalogue import list_cards_if_any

    cards = list_cards_if_any()
    table = new_table(caption=f"paper: {published_notes()}", caption_justify="left")
    for heading in ("model", "layers", "parameters", "paper: test error %", "weights"):
        table.add_column(heading, justify="left" if heading in ("model", "weights") else "right")
    for name in MODELS:
        model = build_model(name)
        paper = PUBLISHED[name].paper if name in PUBLISHED else None
        weights = ", ".join(card.name.removeprefix(f"{name}-") for card in cards if card.model == name)
        published = "" if paper is None else f"{paper:.2f}"
        table.add_row(name, str(model.depth), f"{count_parameters(model):,}", published, weights)
    out.print(table)


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """List the training recipes."""
    if context.invoked_subcommand is None:
        list_recipes()


@recipes.command()
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
def show(name: str, settings: tuple[str, ...]) -> None:
    """Print the recipe NAME as a TOML file, to begin one's own with."""
    from deepres.recipes.read import base_of, read_recipe, to_toml

    click.echo(to_toml(read_recipe(name, settings), base_of(name)), nl=False)


def list_recipes() -> None:
    """Print the settings of all named recipes, and which are off in all of them."""
    from deepres.recipes.named import RECIPES
    from deepres.recipes.recipe import Recipe

    made = [make() for make in RECIPES.values()]
    names = [field.name for field in fields(Recipe) if field.name != "name"]
    cells = {name: [_cell(getattr(recipe, name)) for recipe in made] for name in names}
    side_by_side = max(1, (out.width - RECIPE_WIDTH) // RECIPE_WIDTH)
    for first in range(0, len(made), side_by_side):
        part = slice(first, first + side_by_side)
        table = new_table("setting", *(recipe.name for recipe in made[part]))
        for name, row in cells.items():
            if any(row):
                table.add_row(name, *row[part])
        out.print(table)
    out.print(f"off in all of them: {', '.join(name for name, row in cells.items() if not any(row))}")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
