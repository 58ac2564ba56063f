"""The picture of one run: training error and held-out error against steps."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from deepres.runs.directory import Row

COLOR = "#0b4f8a"
DPI = 160


def draw_curve(rows: Sequence[Row], held_out: str, title: str) -> bytes:
    """Draw the running training error (dashed) and the held-out error (bold), as figure 6 does; return a PNG.

    No backend of Matplotlib's is loaded, whatever MPLBACKEND says.

    Args:
        rows: the lines of metrics.jsonl.
        held_out: "test" or "val".
        title: stands above.
    """
    with _no_backend():
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: it takes most of a second to import
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

    steps = [row["step"] for row in rows]
    train = [row["train_error"] for row in rows]
    errors = [row[f"{held_out}_error"] for row in rows]
    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    train_marker, marker = ("s", "o") if len(rows) < 3 else (None, None)  # a line of one point would not be seen
    axes.plot(steps, train, "--", color=COLOR, lw=1.2, marker=train_marker, mfc="none", label="train (running)")
    label = f"{held_out}, {errors[-1]:.2f}% at the end"
    axes.plot(steps, errors, color=COLOR, lw=2.4, marker=marker, label=label)
    axes.set(title=title, xlabel="steps (mini-batches)", ylabel="error (%)", xlim=(0, None))
    axes.set_ylim(0, 40 if errors[-1] < 25 else 100)  # the first epochs would squeeze the part that matters
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)  # type: ignore[no-untyped-call]
    return picture.getvalue()


@contextmanager
def _no_backend() -> Iterator[None]:
    """Import Matplotlib without its looking at MPLBACKEND, which may name what is not installed; then put it back."""
    if "matplotlib" in sys.modules:  # it has looked
        yield
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
            with suppress(Exception):  # as Matplotlib would have set it, if it can
                import matplotlib

                matplotlib.rcParams["backend"] = backend
