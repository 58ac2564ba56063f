"""The picture of one run: training and test error against steps."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from deepres.rundir import Row


def draw_curve(rows: Sequence[Row], title: str) -> bytes:
    """Draw the running training error (dashed) and the test or val error (bold), as figure 6 does; return a PNG."""
    steps = [row["step"] for row in rows]
    held_out = "val" if any("val_error" in row for row in rows) else "test"
    errors = [row[f"{held_out}_error"] for row in rows]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if len(rows) < 3 else None  # a line of one point would not be seen
    axes.plot(
        steps,
        [row["train_error"] for row in rows],
        "--",
        color="#4477aa",
        lw=1.2,
        marker=marker,
        label="train (running)",
    )
    label = f"{held_out}, {errors[-1]:.2f}% at the end"
    axes.plot(steps, errors, color="#4477aa", lw=2.4, marker=marker, label=label)
    axes.set(title=title, xlabel="steps (mini-batches)", ylabel="error (%)", xlim=(0, None))
    axes.set_ylim(0, 40 if errors[-1] < 25 else 100)  # the first epochs would squeeze the part that matters
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
