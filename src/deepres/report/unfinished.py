"""The curves of runs that are not finished, as far as they go."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deepres.report.curves import error_limit
from deepres.report.style import PAPER_GRAY, add_grid, house_style, net_look, net_name, new_figure
from deepres.runs.unfinished import UnfinishedRun

LINES = ("-", "--", "-.")
WATERMARK: dict[str, Any] = {"ha": "center", "va": "center", "rotation": 20}
WATERMARK |= {"fontsize": 40, "color": PAPER_GRAY, "alpha": 0.13}


def draw_unfinished(runs: Sequence[UnfinishedRun]) -> Figure:
    """Draw the errors so far of unfinished runs of one recipe, each run by itself, up to the end of the schedule.

    Thin: the training error, dotted; bold: that of the held-out set. A circle stands where the run is now.

    Args:
        runs: of the same recipe; one or more.
    """
    with house_style():
        figure = new_figure(7.4, 4.6)
        axes = figure.add_subplot()
        for i, run in enumerate(runs):
            steps = [row["step"] for row in run.rows]
            errors = [row[f"{run.held_out}_error"] for row in run.rows]
            color = net_look(run.record.model).color
            share = f"{run.step:,} of {run.total_steps:,} steps"
            label = f"{net_name(run.record.model)}, seed {run.record.seed}: {run.error:.2f}% at {share}"
            axes.plot(steps, [row["train_error"] for row in run.rows], ":", color=color, lw=1.1)
            axes.plot(steps, errors, LINES[i % len(LINES)], color=color, lw=2, label=label)
            axes.plot(steps[-1:], errors[-1:], "o", color=color, mfc="white", ms=6.5, mew=1.6, zorder=5)
        top = error_limit([run.error for run in runs])
        axes.set(xlabel="iterations (1e4)", ylabel="error (%)", ylim=(0, top))
        axes.set_xlim(0, 1.01 * max(run.total_steps for run in runs))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e4:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 5, 10)))
        add_grid(axes)
        held_out = " or ".join(dict.fromkeys(run.held_out for run in runs))
        axes.legend(loc="upper right", title=f"unfinished; bold: {held_out} error, dotted: training error")
        axes.set_title(f"Recipe {runs[0].record.recipe['name']}: runs that are not finished")
        axes.text(0.5, 0.5, "unfinished", transform=axes.transAxes, **WATERMARK)
    return figure
