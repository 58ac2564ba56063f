"""Lines of several nets in one picture: their errors against steps, or a number of each layer."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from deepres.report.style import add_grid, house_style, net_look, net_name, new_figure
from deepres.runs.finished import family_of

Line = tuple[Sequence[float], Sequence[float]]
"""The horizontal and the vertical places of its points."""

DASHES = {"plain": "--"}
MARKED_POINTS = 1  # a line of so few points would not be seen without markers


def draw_lines(
    lines: Mapping[str, Line], *, x: str, y: str, log: bool = False, limits: tuple[float, float] | None = None
) -> Figure:
    """Draw lines: those of plain nets dashed, each depth in its color, as everywhere in the report.

    Args:
        lines: what each is called, such as "plain20", and its points; a name that is no net's is drawn in grey.
        x: the label of the horizontal axis.
        y: the label of the vertical axis.
        log: whether the vertical axis is logarithmic.
        limits: of the vertical axis; None: as the lines need it.
    """
    with house_style():
        figure = new_figure(7.0, 3.6)
        axes = figure.add_subplot()
        for name, (xs, ys) in lines.items():
            look = net_look(name)
            marker = look.marker if len(xs) <= MARKED_POINTS else ""
            dashes = DASHES.get(family_of(name), "-")
            axes.plot(xs, ys, ls=dashes, marker=marker, lw=1.6, color=look.color, label=net_name(name))
        axes.set(xlabel=x, ylabel=y, yscale="log" if log else "linear")
        if limits is not None:
            axes.set_ylim(limits)
        add_grid(axes)
        if lines:
            axes.legend(loc="best")
    return figure
