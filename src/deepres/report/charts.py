"""The figures of the web page, which can be hovered and switched on and off: plotly's, from the same numbers.

Needs plotly (the extra `report`). The page colours each trace by its `meta`, which holds a colour for the light and
one for the dark theme.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from deepres.data.cifar10 import CLASSES
from deepres.report.answers import Answers
from deepres.report.curves import Band, Curve, average, error_limit, seeds
from deepres.report.figures import (
    FAMILY_TITLES,
    paper_errors,
    paper_points,
    split_families,
)
from deepres.report.responses import Responses, net_lines
from deepres.report.style import FAMILY_NAMES, Look, depth_look, family_look, net_name, stroke_of
from deepres.runs.finished import depth_of, family_of
from deepres.runs.groups import RunGroup
from deepres.runs.statistics import Summary

PAPER_LOOK = Look("#666666", "#a0a0a0", "o", "circle-open")
DIGITS = 4  # of a number in the page


@dataclass(frozen=True)
class Chart:
    """A figure of the page."""

    name: str
    """Its id in the page, behind "chart-"."""
    title: str
    figure: go.Figure

    def to_json(self) -> dict[str, Any]:
        """Return what plotly's script takes."""
        content: dict[str, Any] = self.figure.to_plotly_json()
        return {"name": f"chart-{self.name}", "data": content["data"], "layout": content["layout"]}


def _figure(x_title: str, y_title: str, **layout: Any) -> go.Figure:
    """Return an empty figure in our style; the page adds the colours."""
    figure = go.Figure(layout={"template": None, "uirevision": "keep", "font": {"size": 13}})
    figure.update_layout(
        margin={"l": 52, "r": 12, "t": 10, "b": 48},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "xanchor": "left", "x": 0},
    )
    figure.update_xaxes(title=x_title, zeroline=False, showline=True, ticks="outside", automargin=True)
    figure.update_yaxes(title=y_title, zeroline=False, showline=True, ticks="outside", automargin=True)
    figure.update_layout(**layout)
    return figure


def _colours(look: Look) -> dict[str, str]:
    return {"light": look.light, "dark": look.dark}


def figure6_charts(groups: Sequence[RunGroup], prefix: str) -> list[Chart]:
    """Return figure 6 of one recipe, a chart for each family of nets."""
    curves = [average(group) for group in groups]
    top = error_limit([float(curve.held_out.mean[-1]) for curve in curves])
    last = max(int(curve.steps[-1]) for curve in curves) / 1e4
    charts = []
    for family in split_families([group.model for group in groups]):
        members = [curve for curve in curves if family_of(curve.group.model) == family]
        figure = _figure("iterations (1e4)", "error (%)", hovermode="x unified")
        figure.update_xaxes(range=[0, 1.01 * last])
        figure.update_yaxes(range=[0, top])
        for curve in members:
            figure.add_traces(_curve_traces(curve))
        for _, end in groups[0].runs[0].small_images:
            figure.add_vline(end / 1e4, line={"width": 1, "dash": "dot", "color": PAPER_LOOK.light})
        if members:
            charts.append(Chart(f"{prefix}-{family}", FAMILY_TITLES.get(family, family), figure))
    return charts


