"""The figures of the committed results."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepres.report.figures import draw_error_against_compute, draw_error_against_depth, draw_figure6
from deepres.report.report import slug
from deepres.report.responses import draw_figure7, read_responses
from deepres.report.style import encode_figure
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.statistics import summarize

RESULTS = Path(__file__).parent.parent.parent / "results"
FIGURES = sorted((RESULTS / "figures").glob("*.png"))


@pytest.fixture(scope="module")
def summaries():
    return [summarize(group) for group in group_runs(load_runs([RESULTS])[0])]


def draw(name, summaries):
    what = next((kind for kind in ("figure6", "error-depth") if name.startswith(f"{kind}-")), "")
    label = name.removeprefix(f"{what}-")
    own = [summary for summary in summaries if slug(summary.group.label) == label]
    match what or name:
        case "figure6":
            return draw_figure6([summary.group for summary in own])
        case "error-depth":
            return draw_error_against_depth(own)
        case "error-compute":
            return draw_error_against_compute(summaries)
        case "figure7":
            return draw_figure7(read_responses(RESULTS / "responses.json"))


def test_figure_6_of_each_recipe_is_committed(summaries):
    labels = {slug(summary.group.label) for summary in summaries}
    committed = {path.stem for path in FIGURES if path.stem.startswith("figure6")}
    assert committed == {f"figure6-{label}" for label in labels}


@pytest.mark.parametrize("name", [path.stem for path in FIGURES])
def test_the_committed_figures_show_the_committed_results(name, summaries):
    committed = np.asarray(Image.open(RESULTS / "figures" / f"{name}.png"))
    drawn = np.asarray(Image.open(io.BytesIO(encode_figure(draw(name, summaries), "png"))))
    assert np.array_equal(drawn, committed), "run `make figures`"
