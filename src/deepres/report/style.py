"""How every picture looks: one palette, one set of markers, one type size; and how pictures are written.

The paper's figure 6 gives each depth a colour: yellow, cyan, green, red and black from 20 to 110 layers. The hues are
kept here, but get darker with depth, so that they can be told apart in grey and by the colour-blind too; each has a
marker of its own besides.
"""

import io
from collections.abc import Iterator, Mapping
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

FORMATS = ("png", "svg", "pdf")
PNG_DPI = 160


@dataclass(frozen=True)
class Look:
    """How one kind of thing is drawn, on white and on a dark page."""

    light: str
    """Colour on white."""
    dark: str
    """Colour on a dark page."""
    marker: str
    """As matplotlib names it."""
    symbol: str
    """The same marker as plotly names it."""


DEPTHS: Mapping[int, Look] = MappingProxyType(
    {
        20: Look("#e3ae18", "#f7d154", "o", "circle"),
        32: Look("#2a9fd0", "#6cbcf5", "s", "square"),
        44: Look("#00795f", "#2bb3a3", "^", "triangle-up"),
        56: Look("#b01040", "#c93a6e", "D", "diamond"),
        110: Look("#000000", "#ffffff", "v", "triangle-down"),
    }
)
OTHER_DEPTH = Look("#6b6b6b", "#a8a8a8", "X", "x")

FAMILIES: Mapping[str, Look] = MappingProxyType(
    {"plain": Look("#c4622d", "#f0956b", "s", "square"), "resnet": Look("#0b4f8a", "#6cbcf5", "o", "circle")}
)
OTHER_FAMILY = OTHER_DEPTH


@dataclass(frozen=True)
class Stroke:
    """How the nets of one recipe are told from the same nets by another: by line and by the filling of the markers."""

    line: str
    """As matplotlib names it."""
    filling: str
    """The same, `fillstyle`."""
    dash: str
    """The line as plotly names it."""
    symbol_ending: str
    """What plotly's marker symbols end on."""


STROKES = (
    Stroke("-", "full", "solid", ""),
    Stroke("--", "left", "dash", "-open-dot"),
    Stroke("-.", "bottom", "dashdot", "-dot"),
    Stroke(":", "right", "dot", "-open"),
)

PAPER_GREY = "#666666"
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


def depth_look(depth: int) -> Look:
    """Return the look of nets of a depth."""
    return DEPTHS.get(depth, OTHER_DEPTH)


def family_look(family: str) -> Look:
    """Return the look of plain or residual nets."""
    return FAMILIES.get(family, OTHER_FAMILY)


def net_name(family: str, depth: int) -> str:
    """Return a net's name as the paper writes it: plain-20, ResNet-56."""
    return f"{FAMILY_NAMES.get(family, family)}-{depth}"


def stroke_of(position: int) -> Stroke:
    """Return the stroke of a recipe by its position among those shown together; a fifth looks as the first."""
    return STROKES[position % len(STROKES)]


def own_points(look: Look, stroke: Stroke = STROKES[0]) -> dict[str, Any]:
    """Return the line and markers of our own results, for `Axes.plot`."""
    edge = {"mec": "white", "mew": 0.7} if stroke.filling == "full" else {"mec": look.light, "mfcalt": "white"}
    marker = {"marker": look.marker, "ms": 6.5, "fillstyle": stroke.filling, **edge}
    return {**marker, "color": look.light, "lw": 2.0, "ls": stroke.line, "zorder": 4}


def published_points(look: Look) -> dict[str, Any]:
    """Return the line and markers of published numbers, for `Axes.plot`."""
    return {"marker": look.marker, "ms": 6, "mfc": "white", "color": PAPER_GREY, "lw": 1, "ls": ":", "zorder": 2}


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


def write_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure in all formats, atomically; return the paths."""
    paths = [folder / f"{name}.{file_format}" for file_format in FORMATS]
    for path, file_format in zip(paths, FORMATS, strict=True):
        write_atomically(path, encode_figure(figure, file_format))
    return paths
