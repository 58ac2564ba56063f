"""How the command line shows things: progress, tables, notices."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.color import Color
from rich.console import RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from deepres.runs.published import PUBLISHED

if TYPE_CHECKING:
    from deepres.runs.metrics import Metrics


class _FoldingTable(Table):
    """A table whose cells are folded where they are too long, and never cut off: half a name names nothing."""

    def add_column(self, header: RenderableType = "", *args: Any, **options: Any) -> None:
        super().add_column(header, *args, **{"overflow": "fold", **options})


def new_table(*headers: str, **options: Any) -> Table:
    """Return a table for results whose names are never cut off; the arguments are rich's."""
    return _FoldingTable(*headers, **options)


def this_command() -> str:
    """Return the command line that runs now, as it can be typed again."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "the same torchrun command"
    if Path(sys.argv[0]).name == "__main__.py":
        return shlex.join([sys.executable, "-m", "deepres", *sys.argv[1:]])
    program = "deepres" if shutil.which("deepres") == str(Path(sys.argv[0]).absolute()) else sys.argv[0]
    return shlex.join([program, *sys.argv[1:]])


def result_table(result: Mapping[str, Any], is_as_published: bool = True) -> Table:
    """Return a run's errors, beside the published ones if its net was trained on the same data as those."""
    table = new_table(title=f"{result['model']}: test error in percent", title_justify="left")
    table.add_column("")
    table.add_column("last epoch", justify="right")
    table.add_column("best epoch", justify="right")
    run = f"this run ({result['recipe']}, seed {result['seed']}, {result['epochs']:g} epochs)"
    table.add_row(run, _percent(result["test_error_last"]), _percent(result["test_error_best"]), style="bold")
    if is_as_published and (published := PUBLISHED.get(result["model"])):
        note = f", {published.note}" if published.note else ""
        table.add_row(f"the paper (164 epochs{note})", _percent(published.paper), "")
        if published.repository_last is not None:
            table.add_row(
                "the public repository (164 epochs)",
                _percent(published.repository_last),
                _percent(published.repository_best),
            )
    return table


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    """Return the table of true classes (rows) by predicted classes (columns), in images."""
    table = new_table(
        title="images by true class (rows) and predicted class (columns)",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
    )
    table.add_column("", no_wrap=True)
    for name in classes:
        table.add_column(name[:4], justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for i, (name, counts) in enumerate(zip(classes, confusion, strict=True)):
        error = f"{100 * (1 - counts[i] / sum(counts)):.2f}%" if sum(counts) else ""
        table.add_row(name, *(f"[bold]{n}[/]" if i == j else str(n) for j, n in enumerate(counts)), error)
    return table


def metrics_line(metrics: "Metrics") -> str:
    """Return what the answers come to beyond their error, in words."""
    parts = {
        "top-5 error": None if metrics.top5_error is None else f"{metrics.top5_error:.2f}%",
        "negative log-likelihood": _number(metrics.negative_log_likelihood),
        "Brier score": _number(metrics.brier_score),
        "calibration error": f"{metrics.calibration_error:.2f} points in 15 bins",
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


def pixel_picture(image: Sequence[Sequence[Sequence[int]]]) -> Text:
    """Draw an image, values 0 to 255 of shape (3, H, W), H even, with two pixels to a character."""
    picture = Text()
    rows = [list(zip(*planes, strict=True)) for planes in zip(*image, strict=True)]  # (H, W, 3)
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            picture.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        picture.append("\n")
    return picture


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
