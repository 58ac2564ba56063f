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
    assert path.stat().st_size < 55_000
    read = Predictions.read(path)
    for name in ("labels", "predicted", "probability"):
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
    path.write_bytes(Predictions(*(np.array([], np.uint8) for _ in range(3))).encode())
    with pytest.raises(UserError, match="empty"):
        Predictions.read(path)
