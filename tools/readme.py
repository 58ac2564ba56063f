"""Write the generated parts of README.md from the data they state; `--check` only tells whether they are up to date.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from deepres.report.published import PUBLISHED

ROOT = Path(__file__).parent.parent
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """Lay out a table, numbers to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def published() -> str:
    """Return the table of what others published."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [[name, cell(p.paper), cell(p.repository_last), cell(p.repository_best)] for name, p in PUBLISHED.items()]
    return markdown_table(["net", "paper", "public repository, last epoch", "its best epoch"], rows)


PARTS: dict[str, Callable[[], str]] = {"published": published}


def generate(text: str) -> str:
    """Return the text with every generated part written anew."""
    return PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = generate(text)
    if "--check" in sys.argv[1:]:
        sys.exit(0 if new == text else "README.md is not up to date: run `make readme`")
    readme.write_text(new)
