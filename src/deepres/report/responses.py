"""Figure 7: the standard deviation of each 3x3 layer's response, from the file that `deepres responses` writes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepres.errors import UserError
from deepres.files import read_json, write_atomically, write_json
from deepres.report.style import add_grid, house_style, net_look, net_name, new_figure
from deepres.runs.collect import csv_text
from deepres.runs.finished import family_of, model_key

JSON_FILE = "responses.json"
CSV_FILE = "responses.csv"


@dataclass(frozen=True)
class Responses:
    """The layer responses of one trained net."""

    model: str
    source: str
    """The run directory or weights file, by its name."""
    layers: tuple[str, ...]
    """Names of the L layers, from the input on."""
    std: tuple[float, ...]
    """(L,), their standard deviations."""

    @property
    def family(self) -> str:
        """ "plain" or "resnet"."""
        return family_of(self.model)

    @property
    def label(self) -> str:
        """The net as the paper writes it, and whose weights they are."""
        return f"{net_name(self.model)} ({self.source.removesuffix('.safetensors')})"


@dataclass(frozen=True)
class NetLine:
    """The line of a net among those of its depth."""

    line: str
    markers: bool
    """Whether lines of this kind have markers."""
    hollow: bool
    """Whether the markers are hollow."""


LINES = (NetLine("-", True, False), NetLine("-", False, False), NetLine(":", False, False))
PLAIN_LINES = (NetLine("--", True, True), NetLine("--", False, True), NetLine("-.", False, True))


def write_responses(folder: Path, nets: Sequence[Responses], num_images: int) -> list[Path]:
    """Write responses.json and responses.csv, the latter with a line per layer; return the paths."""
    definition = (
        "standard deviation of the output of each 3x3 layer, after batch normalization and before the nonlinearity or "
        "addition, over all positions and channels of the training images, not augmented"
    )
    content = {"definition": definition, "num_images": num_images, "nets": [asdict(net) for net in nets]}
    write_json(folder / JSON_FILE, content)
    rows = [
        {"model": net.model, "source": net.source, "layer": i + 1, "name": name, "std": std}
        for net in nets
        for i, (name, std) in enumerate(zip(net.layers, net.std, strict=True))
    ]
    write_atomically(folder / CSV_FILE, csv_text(rows).encode())
    return [folder / JSON_FILE, folder / CSV_FILE]


def read_responses(path: Path) -> list[Responses]:
    """Read responses.json.

    Raises:
        UserError: the file is missing or damaged.
    """
    content = read_json(path, required=("nets",))
    try:
        nets = [
            Responses(str(net["model"]), str(net["source"]), tuple(net["layers"]), tuple(map(float, net["std"])))
            for net in content["nets"]
        ]
        if not nets or any(len(net.layers) != len(net.std) or not net.std for net in nets):
            raise ValueError("layers and responses do not match")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): run `deepres responses` again") from None
    return sorted(nets, key=lambda net: (model_key(net.model), net.source))


def draw_figure7(nets: Sequence[Responses]) -> Figure:
    """Draw the responses in the order of the layers (top) and sorted (bottom): figure 7.

    Args:
        nets: one or more.
    """
    with house_style():
        figure = new_figure(7.4, 6.6)
        top, bottom = figure.subplots(2, 1)
        for net, line in zip(nets, net_lines(nets), strict=True):
            _draw_net(top, net, net.std, line)
            _draw_net(bottom, net, sorted(net.std, reverse=True), line)
        highest, longest = max(max(net.std) for net in nets), max(len(net.std) for net in nets)
        for axes, order in ((top, "from the input on"), (bottom, "sorted by response")):
            axes.set(xlabel=f"3x3 layers, {order}", ylabel="std of the response", ylim=(0, 1.08 * highest))
            axes.set_xlim(0, longest + 1)
            add_grid(axes)
        top.legend(ncols=2)
    return figure


def net_lines(nets: Sequence[Responses]) -> list[NetLine]:
    """Return how each net is drawn: by its kind, and without markers where one of its name came before."""
    seen: Counter[str] = Counter()
    lines = []
    for net in nets:
        kind = PLAIN_LINES if net.family == "plain" else LINES
        lines.append(kind[min(seen[net.model], len(kind) - 1)])
        seen[net.model] += 1
    return lines


def _draw_net(axes: Axes, net: Responses, std: Sequence[float], line: NetLine) -> None:
    look = net_look(net.model)
    axes.plot(
        np.arange(1, len(std) + 1),
        std,
        ls=line.line,
        lw=1.3,
        marker=look.marker if line.markers else "",
        ms=4,
        mfc="white" if line.hollow else look.color,
        color=look.color,
        label=net.label,
    )
