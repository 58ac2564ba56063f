"""Tables in Markdown."""

from collections.abc import Sequence


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Lay out a table: the first `text_columns` to the left, the others, numbers, to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(headings) - text_columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, rule, *rows])
