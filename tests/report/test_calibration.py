from dataclasses import replace

import numpy as np
import pytest
from run_files import change_json, write_run

from deepres.report.answers import read_answers
from deepres.report.calibration import class_cells, draw_reliability, metrics_cells, metrics_of, pooled, read_metrics
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.metrics import metrics_of_logits, reliability
from deepres.runs.predictions import Predictions


def logits_and_labels(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(400) % 10
    logits = rng.normal(size=(400, 10)).astype(np.float32)
    logits[np.arange(400), labels] += 3
    return logits, labels


@pytest.fixture
def answers(tmp_path):
    """Answers of two runs: the first one is of an older version, without logits and without metrics."""
    for seed in (0, 1):
        logits, labels = logits_and_labels(seed)
        made = Predictions.of_logits(logits, labels)
        run = write_run(tmp_path / str(seed), seed=seed, predictions=made if seed else replace(made, logits=None))
        if seed:
            change_json(RunDir(run).result, test_metrics=metrics_of_logits(logits, labels).to_json())
    return read_answers(group_runs(load_runs([tmp_path])[0])[0])


def test_metrics_are_those_recorded_or_what_the_answers_give(answers):
    older, newer = read_metrics(answers)
    assert newer == metrics_of_logits(*logits_and_labels(1))
    whole = metrics_of_logits(*logits_and_labels(0))
    assert older.class_errors == whole.class_errors
    assert older.calibration_error == pytest.approx(whole.calibration_error, abs=1e-3)
    assert (older.top5_error, older.brier_score) == (None, None)
    rounded = metrics_of(answers.predictions[1])  # from logits in float16
    assert rounded.negative_log_likelihood == pytest.approx(newer.negative_log_likelihood, abs=1e-3)


def test_rows_are_empty_where_one_run_lacks_the_number(answers):
    row = metrics_cells(answers)
    assert row[:4] == ["paper", "resnet20", "2", "9.00 ± 0.00"]
    assert row[4:7] == ["", "", ""]
    errors = [each.calibration_error for each in read_metrics(answers)]
    assert row[7] == f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"
    classes = np.array([each.class_errors for each in read_metrics(answers)]).mean(axis=0)
    assert class_cells(answers)[2:] == [f"{error:.2f}" for error in classes]


def test_the_diagram_shows_all_runs_together(answers):
    together = [np.concatenate([getattr(p, name) for p in answers.predictions]) for name in ("probability", "labels")]
    predicted = np.concatenate([p.predicted for p in answers.predictions])
    expected = reliability(together[0], predicted == together[1])
    bins = pooled(answers)
    for name in ("images", "probability", "right"):
        assert np.allclose(getattr(bins, name), getattr(expected, name), equal_nan=True)
    (axes,) = draw_reliability([answers]).get_axes()
    shown = expected.images >= 20
    assert np.allclose(axes.lines[1].get_ydata(), expected.right[shown])
    assert axes.lines[1].get_label().startswith("ResNet-20: ")
