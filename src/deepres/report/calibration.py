"""How far the nets' probabilities can be trusted: reliability diagrams, and what their answers come to."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean, stdev

import numpy as np
from matplotlib.figure import Figure

from deepres.data.cifar10 import CLASSES
from deepres.report.answers import Answers
from deepres.report.curves import seeds
from deepres.report.style import PAPER_GRAY, house_style, net_look, net_name, new_figure, own_points
from deepres.runs.finished import family_of
from deepres.runs.metrics import BINS, Metrics, Reliability, class_errors, metrics_of_logits, reliability
from deepres.runs.predictions import Predictions

HEADINGS = (
    *("recipe", "net", "runs", "error", "top-5 error"),
    *("negative log-likelihood", "Brier score", "calibration error"),
)
TEXT_COLUMNS = 2
FEWEST = 10  # images of a run in a bin that is drawn
NOTE = (
    "Of the answers to the test images, mean ± standard deviation over the seeds: errors in percent, the negative "
    "log-likelihood in nats, the Brier score from 0 to 2, and the expected calibration error over 15 bins in percent "
    "points. Empty where a run kept its answers and not all logits."
)
CLASS_NOTE = "Error of the images of each class in percent, mean over the seeds."


def metrics_of(predictions: Predictions) -> Metrics:
    """Return what answers come to: of those without logits, the errors of the classes and the calibration."""
    if predictions.logits is not None:
        return metrics_of_logits(predictions.logits, predictions.labels)
    right = predictions.predicted == predictions.labels
    return Metrics(
        class_errors(predictions.labels, predictions.predicted, len(CLASSES)),
        reliability(predictions.probability, right).error,
    )


def read_metrics(answers: Answers) -> list[Metrics]:
    """Return the metrics of a group's runs: those of result.json, or else of the answers that the run kept."""
    recorded = [run.result.test_metrics for run in answers.group.runs if run.predictions is not None]
    return [known or metrics_of(made) for known, made in zip(recorded, answers.predictions, strict=True)]


def metrics_cells(answers: Answers) -> list[str]:
    """Return a group's row of the table of metrics, under `HEADINGS`."""
    metrics = read_metrics(answers)
    errors = [run.test_error_last for run in answers.group.runs if run.predictions is not None]
    return [
        answers.group.label,
        answers.group.model,
        str(len(metrics)),
        _spread(errors),
        _spread([each.top5_error for each in metrics]),
        _spread([each.negative_log_likelihood for each in metrics], ".4f"),
        _spread([each.brier_score for each in metrics], ".4f"),
        _spread([each.calibration_error for each in metrics]),
    ]


def class_cells(answers: Answers) -> list[str]:
    """Return a group's row of the table of class errors: recipe, net, and the classes."""
    columns = zip(*(each.class_errors for each in read_metrics(answers)), strict=True)
    known = [[error for error in column if error is not None] for column in columns]
    return [answers.group.label, answers.group.model, *(f"{mean(column):.2f}" if column else "" for column in known)]


def _spread(values: Sequence[float | None], style: str = ".2f") -> str:
    """Return mean and standard deviation; "" where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return ""
    return format(mean(known), style) + (f" ± {stdev(known):{style}}" if len(known) > 1 else "")


def pooled(answers: Answers) -> Reliability:
    """Return the reliability of the answers of all runs of a group together."""
    made = [reliability(p.probability, p.predicted == p.labels) for p in answers.predictions]
    images = np.stack([each.images for each in made]).sum(axis=0)

    def average(parts: list[np.ndarray]) -> np.ndarray:
        sums = sum(np.nan_to_num(part) * each.images for part, each in zip(parts, made, strict=True))
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / images)

    return replace(
        made[0],
        images=images,
        probability=average([each.probability for each in made]),
        right=average([each.right for each in made]),
    )


def draw_reliability(answers: Sequence[Answers]) -> Figure:
    """Draw the share of right answers against the probability that the nets of one recipe give them.

    A net that is right as often as it says is on the diagonal; below it, it is too sure of itself. A bin with fewer
    than ten images a run is left out.

    Args:
        answers: of groups of the same recipe; one or more.
    """
    families = sorted({family_of(found.group.model) for found in answers})
    with house_style():
        figure = new_figure(4.6 * len(families), 4.6)
        panels = figure.subplots(1, len(families), sharey=True, squeeze=False)
        for axes, family in zip(panels.flat, families, strict=True):
            axes.plot([0, 1], [0, 1], "--", color=PAPER_GRAY, lw=1, zorder=1)
            for found in answers:
                if family_of(found.group.model) != family:
                    continue
                bins = pooled(found)
                shown = bins.images >= FEWEST * len(found.predictions)
                error = mean(each.calibration_error for each in read_metrics(found))
                label = f"{net_name(found.group.model)}: {error:.2f} points ({seeds(found.predictions)})"
                axes.plot(
                    bins.probability[shown], bins.right[shown], label=label, **own_points(net_look(found.group.model))
                )
            axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the predicted class", aspect="equal")
            axes.legend(loc="upper left", title="calibration error", alignment="left")
        panels[0, 0].set_ylabel("share of right answers")
        figure.suptitle(f"Recipe {answers[0].group.label}: test images in {BINS} bins of probability", fontsize=10)
    return figure
