"""Loggers against the real packages, offline, where they are installed; what is said where they are not."""

import sqlite3
import sys
import time

import pytest

from deepres.errors import UserError
from deepres.integrations.loggers import Logger, LoggingReporter, get_loggers
from deepres.training.progress import Reporter, StepState

SETTINGS = {"model": "resnet20", "seed": 0, "recipe": {"name": "fast", "schedule": {"kind": "OneCycle"}}}
ROWS = [
    {"step": 10, "epoch": 1, "train_loss": 2.0, "test_error": 60.0, "seconds": None},
    {"step": 20, "epoch": 2, "train_loss": 1.5, "test_error": 50.0, "seconds": 3.0},
]


class Told(Reporter):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def notice(self, message):
        self.told.append(message)

    def close(self):
        self.told.append("close")

    def epoch(self, row):
        self.told.append(row["step"])

    def step(self, state):
        self.told.append("step")


def log(loggers, run_dir):
    told = Told()
    with LoggingReporter(told, loggers, run_dir, SETTINGS) as reporter:
        reporter.start(0, 20, 128, 2)
        reporter.step(StepState(1, 0, 2.0, 60.0, 16, None, None))
        for row in ROWS:
            reporter.epoch(row)
    return told.told


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def test_wandb_offline(offline):
    pytest.importorskip("wandb")
    assert log(get_loggers(["wandb"]), offline / "a-seed0") == ["step", 10, 20, "close"]
    (run,) = (offline / "wandb").glob("offline-run-*")
    file = next(run.glob("run-*.wandb"))
    deadline = time.monotonic() + 30
    while b"test_error" not in file.read_bytes():  # a process of its own writes it
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert b"recipe.schedule.kind" in file.read_bytes()


def test_mlflow_offline_goes_on_with_the_same_run(offline):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    assert log(get_loggers(["mlflow"]), offline / "a-seed0") == ["step", 10, 20, "close"]
    assert log(get_loggers(["mlflow"]), offline / "a-seed0") == ["step", 10, 20, "close"]
    (run,) = mlflow.search_runs(experiment_names=["deepres"], output_format="list")
    assert run.data.metrics["test_error"] == 50.0
    assert run.data.params["recipe.name"] == '"fast"'
    assert run.info.run_name == "a-seed0"


def test_trackio_offline(offline):
    pytest.importorskip("trackio")
    assert log(get_loggers(["trackio"]), offline / "a-seed0") == ["step", 10, 20, "close"]
    with sqlite3.connect(offline / "trackio" / "deepres.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [10, 20]


def test_one_that_fails_is_left_out_and_the_run_goes_on(tmp_path):
    class Failing(Logger):
        def log(self, numbers, step):
            assert numbers == {"epoch": 1, "train_loss": 2.0, "test_error": 60.0}
            raise OSError("no server")

    class Broken(Logger):
        def __init__(self, name, identity, settings):
            assert settings["recipe.schedule.kind"] == '"OneCycle"'
            raise RuntimeError("not logged in")

    assert log({"failing": Failing, "broken": Broken}, tmp_path) == [
        "--log broken failed (not logged in): going on without it",
        "step",
        "--log failing failed (no server): going on without it",
        10,
        20,
        "close",
    ]


def test_what_is_unknown_or_missing_is_one_line(monkeypatch):
    with pytest.raises(UserError, match="--log 'aim' is unknown: give tensorboard, wandb, mlflow, trackio"):
        get_loggers(["aim"])
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UserError, match="--log wandb needs wandb: pip install wandb"):
        get_loggers(["wandb"])
    assert get_loggers([]) == {}
