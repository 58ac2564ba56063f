"""Options and arguments that several commands share."""

from pathlib import Path

import click

DATA_DIR = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder that holds, or will hold, cifar-10-batches-bin/. Default: $DEEPRES_DATA, or the user cache.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
NET = click.argument("net", metavar="NAME|RUN_DIR|FILE")
