"""What a notebook shows: pictures of the data, the nets and the results, and trainings while they go on.

It needs the extra `report`, and IPython, which every notebook has. `main.ipynb` is made of it.
"""

import inspect
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from IPython import display as ipython
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Picture
from torch import Tensor

from deepres.backends.device import resolve_device
from deepres.data.datasets import Dataset
from deepres.data.images import read_image
from deepres.models import build_model, count_parameters
from deepres.models.cost import flop_per_image
from deepres.models.layout import read_layout
from deepres.recipes.named import get_recipe
from deepres.report.architecture import draw_architecture
from deepres.report.dataset import draw_classes, draw_rows
from deepres.report.explanation import draw_explanation
from deepres.report.figures import draw_error_against_depth, draw_figure6
from deepres.report.lines import Line, draw_lines
from deepres.report.style import encode_figure
from deepres.report.tables import claims_markdown, table_markdown, table_rows
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs, labels_in_order
from deepres.runs.statistics import check_claims, summarize
from deepres.training.bench import measure_speed
from deepres.training.progress import Reporter, StepState
from deepres.weights.classifier import PixelClassifier
from deepres.weights.grad_cam import explain

SHARPNESS = 1.5  # pixels of a picture for each pixel of its width on the page
EXAMPLES = 8  # of each class
POINTS = 60  # of a line of a live plot
DRAWING_SHARE = 0.05  # of the time, at most, that goes into drawing while nets train


def show(figure: Figure, width: int = 640, *, all_colors: bool = False) -> None:
    """Show a figure of Matplotlib.

    Args:
        figure: what to show.
        width: on the page, in pixels.
        all_colors: or only 256, which make a file of a third of the size.
    """
    ipython.display(_image(figure, width, all_colors=all_colors))


def _image(figure: Figure, width: int, *, all_colors: bool = False) -> ipython.Image:
    png = encode_figure(figure, "png", dpi=round(SHARPNESS * width / figure.get_figwidth()))
    if not all_colors:
        small = io.BytesIO()
        Picture.open(io.BytesIO(png)).convert("RGB").quantize(256).save(small, format="png", optimize=True)
        png = small.getvalue()
    return ipython.Image(png, width=width)


def show_source(thing: type[Any] | Callable[..., Any]) -> None:
    """Show the source of a class or function, without the marks that a linter reads."""
    source = re.sub(r"  # noqa.*", "", inspect.getsource(thing))
    ipython.display(ipython.Markdown(f"```python\n{source}```"))


def show_classes(data: Dataset, width: int = 520) -> None:
    """Show the first training images of each class of CIFAR-10."""
    show(draw_classes(data.train, EXAMPLES), width)


def show_images(rows: Mapping[str, Tensor | NDArray[np.uint8]], width: int = 640) -> None:
    """Show rows of images, (N, 3, H, W), with captions; see `deepres.report.dataset.draw_rows`."""
    show(draw_rows({caption: np.asarray(images) for caption, images in rows.items()}), width)


def show_nets(*names: str, width: int = 480) -> None:
    """Show the layers of nets side by side, with their parameters counted."""
    nets = {name: build_model(name) for name in names}
    columns = [(f"{name}\n{count_parameters(net):,} parameters", read_layout(net)) for name, net in nets.items()]
    show(draw_architecture(columns), width)


def show_lines(lines: Mapping[str, Sequence[float]], *, x: str, y: str, log: bool = False, width: int = 600) -> None:
    """Show numbers as lines, numbered from 1: one of each layer or of each step, by the name of the net."""
    numbered = {name: (range(1, len(values) + 1), values) for name, values in lines.items()}
    show(draw_lines(numbered, x=x, y=y, log=log), width)


def show_explanation(classifier: PixelClassifier, picture: str | Path | NDArray[np.uint8], width: int = 760) -> None:
    """Show an image with the classes that a net takes it for, and where it speaks for each, see `grad_cam`.

    Args:
        classifier: the net, such as `deepres.load_pretrained` gives.
        picture: an image file of any kind and size, or pixels, uint8 (3, S, S).
        width: on the page, in pixels.

    Raises:
        UserError: the file is missing or no image.
    """
    if isinstance(picture, str | Path):
        name, pixels = Path(picture).name, read_image(Path(picture), classifier.image_size)
    else:
        name, pixels = "the image", picture
    found = explain(classifier, pixels)
    heading = f"{name}, seen by {classifier.name}: what speaks for each class (Grad-CAM)"
    show(draw_explanation(pixels, found.maps, found.titles, heading), width, all_colors=True)


