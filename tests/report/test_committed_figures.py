"""The figures of the committed results."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepres.report.figures import draw_error_against_compute, draw_error_against_depth, draw_figure6
from deepres.report.responses import draw_figure7, read_responses
from deepres.report.runs import group_runs, load_runs
from deepres.report.statistics import summarise
from deepres.report.style import encode_figure

RESULTS = Path(__file__).parent.parent.parent / "results"


@pytest.fixture(scope="module")
def summaries():
    return [summarise(group) for group in group_runs(load_runs([RESULTS])[0])]


def draw(name, summaries):
    fast = [summary for summary in summaries if summary.group.label == "fast"]
    match name:
        case "figure6-fast":
            return draw_figure6([summary.group for summary in fast])
        case "error-depth-fast":
            return draw_error_against_depth(fast)
        case "error-compute":
            return draw_error_against_compute(summaries)
        case "figure7":
            return draw_figure7(read_responses(RESULTS / "responses.json"))


@pytest.mark.parametrize("name", ["figure6-fast", "error-depth-fast", "error-compute", "figure7"])
def test_the_committed_figures_show_the_committed_results(name, summaries):
    committed = np.asarray(Image.open(RESULTS / "figures" / f"{name}.png"))
    drawn = np.asarray(Image.open(io.BytesIO(encode_figure(draw(name, summaries), "png"))))
    assert np.array_equal(drawn, committed), "run `make figures`"
