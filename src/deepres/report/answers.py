"""What the trained nets answer on the test images: confusion matrices, and their most confident errors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepres.data.cifar10 import CLASSES
from deepres.errors import UserError
from deepres.report.curves import seeds
from deepres.report.style import house_style, new_figure
from deepres.runs.groups import RunGroup
from deepres.runs.predictions import Predictions

WRONG_COLUMNS, WRONG_ROWS = 8, 3
SHADES = LinearSegmentedColormap.from_list("errors", ["#ffffff", "#f3c9a5", "#c4622d", "#5f1e12"])


@dataclass(frozen=True)
class Answers:
    """The predictions of the runs of one group that kept them, on the same test images."""

    group: RunGroup
    predictions: tuple[Predictions, ...]
    """One or more, by seed."""

    @property
    def confusion(self) -> NDArray[np.float64]:
        """Images by (true class, predicted class), mean over the runs: (10, 10)."""
        total = sum(prediction.confusion(len(CLASSES)) for prediction in self.predictions)
        return np.asarray(total, np.float64) / len(self.predictions)


def read_answers(group: RunGroup) -> Answers | None:
    """Read the predictions of a group's runs; None if no run kept them, or they are no answers about CIFAR-10.

    Raises:
        UserError: a file is damaged, or of other test images or classes than the others.
    """
    if group.runs[0].data != "CIFAR-10":
        return None
    paths = [path for run in group.runs if (path := run.predictions) is not None]
    predictions = [Predictions.read(path) for path in paths]
    for path, prediction in zip(paths, predictions, strict=True):
        if not np.array_equal(prediction.labels, predictions[0].labels):
            raise UserError(f"{path} is of other test images than {paths[0]}")
        if max(prediction.labels.max(), prediction.predicted.max()) >= len(CLASSES):
            raise UserError(f"{path} knows more classes than CIFAR-10 has")
    return Answers(group, tuple(predictions)) if predictions else None


def draw_confusion(answers: Answers) -> Figure:
    """Draw a confusion matrix: images by true class (rows) and predicted class (columns), mean over the runs."""
    confusion = answers.confusion
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    top = max(1.0, float(errors.max()))
    with house_style():
        figure = new_figure(7.0, 6.2)
        axes = figure.add_subplot()
        axes.imshow(errors, cmap=SHADES, vmin=0, vmax=top)
        for true, predicted in np.ndindex(confusion.shape):
            count = confusion[true, predicted]
            diagonal = true == predicted
            axes.text(
                predicted,
                true,
                f"{count:.0f}" if count >= 0.5 else "·",
                ha="center",
                va="center",
                fontsize=9,
                fontweight="bold" if diagonal else "normal",
                color="white" if errors[true, predicted] > 0.55 * top else "black",
            )
        ticks = range(len(CLASSES))
        axes.set_xticks(ticks, CLASSES, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, CLASSES)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(
            f"{answers.group.model}, recipe {answers.group.label}: images, mean of {seeds(answers.predictions)}",
            fontsize=10,
        )
    return figure


@dataclass(frozen=True)
class WrongImage:
    """A test image that every run gets wrong."""

    index: int
    """The image's place in the test set, from 0."""
    true: int
    predicted: int
    """The class that most runs take it for."""
    probability: float
    """The probability of the class that each run takes it for, mean over the runs."""


def confident_errors(answers: Answers, number: int = WRONG_COLUMNS * WRONG_ROWS) -> list[WrongImage]:
    """Return the test images that every run gets wrong, the most confident first."""
    labels = answers.predictions[0].labels
    predicted = np.stack([prediction.predicted for prediction in answers.predictions])  # (n, N)
    probability = np.stack([prediction.probability for prediction in answers.predictions]).astype(np.float64)
    confidence = np.where((predicted != labels).all(axis=0), probability.mean(axis=0), -1)  # (N,)
    indices = [int(i) for i in np.argsort(-confidence, kind="stable")[:number] if confidence[i] >= 0]
    return [
        WrongImage(i, int(labels[i]), Counter(predicted[:, i].tolist()).most_common(1)[0][0], float(confidence[i]))
        for i in indices
    ]


def draw_confident_errors(answers: Answers, wrong: Sequence[WrongImage], images: NDArray[np.uint8]) -> Figure:
    """Draw the images of `confident_errors`.

    Args:
        answers: whose errors they are.
        wrong: one or more.
        images: the test set, (N, 3, 32, 32).
    """
    rows = -(-len(wrong) // WRONG_COLUMNS)
    with house_style():
        figure = new_figure(1.45 * WRONG_COLUMNS, 1.8 * rows + 0.4)
        panels = figure.subplots(rows, WRONG_COLUMNS, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
            axes.set(xticks=(), yticks=())  # which the layout measures though nobody sees them: half of all the time
        for axes, image in zip(panels.flat, wrong, strict=False):
            axes.imshow(images[image.index].transpose(1, 2, 0), interpolation="nearest")
            axes.set_title(
                f"{CLASSES[image.true]}\n→ {CLASSES[image.predicted]} {100 * image.probability:.1f}%", fontsize=8.5
            )
        runs = (
            "wrong in its one run"
            if len(answers.predictions) == 1
            else f"wrong in all {len(answers.predictions)} runs"
        )
        figure.suptitle(
            f"Most confident errors of {answers.group.model}, recipe {answers.group.label} ({runs}): "
            "true class → predicted class",
            fontsize=10,
        )
    return figure