def show_results(folder: str | Path = "results") -> None:
    """Show what finished runs say: figure 6 and the error against depth of each recipe, the table and the claims."""
    finished, skipped = load_runs([folder]) if Path(folder).is_dir() else ([], [])
    groups = group_runs(finished)
    for run in skipped:
        print(f"left out: {run.path}: {run.reason}")
    if not groups:
        print(f"{folder}/ holds no finished runs: figure 6, the table and the claims stand here once it does")
        return
    summaries = [summarize(group) for group in groups]
    for label in labels_in_order(groups):
        members = [summary for summary in summaries if summary.group.label == label]
        if len(members) > 1:
            show(draw_figure6([summary.group for summary in members]), width=760)
            show(draw_error_against_depth(members), width=460)
    ipython.display(ipython.Markdown(table_markdown(table_rows(summaries))))
    ipython.display(ipython.Markdown(claims_markdown(check_claims(groups))))


def seconds_per_step(names: Sequence[str], recipe: str = "paper", seconds: float = 2.0) -> dict[str, float]:
    """Measure how long this machine takes for a training step of each net, as `deepres.train` would compute it.

    The smallest net is measured on images of full size, for about `seconds` and what it takes to start; the others are
    estimated by their operations.

    Args:
        names: of nets that `build_model` knows.
        recipe: the name of the recipe, whose mini-batches count.
        seconds: to measure.
    """
    operations = {name: flop_per_image(build_model(name)) for name in names}
    smallest = min(operations, key=lambda name: operations[name])
    made = get_recipe(recipe)
    speed = measure_speed(smallest, [made], resolve_device("auto"), "auto", seconds)
    return {name: made.batch_size / speed.train * flop / operations[smallest] for name, flop in operations.items()}


class LivePlot:
    """The training errors of several runs in one picture, which is drawn anew while they train.

    A point is the mean over some of the steps before it, on augmented images as they were trained on.

    Args:
        lines: what is there from the beginning, such as lines of another plot.
        width: on the page, in pixels.
        seconds: between pictures, at least.

    Attributes:
        lines: the steps and the errors in percent of each run, by its name.

    Example:
        >>> plot = LivePlot()
        >>> for name in ("plain20", "resnet20"):
        ...     deepres.train(name, "fast", reporter=plot.reporter(name))
    """

    def __init__(self, lines: Mapping[str, Line] | None = None, *, width: int = 640, seconds: float = 2.0) -> None:
        self.lines: dict[str, Line] = dict(lines or {})
        self._width = width
        self._seconds = seconds
        self._handle: ipython.DisplayHandle | None = None
        self._next_drawing = 0.0

    def reporter(self, name: str) -> Reporter:
        """Return what `deepres.train` reports a run to, so that it becomes a line of this name."""
        return _LineReporter(self, name)

    def add(self, name: str, step: int, error: float) -> None:
        """Add a point to a line, and draw unless it is too early."""
        steps, errors = self.lines.get(name, ((), ()))
        self.lines[name] = [*steps, step], [*errors, error]
        if time.monotonic() >= self._next_drawing:
            self.draw()

    def draw(self) -> None:
        """Draw the picture, in the place of the one before it."""
        begun = time.monotonic()
        figure = draw_lines(self.lines, x="steps", y="training error (%)", limits=(0, 100))
        image = _image(figure, self._width)
        if self._handle is None:
            self._handle = ipython.display(image, display_id=True)
        else:
            self._handle.update(image)
        now = time.monotonic()
        self._next_drawing = now + max(self._seconds, (now - begun) / DRAWING_SHARE)


class _LineReporter(Reporter):
    """Makes a run a line of a live plot."""

    def __init__(self, plot: LivePlot, name: str) -> None:
        self._plot = plot
        self._name = name
        self._images_of_point = 0
        self._last: StepState | None = None
        self._wrong = 0.0
        self._images = 0

    def notice(self, message: str) -> None:
        """Print a line below the picture."""
        print(f"{self._name}: {message}")

    def start(self, step: int, target: int, batch_size: int, total_epochs: int) -> None:
        """Begin the line."""
        self._plot.lines.pop(self._name, None)
        self._images_of_point = batch_size * max(1, round(target / POINTS))

    def step(self, state: StepState) -> None:
        """Count what the step adds to the running error, which begins anew with each epoch."""
        last = self._last or replace(state, images=0, error=0.0)
        if state.images and (state.images, state.error) != (last.images, last.error):  # or a GPU has none yet
            begun_anew = state.images <= last.images
            self._images += state.images - (0 if begun_anew else last.images)
            self._wrong += _num_wrong(state) - (0 if begun_anew else _num_wrong(last))
        self._last = state
        if self._images >= self._images_of_point:
            self._add_point(state.step)

    def evaluating(self) -> None:
        """End the line at the last step."""
        if self._last is not None and self._images:
            self._add_point(self._last.step)
        self._plot.draw()

    def _add_point(self, step: int) -> None:
        self._plot.add(self._name, step, 100 * self._wrong / self._images)
        self._wrong, self._images = 0.0, 0


def _num_wrong(state: StepState) -> float:
    return state.error * state.images / 100 if state.images else 0.0
