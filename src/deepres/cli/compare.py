"""`deepres compare`: whether one group of runs errs less than another."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.table import Table

from deepres.cli.console import new_table
from deepres.cli.options import PATH
from deepres.errors import UserError
from deepres.files import check_parent, write_atomically
from deepres.runs.select import select_runs
from deepres.streams import out, say

if TYPE_CHECKING:
    from deepres.runs.compare import Comparison, Group
    from deepres.runs.statistics import Interval

NOTES = (
    "points: of error at the last step; Welch's test asks whether other seeds would show it too, and is the one "
    "that the verdict is of; McNemar's asks whether these very nets differ on images like these",
)


@click.command()
@click.argument("groups", nargs=-1, required=True, metavar="A B [C...]")
@click.option(
    "--runs",
    "folders",
    multiple=True,
    type=PATH,
    help="Where runs of given settings are looked for; repeatable. Default: runs.",
)
@click.option(
    "--differ",
    multiple=True,
    metavar="SETTING",
    help="Fail if the groups differ in another setting than this, such as recipe.learning_rate; repeatable.",
)
@click.option("--anyway", is_flag=True, help="Compare groups that differ in several ingredients at once.")
@click.option(
    "--on",
    type=click.Choice(["test", "val"]),
    default="test",
    show_default=True,
    help="Whose error is compared; val to choose among recipes.",
)
@click.option("--all-pairs", is_flag=True, help="Compare each with each, not all with the first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("--latex", is_flag=True, help="Print a LaTeX table (it needs booktabs).")
@click.option("--plot", type=PATH, help="Draw the seeds, means and intervals: .png, .svg, .pdf.")
def compare(
    groups: tuple[str, ...],
    folders: tuple[Path, ...],
    differ: tuple[str, ...],
    anyway: bool,
    on: str,
    all_pairs: bool,
    as_json: bool,
    latex: bool,
    plot: Path | None,
) -> None:
    """Tell whether the runs of B err less than those of A: interval, tests, seeds needed.

    A, B and so on are groups of finished runs that differ in their seed alone: run directories or folders of them,
    separated by commas or as a pattern in quotes ('runs/resnet20-fast-*'); or settings that the runs have, such as
    model=resnet20,recipe=fast or recipe.learning_rate=0.05. All are compared with A.
    """
    try:
        from deepres.runs.compare import compare_groups, make_group
    except ModuleNotFoundError as missing:
        raise UserError(f"deepres compare needs {missing.name}: pip install 'deepres[report]'") from None

    if as_json and latex:
        raise UserError("--json and --latex are two formats: give one")
    if plot is not None:
        check_parent(plot)
        if plot.suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--plot {plot} is no picture: let its name end in .png, .svg or .pdf")
    selections = [select_runs(text, folders or ("runs",)) for text in groups]
    found = [make_group(i, selection.text, selection.runs, on) for i, selection in enumerate(selections)]
    comparisons = compare_groups(found, differ=differ, anyway=anyway, all_pairs=all_pairs)
    for run in {run.path: run for selection in selections for run in selection.skipped}.values():
        say(f"deepres: left out {run.path}: {run.reason}")
    if plot is not None:
        from deepres.report.comparison import draw_groups
        from deepres.report.style import encode_figure

        write_atomically(plot, encode_figure(draw_groups(found), plot.suffix[1:]))
    if as_json:
        content = {"groups": [_group_row(group) for group in found], "comparisons": [_row(c) for c in comparisons]}
        click.echo(json.dumps(content, indent=2))
    elif latex:
        from deepres.report.comparison import comparison_latex

        click.echo(comparison_latex(comparisons), nl=False)
    else:
        _print_groups(found)
        for comparison in comparisons:
            _print_comparison(comparison)
        for note in NOTES:
            out.print(note, markup=False)


def _print_groups(groups: Sequence["Group"]) -> None:
    table = _table("", "runs", "n", f"{groups[0].on} error", "95% interval", "seeds")
    for group in groups:
        spread = "" if group.std is None else f" ± {group.std:.2f}"
        seeds = ",".join(map(str, group.seeds))
        table.add_row(
            group.name, group.text, str(group.n), f"{group.mean:.2f}{spread}", _interval(group.interval, ".2f"), seeds
        )
    out.print(table)


def _print_comparison(comparison: "Comparison") -> None:
    """Print what differs, a row for each test, and the verdict."""
    c = comparison
    pair = f"{c.b.name} - {c.a.name}"
    out.print()
    out.print(f"{pair}: {_settings(c)}", markup=False)
    for each in c.machines:
        out.print(f"made with {each}", style="dim", markup=False)
    holm = c.tests > 1
    table = _table("", "points", "95% interval", "p-value", *(["p, Holm"] if holm else []))
    if c.welch is not None:
        row = ["Welch's t-test", f"{c.difference:+.2f}", _interval(c.interval), _p(c.welch.p_value)]
        table.add_row(*row, *([_p(c.holm)] if holm else []))
    if c.paired is not None:
        name = f"paired t-test, {c.a.n} seeds"
        table.add_row(name, f"{c.paired.difference:+.2f}", _interval(c.paired.interval), _p(c.paired.p_value))
    if c.mcnemar is not None:
        name = f"McNemar's test, {len(c.mcnemar.seeds)} seed{'s' if len(c.mcnemar.seeds) > 1 else ''}"
        table.add_row(name, f"{c.mcnemar.difference:+.2f}", "", _p(c.mcnemar.p_value))
    if table.row_count:
        out.print(table)
    if c.mcnemar is not None:
        m = c.mcnemar
        out.print(
            f"of {m.images:,} answers {m.only_a:,} are wrong by {c.a.name} alone, {m.only_b:,} by {c.b.name} alone",
            markup=False,
        )
    if c.detectable is not None:
        sizes = f"{c.a.n} and {c.b.n}"
        out.print(f"{sizes} runs find a difference of {c.detectable:.2f} points in 80 of 100 cases", markup=False)
    out.print(c.verdict, style="bold", markup=False)


def _settings(comparison: "Comparison") -> str:
    """Say in which settings the groups differ."""
    if not comparison.differences:
        return "the same settings"
    return f"differ in {', '.join(map(str, comparison.differences))}"


def _table(*headings: str) -> Table:
    """Lay out a table as narrow as it can be."""
    table = new_table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("", "runs", "seeds") else "right")
    return table


def _interval(interval: "Interval | None", style: str = "+.2f") -> str:
    return "" if interval is None else f"{interval[0]:{style}} to {interval[1]:{style}}"


def _p(value: float | None) -> str:
    from deepres.runs.compare import show_p

    return "" if value is None else show_p(value).removeprefix("= ")


def _group_row(group: "Group") -> dict[str, Any]:
    low, high = group.interval or (None, None)
    return {
        "name": group.name,
        "runs": [str(run.path) for run in group.runs],
        "asked_for": group.text,
        "n": group.n,
        "seeds": group.seeds,
        f"{group.on}_errors": group.errors,
        "mean": group.mean,
        "std": group.std,
        "interval_low": low,
        "interval_high": high,
    }


def _row(comparison: "Comparison") -> dict[str, Any]:
    c = comparison

    def differences(found: Sequence[Any]) -> dict[str, list[str]]:
        return {each.key: list(each.values) for each in found}

    return {
        "a": c.a.name,
        "b": c.b.name,
        "differences": differences(c.differences),
        "machines": differences(c.machines),
        "difference": c.difference,
        "welch": None if c.welch is None else asdict(c.welch),
        "holm": c.holm,
        "tests": c.tests,
        "paired": None if c.paired is None else asdict(c.paired),
        "mcnemar": None if c.mcnemar is None else asdict(c.mcnemar) | {"difference": c.mcnemar.difference},
        "needed_seeds": c.needed,
        "detectable_difference": c.detectable,
        "significant": c.significant,
        "verdict": c.verdict,
    }
