from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepres.errors import UserError
from deepres.runs.predictions import Predictions


@pytest.fixture
def predictions():
    logits = np.array([[0, np.log(3)], [2, 2 - np.log(4)], [-1000, 1000]], np.float32)
    return Predictions.of_logits(logits, np.array([1, 1, 0]))


def test_softmax_by_hand(predictions):
    assert predictions.predicted.tolist() == [1, 0, 1]
    assert predictions.probability == pytest.approx([3 / 4, 4 / 5, 1])
    assert predictions.confusion(2).tolist() == [[0, 1], [1, 1]]
    assert predictions.confusion(3).sum() == 3


def test_round_trip_and_size(tmp_path):
    rng = np.random.default_rng(0)
    made = Predictions.of_logits(rng.normal(size=(10_000, 10)).astype(np.float32), rng.integers(0, 10, 10_000))
    path = tmp_path / "predictions.npz"
    path.write_bytes(made.encode())
    assert path.stat().st_size < 250_000
    read = Predictions.read(path)
    for name in ("labels", "predicted", "probability", "logits"):
        assert np.array_equal(getattr(read, name), getattr(made, name))
        assert getattr(read, name).dtype == getattr(made, name).dtype


def test_damaged_files_are_one_line(tmp_path, predictions):
    path = tmp_path / "predictions.npz"
    with pytest.raises(UserError, match="no file"):
        Predictions.read(path)
    content = predictions.encode()
    for damaged in (b"", b"nonsense", content[:-30], content.replace(b"predicted.npy", b"predicter.npy")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is damaged"):
            Predictions.read(path)
    path.write_bytes(Predictions(predictions.labels, predictions.predicted[:2], predictions.probability).encode())
    with pytest.raises(UserError, match="different lengths"):
        Predictions.read(path)
    path.write_bytes(replace(predictions, logits=predictions.logits[:2]).encode())
    with pytest.raises(UserError, match="different lengths"):
        Predictions.read(path)
    path.write_bytes(replace(predictions, logits=predictions.logits[:, :1]).encode())
    with pytest.raises(UserError, match=r"logits of shape \(3, 1\)"):
        Predictions.read(path)
    path.write_bytes(Predictions(*(np.array([], np.uint8) for _ in range(3))).encode())
    with pytest.raises(UserError, match="empty"):
        Predictions.read(path)


def test_logits_are_rounded_and_never_infinite(predictions):
    assert predictions.logits.dtype == np.float16
    assert predictions.logits[0, 1] == np.float16(np.log(3))
    made = Predictions.of_logits(np.array([[1e6, -1e6]], np.float32), np.array([0]))
    assert made.logits.tolist() == [[65504, -65504]]


@pytest.mark.parametrize("num_classes", [256, 257, 1000])
def test_the_last_of_many_classes_holds(tmp_path, num_classes):
    logits = np.eye(num_classes, dtype=np.float32)[[num_classes - 1, 0]]
    made = Predictions.of_logits(logits, np.array([num_classes - 1, 1]))
    (tmp_path / "predictions.npz").write_bytes(made.encode())
    read = Predictions.read(tmp_path / "predictions.npz")
    assert read.labels.tolist() == [num_classes - 1, 1]
    assert read.predicted.tolist() == [num_classes - 1, 0]
    assert read.confusion(num_classes)[-1, -1] == read.confusion(num_classes)[1, 0] == 1
    assert read.labels.dtype == (np.uint8 if num_classes == 256 else np.uint16)


def test_files_of_versions_that_kept_no_logits_are_read():
    committed = Path(__file__).parents[2] / "results" / "runs"
    for net in ("plain20", "resnet20"):
        assert Predictions.read(committed / f"{net}-paper-seed0" / "predictions.npz").logits is None
