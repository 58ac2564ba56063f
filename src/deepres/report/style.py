"""How every picture looks: one palette, one set of markers, one type size; and how pictures are written.

The paper's figure 6 gives each depth a color: yellow, cyan, green, red and black from 20 to 110 layers. The hues are
kept here, but get darker with depth, so that they differ in grey and for the color-blind too; each has a
marker of its own besides.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from deepres.files import write_atomically
from deepres.runs.finished import model_key

FORMATS = ("png", "svg", "pdf")
PNG_DPI = 160


@dataclass(frozen=True)
class Look:
    """How one kind of thing is drawn."""

    color: str
    marker: str


DEPTHS: Mapping[int, Look] = MappingProxyType(
    {
        20: Look("#e3ae18", "o"),
        32: Look("#2a9fd0", "s"),
        44: Look("#00795f", "^"),
        56: Look("#b01040", "D"),
        110: Look("#000000", "v"),
    }
)
OTHER_DEPTH = Look("#6b6b6b", "X")

FAMILIES: Mapping[str, Look] = MappingProxyType({"plain": Look("#c4622d", "s"), "resnet": Look("#0b4f8a", "o")})
OTHER_FAMILY = OTHER_DEPTH


@dataclass(frozen=True)
class Stroke:
    """The line and the marker's filling that distinguish the nets of one recipe from the same nets by another."""

    line: str
    filling: str
    """The markers' `fillstyle`."""


STROKES = (
    Stroke("-", "full"),
    Stroke("--", "left"),
    Stroke("-.", "bottom"),
    Stroke(":", "right"),
)

PAPER_GRAY = "#666666"
"""What others published, beside our own."""

FAMILY_NAMES = {"plain": "plain", "resnet": "ResNet"}

TYPE: Mapping[str, Any] = MappingProxyType(
    {
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "figure.constrained_layout.use": True,
        "svg.hashsalt": "deepres",  # the same picture is the same file
        "svg.fonttype": "path",
        "pdf.fonttype": 42,
    }
)


def net_look(model: str) -> Look:
    """Return the look of a net: that of its depth, or grey for a width or depth that the paper does not have."""
    _, _, depth, rest = model_key(model)
    return OTHER_DEPTH if rest else DEPTHS.get(depth, OTHER_DEPTH)


def family_look(family: str) -> Look:
    """Return the look of plain or residual nets."""
    return FAMILIES.get(family, OTHER_FAMILY)


def net_name(model: str) -> str:
    """Return a net's name as the paper writes it: plain-20, ResNet-56; and so ResNet-20x2."""
    _, family, depth, rest = model_key(model)
    return f"{FAMILY_NAMES.get(family, family)}-{depth}{rest}" if depth else model


def stroke_of(position: int) -> Stroke:
    """Return the stroke of a recipe by its position among those shown together; a fifth looks as the first."""
    return STROKES[position % len(STROKES)]


def own_points(look: Look, stroke: Stroke = STROKES[0]) -> dict[str, Any]:
    """Return the line and markers of our own results, for `Axes.plot`."""
    edge = {"mec": "white", "mew": 0.7} if stroke.filling == "full" else {"mec": look.color, "mfcalt": "white"}
    marker = {"marker": look.marker, "ms": 6.5, "fillstyle": stroke.filling, **edge}
    return {**marker, "color": look.color, "lw": 2.0, "ls": stroke.line, "zorder": 4}


def published_points(look: Look) -> dict[str, Any]:
    """Return the line and markers of published numbers, for `Axes.plot`."""
    return {"marker": look.marker, "ms": 6, "mfc": "white", "color": PAPER_GRAY, "lw": 1, "ls": ":", "zorder": 2}


OUTLINE = [withStroke(linewidth=2.5, foreground="white")]
"""Keeps a small text legible over lines, as `path_effects`."""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in our style; matplotlib's own settings stay as they are."""
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    settings: Any = {**defaults, **TYPE}
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches; one that no window knows of. Call it within `house_style`."""
    return Figure(figsize=(width, height))


def add_grid(axes: Axes) -> None:
    """Draw faint lines at the ticks of the vertical axis."""
    axes.grid(axis="y")


def encode_figure(figure: Figure, file_format: str, dpi: int = PNG_DPI) -> bytes:
    """Return the content of a "png", "svg" or "pdf" file. It holds no date: the same figure is the same bytes."""
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    picture = io.BytesIO()
    with house_style():
        figure.savefig(picture, format=file_format, dpi=dpi, metadata=undated.get(file_format))
    return picture.getvalue()


def write_figure(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure in some formats, which are their files' suffixes, atomically; return the paths.

    It is laid out once, for all of them.
    """
    with house_style():
        figure.set_dpi(PNG_DPI)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # what is laid out stays
    paths = [folder / f"{name}.{file_format}" for file_format in formats]
    for path, file_format in zip(paths, formats, strict=True):
        write_atomically(path, encode_figure(figure, file_format))
    return paths
