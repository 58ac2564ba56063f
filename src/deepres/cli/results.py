"""`deepres results`: rows and statistics of finished runs, and the tests of the paper's claims."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import JustifyMethod
from rich.table import Table

from deepres.cli.console import new_table
from deepres.cli.options import PATH
from deepres.errors import UserError
from deepres.runs.collect import collect_runs, csv_text, run_row
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs, labels_in_order
from deepres.streams import out, say

if TYPE_CHECKING:
    from deepres.runs.statistics import ClaimTest, Interval, Summary

P_VALUE = "p-value"
NOTES = (
    "std: the sample's; 95% interval: of the mean, by Student's t; best epoch: chosen by test error, so that it is "
    'too good by "best - last"; the paper: for plain nets read off figure 6, for resnet110 its mean of 5 runs; public '
    "repo: one run, last epoch; diff.: mean - the paper",
    "claims: n runs of the first and of the second net; points: by how much the claim holds, with a two-sided "
    "interval; p-value: Welch's t-test, one-sided, not corrected for several claims",
)


@click.command()
@click.argument("dirs", nargs=-1, required=True, metavar="DIR...", type=PATH)
@click.option("--out", "out_dir", type=PATH, help="Gather the runs there, to be committed.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json", "csv", "markdown"]), default="text", show_default=True
)
def results(dirs: tuple[Path, ...], out_dir: Path | None, style: str) -> None:
    """Show the statistics of the finished runs in DIR... and test the paper's claims.

    A DIR is a run directory or holds some at any depth. Runs that differ in more than their seed are never averaged.
    With --out, the small files of each run are copied to OUT/runs/ and a row of each is written to OUT/runs.csv.
    """
    try:
        from deepres.runs.statistics import check_claims, claim_row, summarize, summary_row
    except ModuleNotFoundError as missing:
        raise UserError(f"deepres results needs {missing.name}: pip install 'deepres[report]'") from None

    finished, skipped = load_runs(dirs)
    for run in skipped:
        say(f"deepres: left out {run.path}: {run.reason}")
    if not finished:
        raise UserError(f"no finished run in {', '.join(map(str, dirs))}")
    if out_dir is not None:
        collected = collect_runs(finished, out_dir)
        say(f"deepres: {len(finished)} runs gathered in {out_dir}, which holds {len(collected)} now")
    groups = group_runs(finished)
    summaries = [summarize(group) for group in groups]
    claims = check_claims(groups)
    if style == "json":
        content = {
            "runs": [run_row(run) for run in finished],
            "statistics": [summary_row(summary) for summary in summaries],
            "claims": [claim_row(claim) for claim in claims],
            "left_out": [{"path": str(run.path), "reason": run.reason} for run in skipped],
        }
        click.echo(json.dumps(content, indent=2))
    elif style == "csv":
        click.echo(csv_text([summary_row(summary) for summary in summaries]), nl=False)
    else:
        show = _print_markdown if style == "markdown" else _print_text
        for label in labels_in_order(groups):
            show(
                [summary for summary in summaries if summary.group.label == label],
                [claim for claim in claims if claim.label == label],
            )
        for note in NOTES:
            if style == "markdown":
                click.echo(f"{note[0].upper()}{note[1:]}.\n")
            else:
                out.print(note, markup=False)


def _summary_cells(summaries: Sequence["Summary"]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the table of one recipe; a column that has nothing to show is left out."""
    columns = {
        "net": [s.group.model for s in summaries],
        "n": [str(s.n) for s in summaries],
        "mean ± std": [f"{s.mean:.2f}" + (f" ± {s.std:.2f}" if s.std is not None else "") for s in summaries],
        "95% interval": [_interval(s.interval) for s in summaries],
        "median": [f"{s.median:.2f}" for s in summaries],
        "val": [_number(s.val_mean) for s in summaries],
        "best\nepoch": [_number(s.best_mean) for s in summaries],
        "best\n- last": [_number(s.optimism, "+z.2f") for s in summaries],
        "the\npaper": [_number(s.paper) for s in summaries],
        "public\nrepo": [_number(s.published.repository_last if s.published else None) for s in summaries],
        "diff.": [_number(s.difference, "+z.2f") for s in summaries],
    }
    columns = {heading: cells for heading, cells in columns.items() if any(cells)}
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _claim_cells(claims: Sequence["ClaimTest"]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            c.claim.statement,
            f"{c.n[0]}, {c.n[1]}",
            _number(c.effect, "+z.2f"),
            _interval(c.interval, "+z.2f"),
            c.verdict,
        ]
        for c in claims
    ]
    return ["claim", "n", "points", "95% interval", P_VALUE], rows


def _number(value: float | None, style: str = ".2f") -> str:
    return "" if value is None else format(value, style)


def _interval(interval: "Interval | None", style: str = ".2f") -> str:
    return "" if interval is None else f"{interval[0]:{style}} to {interval[1]:{style}}"


def _title(summaries: Sequence["Summary"]) -> str:
    nets: dict[str, list[str]] = {}
    for summary in summaries:
        nets.setdefault(summary.group.runs[0].precision, []).append(summary.group.model)
    precisions = " and ".join(
        precision if len(nets) == 1 else f"{precision} ({', '.join(models)})" for precision, models in nets.items()
    )
    return f"Recipe {summaries[0].group.label} in {precisions}: test error in percent, last epoch"


def _print_text(summaries: Sequence["Summary"], claims: Sequence["ClaimTest"]) -> None:
    out.print(_title(summaries), style="italic", markup=False)
    out.print(_table(*_summary_cells(summaries)))
    out.print()
    if claims:
        out.print(_table(*_claim_cells(claims)))
        out.print()


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Lay out a table as narrow as it can be."""
    table = new_table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0))
    for heading in headings:
        justify: JustifyMethod = "left" if heading in ("net", "claim") else "right"
        table.add_column(heading, justify=justify, no_wrap=heading != P_VALUE)  # which may name two precisions
    for row in rows:
        table.add_row(*row)
    return table


def _print_markdown(summaries: Sequence["Summary"], claims: Sequence["ClaimTest"]) -> None:
    from deepres.report.tables import markdown_table  # here, since it needs scipy

    headings, rows = _summary_cells(summaries)
    headings = [heading.replace("\n", " ") for heading in headings]
    click.echo(f"### {_title(summaries)}\n\n{markdown_table(headings, rows)}")
    if claims:
        click.echo(markdown_table(*_claim_cells(claims)))
