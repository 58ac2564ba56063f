"""`deepres verify`: whether the weights of the zoo are what their cards say."""

import sys
from pathlib import Path

import click

from deepres.cli.console import new_table
from deepres.cli.options import DATA_DIR, chosen_release
from deepres.errors import UserError
from deepres.streams import err, out


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@DATA_DIR
def verify(names: tuple[str, ...], data_dir: Path | None) -> None:
    """Recompute sha256, parameters and test error of the weights NAME, or of all in the zoo.

    Exit code 1 if anything is not as the card says; a test error may differ by 3 images of 10,000, as other hardware
    rounds otherwise. Weights that are not installed are downloaded only if they are
    named, or if DEEPRES_ZOO_URL says from where.
    """
    import os

    from deepres.data.cifar10 import load_cifar10
    from deepres.zoo.catalogue import find_card, find_weights, get_weights, list_cards, zoo_folder
    from deepres.zoo.verify import tolerance
    from deepres.zoo.verify import verify as verify_card

    cards = [find_card(name) for name in names] if names else list_cards()
    if not cards:
        raise UserError(f"the zoo in {zoo_folder()} is empty")
    may_download = bool(names or os.environ.get("DEEPRES_ZOO_URL"))
    paths = [find_weights(card) or (get_weights(card) if may_download else None) for card in cards]
    test = load_cifar10(data_dir, chosen_release()).test
    table = new_table(title=f"zoo: {len(test.labels):,} test images", title_justify="left")
    for heading in ("weights", "parameters", "card %", "test error %", "verdict"):
        table.add_column(heading, justify="left" if heading in ("weights", "verdict") else "right")
    failed = checked = 0
    with err.status("") as status:
        for card, path in zip(cards, paths, strict=True):
            stated = (card.name, f"{card.num_parameters:,}", f"{card.test_error_last:.2f}")
            if path is None:
                table.add_row(*stated, "", "not installed")
                continue
            status.update(f"evaluating {card.name}")
            verdict = verify_card(card, path, test)
            error = "" if verdict.test_error is None else f"{verdict.test_error:.2f}"
            table.add_row(*stated, error, str(verdict))
            failed += bool(verdict.differences)
            checked += 1
    out.print(table)
    if missing := len(cards) - checked:
        out.print(f"{missing} not installed: name them, or set DEEPRES_ZOO_URL or DEEPRES_ZOO, to check them too")
    checks = f"sha256, parameters, test error ({tolerance(len(test.labels))})"
    out.print(f"{checked - failed} of {checked} are as their cards say: {checks}")
    if failed:
        sys.exit(1)
