"""`deepres zoo`: the weights that there are, and how they come to be there."""

from pathlib import Path

import click

from deepres.cli.console import new_table
from deepres.cli.options import DATA_DIR, PATH, chosen_release
from deepres.errors import UserError
from deepres.streams import out, say


@click.group()
def zoo() -> None:
    """List the trained weights, or add to them."""


@zoo.command("list")
def list_weights() -> None:
    """List the trained weights; `load_pretrained(NAME)` and most commands take these names."""
    from deepres.zoo.catalogue import find_weights, list_cards, zoo_folder

    cards = list_cards()
    if not cards:
        raise UserError(f"the zoo in {zoo_folder()} is empty")
    table = new_table()
    for heading in ("weights", "parameters", "test error %", "mean ± std", "n", "installed"):
        table.add_column(heading, justify="left" if heading in ("weights", "installed") else "right")
    for card in cards:
        installed = "yes" if find_weights(card) else "no"
        table.add_row(
            card.name,
            f"{card.num_parameters:,}",
            f"{card.test_error_last:.2f}",
            card.mean_and_std,
            str(card.num_seeds),
            installed,
        )
    out.print(table)


@zoo.command()
@click.argument("dirs", nargs=-1, required=True, metavar="DIR...", type=PATH)
@click.option(
    "--out",
    "folder",
    type=PATH,
    help="Default: the zoo of this checkout, src/deepres/zoo/weights.",
)
@DATA_DIR
def build(dirs: tuple[Path, ...], folder: Path | None, data_dir: Path | None) -> None:
    """Put the finished runs in DIR... into the zoo: of each net and recipe the one with the median test error.

    Of an even number of runs it is the worse of the two in the middle. Writes NAME-RECIPE.safetensors, its card .json
    and the same to read, .md. Doing it again changes nothing.
    """
    from deepres.data.cifar10 import load_cifar10
    from deepres.files import make_folder
    from deepres.training.environment import find_commit
    from deepres.zoo.build import build_zoo
    from deepres.zoo.catalogue import PACKAGED

    if folder is None:
        if find_commit() is None:
            raise UserError("deepres does not run from a checkout here: give --out, a folder for the weights")
        folder = PACKAGED
    make_folder(folder)
    build_zoo(dirs, folder, load_cifar10(data_dir, chosen_release()).test, notice=lambda line: say(f"deepres: {line}"))
    if folder == PACKAGED:
        say("deepres: `make readme` puts them into the README")
