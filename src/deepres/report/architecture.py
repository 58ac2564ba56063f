"""The nets drawn as columns of layers, in the manner of the paper's figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from deepres.report.style import PAPER_GRAY, house_style, new_figure

if TYPE_CHECKING:  # at run time it would bring torch along
    from deepres.models.layout import Layout, Shortcut

TINTS = ("#e4e0f5", "#dcefdc", "#f8ddd6", "#dbe8f6")  # one for each size of the maps
BOX_WIDTH, BOX_HEIGHT = 1.75, 0.3  # inches
PITCH = 0.5  # from one layer to the next
COLUMN = 3.3  # from one net to the next
SIZES = 1.0  # room for the map sizes on the left
BULGE = 0.55  # of a shortcut, beyond the box
HEAD = "-|>,head_length=3,head_width=1.6"
DASHES = {"identity": "solid", "padded": (0, (1, 1.2)), "projection": (0, (5, 2))}
MEANINGS = {
    "identity": "identity shortcut",
    "padded": "identity with zero-padded channels (option A)",
    "projection": "projection shortcut (1x1 convolution)",
}


def draw_architecture(nets: Sequence[tuple[str, Layout]]) -> Figure:
    """Draw nets side by side, with the size and channels of each layer.

    Args:
        nets: a title, which may have several lines, and the layout of each; one or more.
    """
    rows = max(len(layout.layers) for _, layout in nets) + 1  # the image
    height, width = PITCH * rows + 1.2, SIZES + COLUMN * len(nets)
    with house_style():
        figure = new_figure(width, height)
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # one unit is one inch
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        for i, (title, layout) in enumerate(nets):
            center = SIZES + COLUMN * i + BOX_WIDTH / 2
            axes.text(center, 0.15, title, ha="center", va="top", fontsize=11, linespacing=1.4)
            _draw_net(axes, layout, center)
        drawn = dict.fromkeys(shortcut.kind for _, layout in nets for shortcut in layout.shortcuts)
        for i, kind in enumerate(drawn):
            y, x = height - 0.15 - 0.22 * (len(drawn) - 1 - i), width - 3.6
            axes.plot([x, x + 0.4], [y, y], color="black", lw=1.3, ls=DASHES[kind])
            axes.text(x + 0.5, y, MEANINGS[kind], va="center", fontsize=8.5)
    return figure


def _draw_net(axes: Axes, layout: Layout, center: float) -> None:
    """Draw one column."""
    first = 1.0  # the image
    middles = [first + PITCH * (i + 1) for i in range(len(layout.layers))]
    axes.text(center, first, "image, 3 channels", ha="center", va="center", fontsize=9)
    sizes = list(dict.fromkeys(layer.size for layer in layout.layers))
    shown = None
    for i, (layer, middle) in enumerate(zip(layout.layers, middles, strict=True)):
        before = (first if i == 0 else middles[i - 1]) + BOX_HEIGHT / 2
        axes.add_patch(_arrow((center, before), (center, middle - BOX_HEIGHT / 2)))
        tint = TINTS[sizes.index(layer.size) % len(TINTS)] if layer.kind == "conv" else "white"
        box = FancyBboxPatch(
            (center - BOX_WIDTH / 2, middle - BOX_HEIGHT / 2),
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=tint,
            edgecolor="black",
            lw=0.9,
        )
        axes.add_patch(box)
        axes.text(center, middle, str(layer), ha="center", va="center", fontsize=9)
        if layer.size != shown:
            left = center - BOX_WIDTH / 2 - 0.12
            text = f"output\nsize {layer.size}"
            axes.text(left, middle, text, ha="right", va="center", fontsize=8.5, color=PAPER_GRAY)
            shown = layer.size
    for shortcut in layout.shortcuts:
        _draw_shortcut(axes, shortcut, center, middles)


def _draw_shortcut(axes: Axes, shortcut: Shortcut, center: float, middles: Sequence[float]) -> None:
    """Draw an arc from before the first layer to behind the last, as figure 3 does."""
    gap = PITCH - BOX_HEIGHT  # one shortcut ends in its first half, the next begins in the second
    start = middles[shortcut.first] - BOX_HEIGHT / 2 - 0.36 * gap
    end = middles[shortcut.last] + BOX_HEIGHT / 2 + 0.3 * gap
    edge, side = center + BOX_WIDTH / 2, center + BOX_WIDTH / 2 + BULGE * 4 / 3
    points = [(center, start), (edge, start), (side, start), (side, end), (edge, end), (center, end)]
    arc = Path(points, [Path.MOVETO, Path.LINETO, *[Path.CURVE4] * 3, Path.LINETO])
    axes.add_patch(
        FancyArrowPatch(
            path=arc,
            arrowstyle=HEAD,
            mutation_scale=1,
            lw=1.3,
            ls=DASHES[shortcut.kind],
            color="black",
            fill=False,
        )
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> FancyArrowPatch:
    return FancyArrowPatch(start, end, arrowstyle=HEAD, mutation_scale=1, lw=0.9, color="black", shrinkA=0, shrinkB=0)
