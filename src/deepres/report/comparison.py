"""What a comparison of groups shows: a LaTeX table, and a dot plot of the seeds."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from deepres.report.style import PAPER_GRAY, house_style, new_figure
from deepres.report.tables import latex_cell
from deepres.runs.compare import Comparison, Group, show_p

HEADINGS = ("groups", "runs", "points", "95% interval", "p-value", "p, Holm", "paired p", "McNemar p", "seeds needed")
TEXT_COLUMNS = 1
DOT_COLOR, MEAN_COLOR = "#2a9fd0", "#0b4f8a"


def groups_of(comparisons: Sequence[Comparison]) -> list[Group]:
    """Return the groups that are compared, each one once."""
    return list({group.name: group for each in comparisons for group in (each.a, each.b)}.values())


def comparison_cells(comparison: Comparison) -> list[str]:
    """Return a comparison as the cells of a row, under `HEADINGS`."""
    c = comparison

    def p_value(value: float | None) -> str:
        return "" if value is None else show_p(value).removeprefix("= ")

    return [
        f"{c.b.name} - {c.a.name}",
        f"{c.b.n}, {c.a.n}",
        f"{c.difference:+.2f}",
        "" if c.interval is None else f"{c.interval[0]:+.2f} to {c.interval[1]:+.2f}",
        p_value(None if c.welch is None else c.welch.p_value),
        p_value(c.holm),
        p_value(None if c.paired is None else c.paired.p_value),
        p_value(None if c.mcnemar is None else c.mcnemar.p_value),
        "" if c.needed is None else f"{c.needed:,}",
    ]


def comparison_latex(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a LaTeX `tabular` (it needs the package booktabs), the verdicts as comments."""
    lines = [r"\begin{tabular}{" + "l" * TEXT_COLUMNS + "r" * (len(HEADINGS) - TEXT_COLUMNS) + "}", r"\toprule"]
    lines += [" & ".join(map(latex_cell, HEADINGS)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(latex_cell, comparison_cells(each))) + r" \\" for each in comparisons]
    lines += [r"\bottomrule", r"\end{tabular}"]
    for group in groups_of(comparisons):
        spread = "" if group.std is None else f" +- {group.std:.2f}"
        lines.append(f"% {group.name}: {group.text}, {group.on} error {group.mean:.2f}{spread}%, {group.n} runs")
    lines += [f"% {each.verdict}" for each in comparisons]
    return "\n".join(lines) + "\n"


def draw_groups(groups: Sequence[Group]) -> Figure:
    """Draw the error of every seed as a dot, a group a row, with the mean and its 95% interval beneath."""
    with house_style():
        figure = new_figure(7.0, 0.9 + 0.75 * len(groups))
        axes = figure.add_subplot()
        for row, group in enumerate(groups):
            errors = sorted(group.errors)
            axes.plot(errors, [row - 0.14] * group.n, "o", color=DOT_COLOR, ms=6, mec="white", mew=0.7, alpha=0.85)
            if group.interval is not None:
                axes.plot(group.interval, [row + 0.14] * 2, "-", color=MEAN_COLOR, lw=2, solid_capstyle="butt")
            axes.plot([group.mean], [row + 0.14], "D", color=MEAN_COLOR, ms=6)
            label = f"{group.mean:.2f}%" + ("" if group.std is None else f" ± {group.std:.2f}")
            axes.annotate(
                label,
                (group.mean, row + 0.14),
                xytext=(0, -7),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8.5,
                color=PAPER_GRAY,
            )
        names = [f"{group.name}: {_short(group.text)}\n{group.n} run{'s' if group.n > 1 else ''}" for group in groups]
        axes.set_yticks(range(len(groups)), names)
        axes.set_ylim(len(groups) - 0.4, -0.5)
        axes.set_xlabel(f"{groups[0].on} error at the last step (%)")
        axes.set_title("dot: a seed; diamond: the mean; line: its 95% interval", fontsize=9, color=PAPER_GRAY)
        axes.grid(axis="x")
        axes.margins(x=0.08)
    return figure


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
