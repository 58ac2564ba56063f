"""Figures inside the web page: their SVG, and the values of figure 6 under the pointer."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from deepres.report.curves import average
from deepres.report.figures import split_families
from deepres.report.style import net_name
from deepres.runs.finished import family_of
from deepres.runs.groups import RunGroup

DIGITS = 2  # of an error in percent


@dataclass(frozen=True)
class CurveValues:
    """The mean errors of one net, epoch by epoch."""

    name: str
    steps: list[int]
    held_out: list[float]
    train: list[float]


@dataclass(frozen=True)
class PanelValues:
    """What the pointer reads in one panel of figure 6."""

    left: float
    """Where the panel begins, as a part of the picture's width."""
    right: float
    steps: float
    """The steps that the panel spans, from 0 on."""
    held_out: str
    """ "test" or "val"."""
    curves: list[CurveValues]


@dataclass(frozen=True)
class PageFigure:
    """A figure of the page."""

    name: str
    """The name of its files, without the ending."""
    title: str
    svg: Markup
    values: Sequence[PanelValues] = ()
    """What the pointer reads in it."""

    @property
    def width(self) -> float:
        """The width of the picture in points."""
        found = re.search(r'viewBox="0 0 ([0-9.]+) ', self.svg)
        return float(found[1]) if found else 500.0

    @property
    def values_json(self) -> Markup:
        """The values for the page's script."""
        return script_json([asdict(panel) for panel in self.values])


def inline_svg(svg: bytes, name: str) -> Markup:
    """Return a picture that matplotlib wrote as a part of a page.

    Args:
        svg: the file's content.
        name: makes the picture's ids unique in the page.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML needs none, and these are the only addresses
    return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text))


def figure6_values(figure: Figure, groups: Sequence[RunGroup]) -> list[PanelValues]:
    """Return what the pointer reads in figure 6.

    Args:
        figure: of `draw_figure6`, already written, for only then its panels are laid out.
        groups: the groups that it shows.
    """
    curves = [average(group) for group in groups]
    panels = []
    for axes, family in zip(figure.get_axes(), split_families([group.model for group in groups]), strict=True):
        place = axes.get_position()
        members = [curve for curve in curves if family_of(curve.group.model) == family]
        values = [
            CurveValues(
                net_name(curve.group.model),
                curve.steps.tolist(),
                curve.held_out.mean.round(DIGITS).tolist(),
                curve.train.mean.round(DIGITS).tolist(),
            )
            for curve in members
        ]
        if values:
            panels.append(
                PanelValues(
                    round(place.x0, 4), round(place.x1, 4), axes.get_xlim()[1], members[0].held_out_name, values
                )
            )
    return panels


def script_json(content: object) -> Markup:
    """Return JSON that can stand in a script element: nothing in it ends the element."""
    return Markup(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))
