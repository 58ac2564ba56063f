"""Errors against steps, depth and compute, as matplotlib figures."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from deepres.recipes.named import paper
from deepres.recipes.recipe import SPLITS
from deepres.report.curves import Curve, average, error_limit, seeds, training_remark
from deepres.report.style import (
    FAMILY_NAMES,
    OUTLINE,
    PAPER_GRAY,
    add_grid,
    family_look,
    house_style,
    net_look,
    net_name,
    new_figure,
    own_points,
    published_points,
    stroke_of,
)
from deepres.runs.finished import FAMILIES, depth_of, family_of, model_key
from deepres.runs.groups import RunGroup
from deepres.runs.published import PUBLISHED
from deepres.runs.statistics import Summary

FAMILY_TITLES = {"plain": "plain nets", "resnet": "residual nets"}
NUM_MARKERS = 8  # on a curve


def split_families(models: Sequence[str]) -> list[str]:
    """Return the families to show side by side: the paper's two, plain first, then whatever else there is."""
    others = {family_of(model) for model in models} - set(FAMILIES)
    return [*FAMILIES, *sorted(others)]


def width_of(model: str) -> str:
    """Return what follows the depth in a net's name: "x2" with twice the filters, and nothing in the paper's."""
    return model_key(model)[3]


def draw_figure6(groups: Sequence[RunGroup]) -> Figure:
    """Draw the training error (dashed) and the test error (bold) of one recipe against iterations: figure 6.

    A line is the mean over seeds, the band around it reaches from the lowest to the highest. The axes are the paper's:
    iterations in units of 10,000, errors of 0 to 20%, or more where a net ends above. Dotted lines stand where a
    training on small images goes over to larger ones; until the last, the test, of full size, is of another task.

    Args:
        groups: of the same recipe; one or more.
    """
    curves = [average(group) for group in groups]
    families = split_families([group.model for group in groups])
    top = error_limit([float(curve.held_out.mean[-1]) for curve in curves])
    with house_style():
        figure = new_figure(5.4 * len(families), 4.5)
        panels = figure.subplots(1, len(families), sharey=True)
        for axes, family in zip(panels, families, strict=True):
            members = [curve for curve in curves if family_of(curve.group.model) == family]
            _draw_curves(axes, members)
            axes.set_title(FAMILY_TITLES.get(family, family))
            axes.set(xlabel="iterations (1e4)", ylim=(0, top))
            last = max(int(curve.steps[-1]) for curve in curves)
            axes.set_xlim(0, 1.01 * last)  # so that a marker at the end is whole
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e4:g}"))
            axes.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 5, 10)))  # 64,000 steps: every 10,000
            axes.yaxis.set_major_locator(MultipleLocator(5 if top <= 30 else top / 4))
            for _, end in groups[0].runs[0].low_resolutions:
                axes.axvline(end, color=PAPER_GRAY, ls=":", lw=1, zorder=1)
            axes.tick_params(labelleft=True)
            add_grid(axes)
        panels[0].set_ylabel("error (%)")
        held_out = curves[0].held_out_name
        figure.suptitle(
            f"Recipe {groups[0].label}: {training_remark(groups[0].runs[0])}\n"
            f"dashed: training error (running, over augmented images); bold: {held_out} error",
            fontsize=10,
        )
    return figure


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draw the nets of one family."""
    if not curves:
        axes.text(0.5, 0.5, "no finished runs", transform=axes.transAxes, ha="center", color=PAPER_GRAY)
        return
    handles = []
    for i, curve in enumerate(curves):
        look = net_look(curve.group.model)
        for band, weight in ((curve.train, 1.1), (curve.held_out, 2.2)):
            axes.fill_between(curve.steps, band.low, band.high, color=look.color, alpha=0.18, lw=0)
            dashed = band is curve.train
            axes.plot(curve.steps, band.mean, "--" if dashed else "-", color=look.color, lw=weight, zorder=2 + weight)
        every = max(1, len(curve.steps) // NUM_MARKERS)
        first = (i * every // max(1, len(curves))) % every  # the markers of two curves stand apart
        marked = slice(first, None, every)
        axes.plot(curve.steps[marked], curve.held_out.mean[marked], **own_points(look) | {"ls": "", "zorder": 5})
        label = f"{net_name(curve.group.model)}: {curve.held_out.mean[-1]:.2f}% ({seeds(curve.group.runs)})"
        handles.append(Line2D([], [], label=label, **own_points(look)))
    axes.legend(handles=handles, loc="lower left", framealpha=0.85, frameon=True, edgecolor="none")


def draw_error_against_depth(summaries: Sequence[Summary]) -> Figure:
    """Draw the test error of one recipe's nets against their depth, with the paper's in grey.

    A filled marker is the mean of the last epoch over seeds, a small dot a single run.

    Args:
        summaries: of the same recipe; one or more.
    """
    with house_style():
        figure = new_figure(6.2, 4.4)
        axes = figure.add_subplot()
        depths = sorted({depth_of(s.group.model) for s in summaries})
        ticks = set(depths)
        for family in split_families([summary.group.model for summary in summaries]):
            members = [s for s in summaries if family_of(s.group.model) == family]
            name = FAMILY_NAMES.get(family, family)
            published = list(paper_errors(family, summaries).items())
            look = family_look(family)
            ticks |= {depth for depth, _ in published}
            if published:
                axes.plot(*zip(*published, strict=True), label=f"{name}, the paper", **published_points(look))
            for i, width in enumerate(sorted({width_of(s.group.model) for s in members})):
                own = [s for s in members if width_of(s.group.model) == width]
                means = [(depth_of(s.group.model), s.mean) for s in own]
                runs = [(depth_of(s.group.model), run.test_error_last) for s in own for run in s.group.runs if s.n > 1]
                if runs:
                    axes.plot(*zip(*runs, strict=True), ls="", marker=".", ms=4, color=look.color, alpha=0.5, zorder=3)
                label = " ".join(filter(None, (name, width))) + ", mean of the seeds"
                axes.plot(*zip(*means, strict=True), label=label, **own_points(look, stroke_of(i)))
        if depths[-1] > 200:
            axes.set_xscale("log")
        axes.set_xticks(sorted(ticks), [str(depth) for depth in sorted(ticks)])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="layers", ylabel="test error, last epoch (%)", title=f"Recipe {summaries[0].group.label}")
        add_grid(axes)
        axes.legend()
    return figure


def draw_error_against_compute(summaries: Sequence[Summary]) -> Figure:
    """Draw the test error against the operations of the whole training, for all recipes together.

    The paper's errors stand where its recipe would put them: 64,000 mini-batches of 128 images.

    Args:
        summaries: of any recipes; those whose runs did not record their operations are left out.
    """
    known = [(summary, flop) for summary in summaries if (flop := summary.group.training_flop) is not None]
    series = list(dict.fromkeys((summary.group.label, width_of(summary.group.model)) for summary, _ in known))
    with house_style():
        figure = new_figure(9.6, 4.8)
        axes = figure.add_subplot()
        for family in split_families([summary.group.model for summary, _ in known]):
            look, name = family_look(family), FAMILY_NAMES.get(family, family)
            above = family == "plain"  # labels; those of residual nets are below, so that neither hides the other
            outermost: dict[tuple[str, float], float] = {}  # where a label stands, one for all nets of that compute
            for i, (label, width) in enumerate(series):
                members = [
                    (s, x)
                    for s, x in known
                    if family_of(s.group.model) == family
                    and (s.group.label, width_of(s.group.model)) == (label, width)
                ]
                if not members:
                    continue
                kind = " ".join(filter(None, (name, width)))
                points = [(flop, summary.mean) for summary, flop in members]
                axes.plot(*zip(*points, strict=True), label=f"{kind}, {label}", **own_points(look, stroke_of(i)))
                for summary, (flop, error) in zip((summary for summary, _ in members), points, strict=True):
                    place = f"{depth_of(summary.group.model)}{width}", flop
                    outermost[place] = (max if above else min)(error, outermost.get(place, error))
            for (text, flop), error in outermost.items():
                axes.annotate(
                    text,
                    (flop, error),
                    xytext=(0, 8 if above else -8),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if above else "top",
                    fontsize=8,
                    color=look.color,
                    path_effects=OUTLINE,
                    zorder=6,
                )
            if points := paper_points([summary for summary, _ in known], family):
                axes.plot(*zip(*points, strict=True), label=f"{name}, the paper", **published_points(look))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e15:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="training, PFLOP (1e15 operations)", ylabel="test error, last epoch (%)")
        add_grid(axes)
        axes.margins(y=0.12)
        if known:
            figure.legend(loc="outside right upper")  # there may be many recipes
    return figure


def paper_points(summaries: Sequence[Summary], family: str) -> list[tuple[float, float]]:
    """Return (operations, test error) of the paper's nets of a family, by its recipe; of those that were run here."""
    images = paper().compute(SPLITS["50k"])
    points = {
        summary.group.flop_per_image * images: summary.paper
        for summary in summaries
        if family_of(summary.group.model) == family
        and summary.paper is not None
        and summary.group.flop_per_image is not None
    }
    return sorted(points.items())


def paper_errors(family: str, summaries: Sequence[Summary]) -> dict[int, float]:
    """Return the paper's test errors of a family of nets, by depth, to stand beside those of one recipe.

    They go as deep as that recipe's; there are none beside nets of another shortcut option, nor beside nets
    trained on other data.
    """
    if not summaries[0].group.runs[0].is_as_published:
        return {}
    deepest = max(depth_of(summary.group.model) for summary in summaries)
    nets = {depth_of(name): net for name, net in PUBLISHED.items() if family_of(name) == family}
    errors = {depth: net.paper if net.paper_mean is None else net.paper_mean for depth, net in sorted(nets.items())}
    return {depth: error for depth, error in errors.items() if error is not None and depth <= deepest}
