"""Metrics against values worked out by hand and against scikit-learn, whose answers are written down here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_files import change_json, write_run

from deepres.errors import UserError
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs, read_run
from deepres.runs.metrics import BINS, Metrics, class_errors, metrics_of_logits, reliability
from deepres.runs.predictions import Predictions

FILE = Path("result.json")


def waves(num_images=200, num_classes=10):
    """Return logits and labels that need no random numbers."""
    n, c = np.arange(num_images)[:, None], np.arange(num_classes)
    logits = (3 * np.sin(1.3 * n + 2.1 * c) + np.cos(0.7 * n * c)).astype(np.float32)
    labels = np.arange(num_images) * 7 % num_classes
    logits[np.arange(num_images), labels] += 2.5
    return logits, labels


def test_by_hand():
    logits = np.log([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.25, 0.25, 0.5]]).astype(np.float32)
    made = metrics_of_logits(logits + np.float32(50), np.array([0, 0, 2]))
    assert made.class_errors == [50.0, None, 0.0]
    assert made.negative_log_likelihood == pytest.approx(-np.log(0.7 * 0.3 * 0.5) / 3, abs=1e-5)
    assert made.brier_score == pytest.approx((0.14 + 0.86 + 0.375) / 3, abs=1e-5)
    assert made.calibration_error == pytest.approx(100 * (0.3 + 0.6 + 0.5) / 3, abs=1e-3)  # a bin each
    assert made.top5_error is None  # of three classes


def test_as_scikit_learn_has_it():
    logits, labels = waves()
    made = metrics_of_logits(logits, labels)
    # scikit-learn 1.9: log_loss, brier_score_loss(scale_by_half=False), 1 - top_k_accuracy_score(k=5), of the softmax
    assert made.negative_log_likelihood == pytest.approx(2.1979114, abs=1e-5)
    assert made.brier_score == pytest.approx(0.7688852, abs=1e-5)
    assert made.top5_error == pytest.approx(21)


def test_calibration_error_by_its_definition():
    logits, labels = waves()
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    confidence, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    expected = 0.0
    for low in range(BINS):
        inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        if inside.any():
            expected += abs(confidence[inside].mean() - right[inside].mean()) * inside.mean()
    assert metrics_of_logits(logits, labels).calibration_error == pytest.approx(100 * expected, abs=1e-3)


def test_bins_hold_their_upper_end():
    made = reliability(np.array([1, 1, 1 / 15, 0.0667, 0]), np.array([True, False, True, True, False]))
    assert made.images.tolist() == [2, 1, *[0] * 12, 2]
    assert made.right[-1] == 0.5
    assert np.isnan(made.probability[5])
    assert made.error == pytest.approx(100 * (2 * 0.5 + 2 * abs(1 / 30 - 0.5) + (1 - 0.0667)) / 5)


def test_class_errors_know_the_last_of_256_classes():
    labels = np.array([255, 255, 0], np.uint8)
    found = class_errors(labels, np.array([255, 254, 0], np.uint8), 256)
    assert (found[255], found[0], found[254]) == (50.0, 0.0, None)


def test_logits_that_are_no_numbers_leave_a_result_that_can_be_read():
    made = metrics_of_logits(np.full((4, 10), np.nan, np.float32), np.arange(4))
    assert (made.negative_log_likelihood, made.brier_score) == (None, None)
    assert "NaN" not in json.dumps(made.to_json())


def test_result_json_holds_them_and_older_ones_read_as_none(tmp_path):
    run = RunDir(write_run(tmp_path / "a"))
    assert read_run(run.path).result.test_metrics is None
    assert "test_metrics" not in read_run(run.path).result.to_json()
    made = metrics_of_logits(*waves())
    result = replace(read_run(run.path).result, test_metrics=made)
    run.result.write_text(json.dumps(result.to_json()))
    assert read_run(run.path).result == result


@pytest.mark.parametrize(
    "damage",
    [
        [],
        {"class_errors": None},
        {"class_errors": ["x"]},
        {"calibration_error": None},
        {"brier_score": "0.1"},
    ],
)
def test_damaged_metrics_are_one_line(tmp_path, damage):
    run = RunDir(write_run(tmp_path / "a"))
    content = metrics_of_logits(*waves()).to_json()
    change_json(run.result, test_metrics=content | damage if isinstance(damage, dict) else damage)
    with pytest.raises(UserError, match=r"result.json is damaged"):
        read_run(run.path)


def test_metrics_without_logits_read_as_none():
    content = {"class_errors": [1.0, None], "calibration_error": 2.0}
    assert Metrics.from_json(content, FILE) == Metrics([1.0, None], 2.0)
    assert Metrics([1.0, None], 2.0).to_json() == content


def test_a_committed_run_has_the_calibration_that_was_found_before():
    """ResNet-20's by `paper` in float32 is 4.97 points."""
    (run,), _ = load_runs([Path(__file__).parents[2] / "results" / "runs" / "resnet20-paper-seed0"])
    made = Predictions.read(run.predictions)
    assert round(reliability(made.probability, made.predicted == made.labels).error, 2) == 4.97