def _curve_traces(curve: Curve) -> list[go.Scatter]:
    """Return the bands and the means of one net; the legend switches them together."""
    family, depth = family_of(curve.group.model), depth_of(curve.group.model)
    look, name = depth_look(depth), net_name(family, depth)
    x = _numbers(curve.steps / 1e4)
    common: dict[str, Any] = {"legendgroup": name, "meta": _colours(look)}
    traces = []
    if len(curve.group.runs) > 1:
        for band in (curve.train, curve.held_out):
            traces.append(_band_trace(x, band, common))
    traces.append(
        go.Scatter(
            x=x,
            y=_numbers(curve.train.mean),
            name=f"{name} train",
            showlegend=False,
            mode="lines",
            line={"dash": "dash", "width": 1.3},
            hovertemplate="%{y:.2f}%",
            **common,
        )
    )
    every = max(1, len(x) // 10)
    traces.append(
        go.Scatter(
            x=x,
            y=_numbers(curve.held_out.mean),
            name=f"{name}: {curve.held_out.mean[-1]:.2f}% ({seeds(curve.group.runs)})",
            mode="lines+markers",
            line={"width": 2.5},
            marker={"symbol": look.symbol, "size": 7, "maxdisplayed": len(x) // every},
            hovertemplate="%{y:.2f}%",
            **common,
        )
    )
    return traces


def _band_trace(x: list[float], band: Band, common: dict[str, Any]) -> go.Scatter:
    """Return the area between the lowest and the highest seed."""
    outline = [*_numbers(band.low), *reversed(_numbers(band.high))]
    style: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "fill": "toself"}
    return go.Scatter(x=[*x, *reversed(x)], y=outline, hoverinfo="skip", showlegend=False, **style, **common)


def depth_chart(summaries: Sequence[Summary], name: str) -> Chart:
    """Return the test error of one recipe's nets against their depth."""
    depths = sorted({depth_of(summary.group.model) for summary in summaries})
    figure = _figure("layers", "test error, last epoch (%)")
    ticks = set(depths)
    for family in split_families([summary.group.model for summary in summaries]):
        members = [summary for summary in summaries if family_of(summary.group.model) == family]
        published = paper_errors(family, summaries)
        ticks |= set(published)
        label = FAMILY_NAMES.get(family, family)
        if published:
            x, y = list(published), list(published.values())
            figure.add_trace(_paper_trace(f"{label}, the paper", x, y, family, "%{x}"))
        if members:
            figure.add_trace(
                go.Scatter(
                    x=[depth_of(summary.group.model) for summary in members],
                    y=_numbers([summary.mean for summary in members]),
                    error_y={
                        "type": "data",
                        "symmetric": False,
                        "array": [_above(summary) for summary in members],
                        "arrayminus": [_below(summary) for summary in members],
                        "thickness": 1.2,
                    },
                    name=f"{label}, mean (bar: lowest to highest seed)",
                    customdata=[seeds(summary.group.runs) for summary in members],
                    mode="lines+markers",
                    line={"width": 2.5},
                    marker={"symbol": family_look(family).symbol, "size": 9},
                    hovertemplate="%{x} layers: %{y:.2f}%, %{customdata}<extra></extra>",
                    meta=_colours(family_look(family)),
                )
            )
    figure.update_xaxes(tickvals=sorted(ticks))
    if depths[-1] > 200:
        figure.update_xaxes(type="log")
    return Chart(name, f"Recipe {summaries[0].group.label}", figure)


def _above(summary: Summary) -> float:
    return round(max(run.test_error_last for run in summary.group.runs) - summary.mean, DIGITS)


def _below(summary: Summary) -> float:
    return round(summary.mean - min(run.test_error_last for run in summary.group.runs), DIGITS)


def compute_chart(summaries: Sequence[Summary], name: str) -> Chart | None:
    """Return the test error against the operations of the whole training; None if no run recorded them."""
    known = [(summary, flop / 1e15) for summary in summaries if (flop := summary.group.training_flop) is not None]
    if not known:
        return None
    figure = _figure("training, PFLOP (1e15 operations)", "test error, last epoch (%)")
    labels = list(dict.fromkeys(summary.group.label for summary, _ in known))
    for family in split_families([summary.group.model for summary, _ in known]):
        label = FAMILY_NAMES.get(family, family)
        if points := paper_points([summary for summary, _ in known], family):
            x, y = [flop / 1e15 for flop, _ in points], [error for _, error in points]
            figure.add_trace(_paper_trace(f"{label}, the paper", x, y, family, "%{x:.3g} PFLOP"))
        for i, recipe in enumerate(labels):
            members = [(s, x) for s, x in known if family_of(s.group.model) == family and s.group.label == recipe]
            if members:
                look, stroke = family_look(family), stroke_of(i)
                figure.add_trace(
                    go.Scatter(
                        x=_numbers([flop for _, flop in members]),
                        y=_numbers([summary.mean for summary, _ in members]),
                        text=[str(depth_of(summary.group.model)) for summary, _ in members],
                        customdata=[f"{s.group.model}, {recipe}, {seeds(s.group.runs)}" for s, _ in members],
                        textposition="top center" if family == "plain" else "bottom center",
                        name=f"{label}, {recipe}",
                        mode="lines+markers+text",
                        cliponaxis=False,
                        line={"width": 2.2, "dash": stroke.dash},
                        marker={"symbol": f"{look.symbol}{stroke.symbol_ending}", "size": 9},
                        hovertemplate="%{customdata}: %{y:.2f}% at %{x:.3g} PFLOP<extra></extra>",
                        meta=_colours(look),
                    )
                )
    figure.update_xaxes(type="log", tickvals=[n * 10.0**power for power in range(-4, 5) for n in (1, 2, 5)])
    return Chart(name, "All recipes", figure)


def _paper_trace(name: str, x: list[Any], y: list[Any], family: str, place: str) -> go.Scatter:
    return go.Scatter(
        x=_numbers(x),
        y=y,
        name=name,
        mode="lines+markers",
        line={"width": 1.2, "dash": "dot"},
        marker={"symbol": f"{family_look(family).symbol}-open", "size": 8},
        hovertemplate=f"the paper, {place}: %{{y:.2f}}%<extra></extra>",
        meta=_colours(PAPER_LOOK),
    )


def figure7_charts(nets: Sequence[Responses]) -> list[Chart]:
    """Return figure 7: the responses in the order of the layers, and sorted."""
    charts = []
    for name, title in (("figure7-order", "in the order of the layers"), ("figure7-sorted", "sorted by response")):
        figure = _figure("3x3 layers", "std of the response", hovermode="closest")
        figure.update_yaxes(rangemode="tozero")
        for net, line in zip(nets, net_lines(nets), strict=True):
            order = (
                np.argsort([-std for std in net.std], kind="stable")
                if name == "figure7-sorted"
                else range(len(net.std))
            )
            look = depth_look(net.depth)
            figure.add_trace(
                go.Scatter(
                    x=list(range(1, len(net.std) + 1)),
                    y=_numbers([net.std[i] for i in order]),
                    customdata=[net.layers[i] for i in order],
                    name=net.label,
                    mode="lines+markers" if line.markers else "lines",
                    line={"width": 1.6, "dash": line.dash},
                    marker={"symbol": f"{look.symbol}{line.symbol_ending}", "size": 6},
                    hovertemplate="%{customdata}: %{y:.3f}",
                    meta=_colours(look),
                )
            )
        charts.append(Chart(name, title, figure))
    return charts


def confusion_chart(answers: Answers, name: str) -> Chart:
    """Return a confusion matrix; right answers have no colour, so that the errors show."""
    confusion = answers.confusion
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    figure = _figure("predicted class", "true class")
    figure.add_trace(
        go.Heatmap(
            z=[_numbers(row) for row in errors],
            x=list(CLASSES),
            y=list(CLASSES),
            text=[[f"{count:.0f}" if count >= 0.5 else "" for count in row] for row in confusion],
            customdata=[_numbers(row) for row in confusion],
            texttemplate="%{text}",
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate="%{y} taken for %{x}: %{customdata:.1f} images<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", showline=False, ticks="")
    figure.update_xaxes(showline=False, ticks="", tickangle=-45)
    return Chart(name, f"{answers.group.model}, recipe {answers.group.label}, {seeds(answers.predictions)}", figure)


def _numbers(values: Any) -> list[float]:
    """Return rounded numbers: the page holds thousands of them."""
    return [round(float(value), DIGITS) for value in values]
