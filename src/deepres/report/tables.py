"""Table 6: test error of each net and recipe beside the published ones, what is missing from it, and the claims."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

from deepres.runs.collect import csv_text
from deepres.runs.finished import model_key
from deepres.runs.groups import recipe_key
from deepres.runs.published import FIGURE6_DEPTHS, PUBLISHED, Published
from deepres.runs.statistics import ClaimTest, Summary, summary_row

EIGHT = tuple(f"{family}{depth}" for family in ("plain", "resnet") for depth in FIGURE6_DEPTHS)
EXPECTED = MappingProxyType({"paper": (*EIGHT, "resnet110"), "fast": EIGHT})  # recipe -> the nets of its table

MISSING = (
    "These have no finished run. Each line trains one of each, or more with `--seeds`; `--out` names the folder where "
    "your runs lie."
)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Lay out a table in Markdown: the first `text_columns` to the left, the others, numbers, to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(headings) - text_columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in [headings, rule, *rows])


@dataclass(frozen=True)
class TableRow:
    """A net and a recipe; runs that differ in more than their seed are in different rows."""

    label: str
    """The recipe, as `RunGroup.label` has it."""
    model: str
    summary: Summary | None
    """None: no finished run."""

    @property
    def published(self) -> Published | None:
        """What others published for the net."""
        return PUBLISHED.get(self.model) if self.summary is None else self.summary.published


def table_rows(summaries: Sequence[Summary]) -> list[TableRow]:
    """Return a row for each net and recipe, those of the paper's table that are missing included.

    The recipe `paper` comes first, then `fast`, then whatever else there is.
    """
    rows = {(s.group.label, s.group.model): TableRow(s.group.label, s.group.model, s) for s in summaries}
    for recipe, models in EXPECTED.items():
        for model in models:
            rows.setdefault((recipe, model), TableRow(recipe, model, None))
    return sorted(rows.values(), key=lambda row: (*recipe_key(row.label), model_key(row.model)))


@dataclass(frozen=True)
class Missing:
    """Nets of the paper's table that have no finished run with a recipe."""

    recipe: str
    models: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that trains them."""
        return f"deepres grid --models {shlex.quote(','.join(self.models))} --recipes {self.recipe}"


def find_missing(rows: Sequence[TableRow]) -> list[Missing]:
    """Return what is missing, recipe by recipe; runs of the recipe in another precision are there."""
    there = {(row.summary.group.recipe, row.model) for row in rows if row.summary is not None}
    missing: dict[str, list[str]] = {}
    for row in rows:
        if row.summary is None and (row.label, row.model) not in there:
            missing.setdefault(row.label, []).append(row.model)
    return [Missing(recipe, tuple(models)) for recipe, models in missing.items()]


HEADINGS = (
    "recipe",
    "net",
    "test error, last epoch",
    "runs",
    "best epoch",
    "the paper",
    "public repository, last epoch",
    "its best epoch",
    "precision",
)
TEXT_COLUMNS = 2
NOTES = (
    "Test error in percent, mean ± standard deviation over runs of one configuration and different seeds.",
    "Best epoch: the mean of each run's lowest test error, which picks the epoch by the test set and so is too good; "
    "of float32 runs that were evaluated after each epoch.",
    "The paper: for plain nets read off its figure 6; for ResNet-110 the best of 5 runs and, in brackets, their mean.",
    "The public repository: github.com/a-martyn/resnet, one run.",
)


def row_cells(row: TableRow) -> list[str]:
    """Return a row's cells as text, under `HEADINGS`."""
    summary, published = row.summary, row.published or Published(None, None, None)
    if summary is None:
        own, precision = ["missing", "0", ""], ""
    else:
        spread = "" if summary.std is None else f" ± {summary.std:.2f}"
        own = [f"{summary.mean:.2f}{spread}", str(summary.n), _number(summary.best_mean)]
        precision = summary.group.runs[0].precision
    mean = "" if published.paper_mean is None else f" ({published.paper_mean:.2f})"
    others = [
        _number(published.paper) + mean,
        _number(published.repository_last),
        _number(published.repository_best),
    ]
    return [row.label, row.model, *own, *others, precision]


def noted_table(rows: Sequence[TableRow]) -> str:
    """Return the table in Markdown with its notes."""
    table = markdown_table(HEADINGS, [row_cells(row) for row in rows], TEXT_COLUMNS)
    return "\n".join([table, *(f"- {note}" for note in NOTES)])


def table_markdown(rows: Sequence[TableRow]) -> str:
    """Return the table in Markdown, with its notes and the commands that complete it."""
    parts = ["# Table 6: test error on CIFAR-10\n", noted_table(rows)]
    if missing := find_missing(rows):
        parts += ["\n## Missing\n", f"{MISSING}\n", "```console"]
        parts += [f"$ {part.command}" for part in missing]
        parts += ["```"]
    return "\n".join(parts) + "\n"


def table_csv(rows: Sequence[TableRow]) -> str:
    """Return the statistics of each row in full precision; missing nets have none and are left out."""
    return csv_text([summary_row(row.summary) for row in rows if row.summary is not None])


def table_latex(rows: Sequence[TableRow]) -> str:
    """Return the table as a LaTeX `tabular` (it needs the package booktabs)."""
    lines = [r"\begin{tabular}{" + "l" * TEXT_COLUMNS + "r" * (len(HEADINGS) - TEXT_COLUMNS) + "}", r"\toprule"]
    lines += [" & ".join(map(latex_cell, HEADINGS)) + r" \\"]
    label = None
    for row in rows:
        if row.label != label:
            lines.append(r"\midrule")
            label = row.label
        lines.append(" & ".join(map(latex_cell, row_cells(row))) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {note}".replace("±", "+-") for note in NOTES]
    lines += [f"% missing: {part.command}" for part in find_missing(rows)]
    return "\n".join(lines) + "\n"


CLAIM_HEADINGS = ("claim", "recipe", "p-value", "points", "95% interval", "runs")
CLAIM_TEXT_COLUMNS = 2


def claim_cells(test: ClaimTest) -> list[str]:
    """Return a tested claim's cells as text, under `CLAIM_HEADINGS`."""
    return [
        test.claim.statement,
        test.label,
        test.verdict,
        "" if test.effect is None else f"{test.effect:+.2f}",
        "" if test.interval is None else f"{test.interval[0]:+.2f} to {test.interval[1]:+.2f}",
        f"{test.n[0]}, {test.n[1]}",
    ]


def claims_markdown(claims: Sequence[ClaimTest]) -> str:
    """Return the table of the claims in Markdown."""
    return markdown_table(CLAIM_HEADINGS, [claim_cells(test) for test in claims], CLAIM_TEXT_COLUMNS)


def latex_cell(text: str) -> str:
    """Escape a cell."""
    for character in "\\&%$#_{}":
        text = text.replace(character, r"\textbackslash " if character == "\\" else f"\\{character}")
    return text.replace(" ± ", r" $\pm$ ")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
