import numpy as np
import pytest
from run_files import write_run

from deepres.errors import UserError
from deepres.report.answers import WrongImage, draw_confusion, draw_surest_errors, read_answers, surest_errors
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.predictions import Predictions

LABELS = np.array([3, 3, 5, 8, 0], np.uint8)


def predictions(predicted, probability, labels=LABELS):
    return Predictions(labels, np.array(predicted, np.uint8), np.array(probability, np.float32))


@pytest.fixture
def group(tmp_path):
    write_run(tmp_path / "a", predictions=predictions([5, 3, 3, 8, 9], [0.75, 1, 0.5, 1, 0.9375]))
    write_run(tmp_path / "b", seed=1, predictions=predictions([5, 5, 3, 8, 1], [0.25, 1, 0.75, 1, 0.8125]))
    write_run(tmp_path / "c", seed=2)  # an older one
    return group_runs(load_runs([tmp_path])[0])[0]


def test_confusion_is_the_mean_over_the_runs_that_have_predictions(group):
    answers = read_answers(group)
    assert len(answers.predictions) == 2
    expected = np.zeros((10, 10))
    expected[3, 5], expected[3, 3], expected[5, 3], expected[8, 8], expected[0, 9], expected[0, 1] = (
        1.5,
        0.5,
        1,
        1,
        0.5,
        0.5,
    )
    assert np.array_equal(answers.confusion, expected)
    texts = {text.get_position(): text.get_text() for text in draw_confusion(answers).get_axes()[0].texts}
    assert (texts[5, 3], texts[8, 8], texts[0, 0]) == ("2", "1", "·")  # (column, row)


def test_surest_errors_are_wrong_in_every_run_the_surest_first(group):
    wrong = surest_errors(read_answers(group))
    assert wrong == [WrongImage(4, 0, 9, 0.875), WrongImage(2, 5, 3, 0.625), WrongImage(0, 3, 5, 0.5)]
    assert surest_errors(read_answers(group), number=1) == wrong[:1]
    images = np.zeros((5, 3, 32, 32), np.uint8)
    images[2] = 200
    figure = draw_surest_errors(read_answers(group), wrong, images)
    drawn = [axes for axes in figure.get_axes() if axes.images]
    assert [axes.get_title() for axes in drawn] == [
        "airplane\n→ truck 87.5%",
        "dog\n→ cat 62.5%",
        "cat\n→ dog 50.0%",
    ]
    assert drawn[1].images[0].get_array().min() == 200
    assert "wrong in all 2 runs" in figure.get_suptitle()


def test_runs_without_predictions_have_no_answers(tmp_path):
    write_run(tmp_path / "a")
    assert read_answers(group_runs(load_runs([tmp_path])[0])[0]) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (predictions([5, 3], [1, 1], LABELS[:2]), "is of other test images"),
        (predictions([5, 5, 3, 8, 1], [1] * 5, LABELS[::-1].copy()), "is of other test images"),
        (predictions([10, 5, 3, 8, 1], [1] * 5), "knows more classes"),
    ],
)
def test_answers_that_do_not_fit(tmp_path, group, changed, message):
    (tmp_path / "b" / "predictions.npz").write_bytes(changed.encode())
    with pytest.raises(UserError, match=message):
        read_answers(group)
