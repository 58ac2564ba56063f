"""Standard output and standard error: what is printed where, whatever they can encode."""

import os
import sys
from io import TextIOWrapper

from rich.console import Console


def protect_streams() -> None:
    """Let standard output and error write whatever they are given: what they cannot encode is written as an escape.

    File names need not be text, and a terminal's encoding need not have every letter.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


err = Console(stderr=True, highlight=False)  # progress and notices


out = Console(highlight=False)  # results


def say(message: str, *, all_workers: bool = False, console: Console = err) -> None:
    """Print a line to standard error; of several workers only the first speaks, unless all are to."""
    if all_workers or os.environ.get("RANK", "0") == "0":
        console.print(message, markup=False, soft_wrap=True)
