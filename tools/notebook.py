"""Execute main.ipynb from a clean kernel and write it back with its outputs.

    python tools/notebook.py              # in a folder of its own, with results/ as it is in this checkout
    python tools/notebook.py --addresses  # only write the public address into the badge and the first cell

The public address is `Repository` in pyproject.toml.
"""

import argparse
import re
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "main.ipynb"


def repository_url() -> str:
    """Return the public address of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["urls"]["Repository"])


def badge() -> str:
    """Return the Markdown of the badge that opens the notebook on Colab."""
    place = repository_url().removeprefix("https://github.com/")
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{place}/blob/main/{NOTEBOOK.name})"
    )


def write_addresses(notebook: Any) -> None:
    """Put the public address where the notebook names it."""
    title, _, install, *_ = notebook.cells
    title.source = f"{title.source.splitlines()[0]}\n\n{badge()}"
    install.source = re.sub(r'REPOSITORY = ".*"', f'REPOSITORY = "{repository_url()}"', install.source)


def execute(notebook: Any, folder: Path, timeout: float = 3600) -> float:
    """Run all cells in a folder, from a clean kernel; return the seconds that it took.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    started = time.monotonic()
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(folder))
    return time.monotonic() - started


def tidy(notebook: Any) -> None:
    """Leave out what differs from machine to machine and says nothing."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}


def main() -> None:
    """Parse the arguments and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addresses", action="store_true", help="do not execute")
    arguments = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    write_addresses(notebook)
    if not arguments.addresses:
        with tempfile.TemporaryDirectory() as folder:  # so that the nets are trained anew
            if (ROOT / "results").is_dir():
                (Path(folder) / "results").symlink_to(ROOT / "results")
            print(f"executed in {execute(notebook, Path(folder)):.0f} s")
    tidy(notebook)
    nbformat.validate(notebook)
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
