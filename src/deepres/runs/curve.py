"""The picture of one run: training and test error against steps."""

from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter

from deepres.report.style import FAMILIES, add_grid, encode_figure, house_style, new_figure
from deepres.runs.directory import Row


def draw_curve(rows: Sequence[Row], title: str) -> bytes:
    """Draw the running training error (dashed) and the test or val error (bold), as figure 6 does; return a PNG."""
    steps = [row["step"] for row in rows]
    held_out = "val" if any("val_error" in row for row in rows) else "test"
    errors = [row[f"{held_out}_error"] for row in rows]
    colour = FAMILIES["resnet"].light
    with house_style():
        figure = new_figure(6.4, 4.4)
        axes = figure.add_subplot()
        train_marker, marker = ("s", "o") if len(rows) < 3 else (None, None)  # a line of one point would not be seen
        train = [row["train_error"] for row in rows]
        axes.plot(steps, train, "--", color=colour, lw=1.2, marker=train_marker, mfc="none", label="train (running)")
        label = f"{held_out}, {errors[-1]:.2f}% at the end"
        axes.plot(steps, errors, color=colour, lw=2.4, marker=marker, label=label)
        axes.set(title=title, xlabel="steps (mini-batches)", ylabel="error (%)", xlim=(0, None))
        axes.set_ylim(0, 40 if errors[-1] < 25 else 100)  # the first epochs would squeeze the part that matters
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
        add_grid(axes)
        axes.legend()
    return encode_figure(figure, "png")
