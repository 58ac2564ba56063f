"""What `deepres.notebook` shows, without a notebook."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_run import first_images, tiny_recipe

import deepres
from deepres import notebook
from deepres.report.lines import draw_lines
from deepres.training.progress import StepState


class Handle:
    """Stands for IPython's, which replaces what is displayed."""

    def __init__(self, shown):
        self.shown = shown

    def update(self, thing):
        self.shown[-1] = thing


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, in order; what was updated, as it is last."""
    things = []

    def display(thing, display_id=False):
        things.append(thing)
        return Handle(things) if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    return things


def picture_of(thing):
    return Image.open(io.BytesIO(thing.data))


def state(step, images, error, epoch=0):
    return StepState(step, epoch, 2.0, error, images, None, None)


def test_a_figure_is_shown_at_its_width_in_few_colors_or_all(shown):
    figure = draw_lines({"plain20": ([1, 2], [3.0, 4.0])}, x="", y="")
    notebook.show(figure, width=400)
    notebook.show(figure, width=400, all_colors=True)
    small, full = shown
    assert small.width == full.width == 400
    assert picture_of(small).size == picture_of(full).size
    assert picture_of(small).width == pytest.approx(1.5 * 400, abs=4)
    assert picture_of(small).mode == "P"
    assert len(small.data) < len(full.data)


def test_points_are_means_over_the_steps_since_the_point_before(shown):
    plot = notebook.LivePlot(seconds=1e9)
    reporter = plot.reporter("resnet20")
    reporter.start(step=0, target=120, batch_size=10, total_epochs=2)  # 60 points: two steps each
    # Errors of the steps: 9, 7, 5 and 3 of 10 images; then an epoch begins anew, with 1 and 3 of 10.
    for step, wrong in enumerate([9, 16, 21, 24], start=1):
        reporter.step(state(step, 10 * step, 100 * wrong / (10 * step)))
    reporter.step(state(5, 10, 10.0, epoch=1))
    reporter.step(state(6, 20, 20.0, epoch=1))
    reporter.step(state(7, 30, 100 * 9 / 30, epoch=1))
    steps, errors = plot.lines["resnet20"]
    assert list(steps) == [2, 4, 6]
    assert list(errors) == pytest.approx([80.0, 40.0, 20.0])
    reporter.evaluating()  # the step that is left: 5 of 10
    assert list(plot.lines["resnet20"][0]) == [2, 4, 6, 7]
    assert plot.lines["resnet20"][1][-1] == pytest.approx(50.0)


def test_a_gpu_that_tells_errors_late_is_waited_for(shown):
    plot = notebook.LivePlot(seconds=1e9)
    reporter = plot.reporter("resnet20")
    reporter.start(step=0, target=60, batch_size=10, total_epochs=1)
    reporter.step(state(1, 0, float("nan")))
    reporter.step(state(2, 0, float("nan")))
    assert plot.lines == {}
    reporter.step(state(3, 20, 75.0))
    reporter.step(state(4, 20, 75.0))  # nothing new
    assert plot.lines == {"resnet20": ([3], [75.0])}


def test_the_picture_is_replaced_and_other_lines_stay(shown):
    plot = notebook.LivePlot({"plain20": ((1, 2), (90.0, 80.0))}, seconds=0.0)
    plot.add("resnet20", 1, 70.0)
    first = shown[0]
    plot.draw()
    assert len(shown) == 1
    assert shown[0] is not first
    assert plot.lines == {"plain20": ((1, 2), (90.0, 80.0)), "resnet20": ([1], [70.0])}


def test_a_training_becomes_a_line(shown, cifar10_dir, tmp_path, capsys):
    plot = notebook.LivePlot()
    data = first_images(cifar10_dir)
    result = deepres.train("resnet8", tiny_recipe(), data, run_dir=tmp_path / "run", reporter=plot.reporter("resnet8"))
    steps, errors = plot.lines["resnet8"]
    assert list(steps) == list(range(1, result["steps"] + 1))
    (run,), _ = deepres.load_runs([tmp_path])
    begin = run.rows[-2]["step"]
    last_epoch = [error for step, error in zip(steps, errors, strict=True) if step > begin]
    assert np.mean(last_epoch) == pytest.approx(result["train_error"])
    assert len(shown) == 1
    again = plot.reporter("resnet8")
    deepres.train("resnet8", tiny_recipe(), data, run_dir=tmp_path / "run", reporter=again)
    assert "resnet8: the run in" in capsys.readouterr().out


def test_an_image_is_explained_from_pixels_or_from_a_file(shown, few, tmp_path):
    model = deepres.load_pretrained("resnet20")
    Image.fromarray(few.images[0].transpose(1, 2, 0)).save(tmp_path / "photo.png")
    notebook.show_explanation(model, few.images[0])
    notebook.show_explanation(model, tmp_path / "photo.png")
    assert [thing.width for thing in shown] == [760, 760]
    with pytest.raises(deepres.UserError, match="cannot be read"):
        notebook.show_explanation(model, "missing.png")


def test_steps_take_time_in_proportion_to_their_operations():
    seconds = notebook.seconds_per_step(["resnet14", "resnet8", "resnet20"], seconds=0.01)
    assert list(seconds) == ["resnet14", "resnet8", "resnet20"]
    assert 0 < seconds["resnet8"] < seconds["resnet14"] < seconds["resnet20"]
    # Each six layers more are as many operations more.
    more = seconds["resnet20"] - seconds["resnet14"]
    assert more == pytest.approx(seconds["resnet14"] - seconds["resnet8"], rel=0.05)


def double(number):
    twice = 2 * number  # a comment
    return twice  # noqa: RET504


def test_the_source_is_shown_without_marks_of_linters(shown):
    notebook.show_source(double)
    source = "def double(number):\n    twice = 2 * number  # a comment\n    return twice\n"
    assert shown[0].data == f"```python\n{source}```"
