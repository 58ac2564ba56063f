"""Runs from beginning to end: what they leave, and how they are computed."""

import io
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import BATCH, NUM_TRAIN, tiny_recipe
from tiny_training import (
    CPU,
    STEPS,
    InterruptAt,
    assert_same_outcome,
    config,
    newest_step,
    without_times,
)

from deepres.backends.build import why_not_fused
from deepres.backends.choose import cache_file, describe_measurement
from deepres.backends.device import native_precisions
from deepres.data.loader import build_stream
from deepres.errors import UserError
from deepres.files import write_json
from deepres.models import build_model
from deepres.models.blocks import Block
from deepres.models.cost import flop_per_image
from deepres.recipes.recipe import LowResolution
from deepres.runs.directory import RunDir, checkpoint_step
from deepres.runs.predictions import Predictions
from deepres.seeding import Stream, derive_generator
from deepres.training.checkpoint import decode_state, encode_state
from deepres.training.progress import JsonReporter
from deepres.training.train import InterruptedRun, load_sets, train
from deepres.weights.evaluate import predict_logits
from deepres.weights.file import load_weights


def test_run_directory_holds_everything(uninterrupted):
    run = RunDir(uninterrupted)
    names = {path.name for path in uninterrupted.iterdir()}
    assert names - {".lock"} == {
        "recipe.json",
        "environment.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "model.safetensors",
        "predictions.npz",
        "curve.png",
        "result.json",
    }
    result = json.loads(run.result.read_text())
    rows = run.read_metrics()
    # Epochs of 6.25 steps end at steps 7, 13, 19 and 25.
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 7), (2, 13), (3, 19), (4, 25)]
    assert set(rows[0]) == {
        "step",
        "epoch",
        "learning_rate",
        "train_loss",
        "train_error",
        "test_error",
        "seconds",
        "images_per_second",
    }
    errors = [row["test_error"] for row in rows]
    assert result["model"] == "resnet8"
    assert result["recipe"] == "tiny"
    assert result["seed"] == 0
    assert result["num_parameters"] == 75_290
    assert result["flop_per_image"] == flop_per_image(build_model("resnet8"))
    assert result["compute"] == STEPS * BATCH
    assert result["steps"] == result["total_steps"] == STEPS
    assert result["epochs"] == STEPS * BATCH / NUM_TRAIN == 4
    assert result["test_error_last"] == errors[-1]
    assert result["test_error_best"] == min(errors)
    assert rows[result["best_epoch"] - 1]["test_error"] == min(errors)
    assert result["train_error"] == rows[-1]["train_error"]
    assert result["seconds"] > 0
    assert result["images_per_second"] > 0
    assert result["device"] == "cpu"
    assert result["precision"] == "float32"
    environment = json.loads(run.environment.read_text())
    assert environment["torch"] == torch.__version__
    assert environment["device"] == "cpu"
    assert environment["earlier_starts"] == []
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    weights = load_file(run.weights)
    assert weights["mean"].shape == weights["std"].shape == (3, 1, 1)


def test_predictions_are_those_of_the_saved_weights(uninterrupted, tiny_data):
    predictions = Predictions.read(RunDir(uninterrupted).predictions)
    net = load_weights(RunDir(uninterrupted).weights)
    logits = predict_logits(net.model, torch.from_numpy(tiny_data.test.images), net.normalization)
    probability, predicted = logits.softmax(dim=1).max(dim=1)
    assert predictions.labels.tolist() == tiny_data.test.labels.tolist()
    assert predictions.predicted.tolist() == predicted.tolist()
    torch.testing.assert_close(torch.from_numpy(predictions.probability), probability)
    wrong = 100 * (predictions.predicted != predictions.labels).mean()
    assert round(float(wrong), 2) == json.loads(RunDir(uninterrupted).result.read_text())["test_error_last"]


def test_tensorboard_holds_the_same_numbers(uninterrupted):
    events = EventAccumulator(str(RunDir(uninterrupted).tensorboard))
    events.Reload()
    rows = RunDir(uninterrupted).read_metrics()
    for key in ("train_loss", "train_error", "test_error", "learning_rate"):
        scalars = events.Scalars(key)
        assert [s.step for s in scalars] == [row["step"] for row in rows]
        assert [s.value for s in scalars] == pytest.approx([row[key] for row in rows])


def test_a_finished_run_is_not_trained_again(uninterrupted, tiny_data):
    before = RunDir(uninterrupted).weights.stat().st_mtime_ns
    result = train(config(), tiny_data, uninterrupted, device=CPU)
    assert result == json.loads(RunDir(uninterrupted).result.read_text())
    assert RunDir(uninterrupted).weights.stat().st_mtime_ns == before


def test_another_seed_is_another_run(tmp_path, tiny_data, uninterrupted):
    train(config(seed=1), tiny_data, tmp_path, device=CPU)
    weights, others = load_file(RunDir(tmp_path).weights), load_file(RunDir(uninterrupted).weights)
    assert not torch.equal(weights["fc.weight"], others["fc.weight"])


@pytest.mark.parametrize("steps", [1, 6, 7, 20])
def test_max_steps_stops_early_and_a_later_call_goes_on(tmp_path, tiny_data, uninterrupted, steps):
    result = train(config(), tiny_data, tmp_path, device=CPU, max_steps=steps)
    assert (result["steps"], result["total_steps"]) == (steps, STEPS)
    assert RunDir(tmp_path).read_metrics()[-1]["step"] == steps
    train(config(), tiny_data, tmp_path, device=CPU)
    assert_same_outcome(tmp_path, uninterrupted)
    assert len(json.loads(RunDir(tmp_path).environment.read_text())["earlier_starts"]) == 1


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2", True])
def test_max_steps_that_are_none_are_an_error(tmp_path, tiny_data, steps):
    with pytest.raises(UserError, match=f"max_steps is {steps!r}: it must be a whole number of at least 1"):
        train(config(), tiny_data, tmp_path / "run", device=CPU, max_steps=steps)
    assert not (tmp_path / "run").exists()


def test_max_steps_at_an_epochs_end_whose_checkpoint_is_left(tmp_path, tiny_data, uninterrupted):
    """As older versions wrote it after an evaluation: the epoch has its row, and its sums are gone."""
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=8, checkpoint_minutes=0)
    run_dir = RunDir(tmp_path)
    newest, left = run_dir.checkpoint_paths()
    assert checkpoint_step(left) == 7
    state = decode_state(left.read_bytes(), CPU)
    state["rows"] = run_dir.read_metrics()[:1]
    state["trainer"]["totals"] = [0.0, 0, 0]
    for path in (newest, left, run_dir.result):
        path.unlink()
    run_dir.write_checkpoint(7, encode_state(state))
    result = train(config(), tiny_data, tmp_path, device=CPU, max_steps=7)
    rows, all_rows = run_dir.read_metrics(), RunDir(uninterrupted).read_metrics()
    assert [without_times(row) for row in rows] == [without_times(row) for row in all_rows[:1]]
    assert (result["steps"], result["train_error"]) == (7, rows[0]["train_error"])
    train(config(), tiny_data, tmp_path, device=CPU)
    assert_same_outcome(tmp_path, uninterrupted)


def test_evaluation_every_third_epoch_leaves_out_rows_and_changes_nothing_else(tmp_path, tiny_data, uninterrupted):
    """Interrupted at the end of an epoch that is not evaluated, too."""
    with pytest.raises(InterruptedRun):
        train(config(evaluate_every=3), tiny_data, tmp_path, device=CPU, reporter=InterruptAt(7))
    result = train(config(evaluate_every=3), tiny_data, tmp_path, device=CPU)
    rows, all_rows = RunDir(tmp_path).read_metrics(), RunDir(uninterrupted).read_metrics()
    assert list(map(without_times, rows)) == list(map(without_times, all_rows[2:]))
    assert result["test_error_best"] == min(row["test_error"] for row in rows)
    weights, others = load_file(RunDir(tmp_path).weights), load_file(RunDir(uninterrupted).weights)
    assert all(torch.equal(weights[key], others[key]) for key in others)


def test_auto_settings_follow_the_run_that_was_begun(tmp_path, tiny_data):
    train(config(precision="bfloat16"), tiny_data, tmp_path, device=CPU, max_steps=2)
    result = train(config(precision="auto"), tiny_data, tmp_path, device=CPU, max_steps=3)
    assert result["precision"] == "bfloat16"


@pytest.fixture
def measured(user_cache):
    """Puts into the user's cache which way is the fastest for ResNet-8, as if it had been measured."""

    def measure(fastest, precisions):
        net = build_model("resnet8", generator=torch.Generator().manual_seed(0))
        ways = [(backend, precision) for backend in ("fused", "eager") for precision in precisions]
        ways = [way for way in ways if way[0] == "eager" or why_not_fused(net, CPU, way[1], [32]) is None]
        key = describe_measurement(net, CPU, ways, 32)
        speeds = {" ".join(way): 2.0 if way == fastest else 1.0 for way in ways}
        cache_file(key).parent.mkdir(exist_ok=True)
        write_json(cache_file(key), {"key": key, "images_per_second": speeds})

    return measure


needs_kernels = pytest.mark.skipif(
    why_not_fused(build_model("resnet8"), CPU, "float32", [32]) is not None, reason="there are no fused kernels here"
)


@needs_kernels
def test_a_run_begun_with_a_slower_backend_keeps_it_and_says_so(tmp_path, tiny_data, measured):
    train(config(backend="eager"), tiny_data, tmp_path, device=CPU, max_steps=2)
    measured(("fused", "float32"), ["float32"])
    reporter = InterruptAt(None)
    result = train(config(), tiny_data, tmp_path, device=CPU, max_steps=3, reporter=reporter)
    assert result["backend"] == "eager"
    assert any("with the backend eager, as the run began: --backend fused is" in line for line in reporter.notices)


@needs_kernels
def test_a_resumed_run_keeps_precision_and_backend_whatever_is_faster_now(tmp_path, tiny_data, measured):
    precisions, auto = native_precisions(CPU), config(precision="auto")
    measured(("fused", "float32"), precisions)
    train(auto, tiny_data, tmp_path, device=CPU, max_steps=2)
    measured(("eager", precisions[-1]), precisions)
    result = train(auto, tiny_data, tmp_path, device=CPU, max_steps=3)
    assert (result["precision"], result["backend"]) == ("float32", "fused")


def test_a_finished_run_chooses_and_compiles_nothing(uninterrupted, tiny_data, monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr(torch.cpu, "get_capabilities", fail)  # the first question of both
    reporter = InterruptAt(None)
    result = train(config(precision="auto"), tiny_data, uninterrupted, device=CPU, reporter=reporter)
    assert result["steps"] == STEPS
    assert reporter.notices == [f"the run in {uninterrupted} is finished: nothing to do"]


def silu_forward(self, x):
    out = F.silu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    if self.shortcut is not None:
        out = out + self.shortcut(x)
    return F.silu(out)


@pytest.mark.parametrize("patched", ["forward", "function"])
@needs_kernels
def test_a_net_with_silu_is_trained_as_such(tmp_path, tiny_data, measured, monkeypatch, patched):
    """The loss of its first step is its own, whether `forward` was edited or only what it calls."""
    measured(("fused", "float32"), ["float32"])
    if patched == "forward":
        monkeypatch.setattr(Block, "forward", silu_forward)
    else:
        monkeypatch.setattr(F, "relu", F.silu)
    reporter = InterruptAt(None)
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1, reporter=reporter)
    (row,) = RunDir(tmp_path).read_metrics()
    recipe = tiny_recipe()
    sets = load_sets(tiny_data, recipe, CPU)
    model = build_model("resnet8", generator=derive_generator(0, Stream.WEIGHTS))
    images, labels = build_stream(*sets.train, recipe, seed=0).batch(0)
    assert row["train_loss"] == pytest.approx(F.cross_entropy(model(images), labels).item(), rel=1e-4)
    assert json.loads(RunDir(tmp_path).environment.read_text())["backend"] == "eager"
    assert json.loads(RunDir(tmp_path).result.read_text())["backend"] == "eager"
    assert any(line.startswith("no fused kernels (") for line in reporter.notices)
    with pytest.raises(UserError, match="the fused kernels do not work here"):
        train(config(backend="fused"), tiny_data, tmp_path / "asked", device=CPU, max_steps=1)


def test_images_of_a_size_without_kernels_are_trained_on_the_plain_way(tmp_path, tiny_data):
    recipe = replace(tiny_recipe(), normalization="channel", low_resolutions=(LowResolution(8, until=0.1),))
    reporter = InterruptAt(None)
    result = train(config(recipe=recipe), tiny_data, tmp_path / "auto", device=CPU, max_steps=3, reporter=reporter)
    assert result["steps"] == 3
    assert result["backend"] == "eager"
    asked = config(recipe=recipe, backend="fused")
    with pytest.raises(UserError, match="there are no kernels for images of 8 x 8"):
        train(asked, tiny_data, tmp_path / "asked", device=CPU, max_steps=3)


def test_the_45k_split_evaluates_val_and_test_once(tmp_path, tiny_data):
    from dataclasses import replace

    from deepres.data.splits import stratified_split

    stream = io.StringIO()
    recipe = replace(tiny_recipe(), split="45k")
    result = train(config(recipe=recipe), tiny_data, tmp_path, device=CPU, reporter=JsonReporter(stream))
    rows = RunDir(tmp_path).read_metrics()
    assert all("test_error" not in row for row in rows)
    val_errors = [row["val_error"] for row in rows]
    assert result["val_error_last"] == val_errors[-1]
    assert result["val_error_best"] == min(val_errors)
    assert 0 <= result["test_error_last"] <= 100
    assert result["test_error_best"] is None
    num_train = len(stratified_split(tiny_data.train.labels, 0.1, 0)[0])
    assert num_train < NUM_TRAIN
    assert result["total_steps"] == -(-4 * num_train // BATCH)
    (start,) = [event for event in map(json.loads, stream.getvalue().splitlines()) if event["event"] == "start"]
    assert start["total_epochs"] == recipe.total_epochs(num_train)


def test_total_epochs_are_those_of_the_images_trained_on(tmp_path, tiny_data):
    from dataclasses import replace

    recipe = replace(tiny_recipe(), split="45k", epochs=None, steps=32)  # 5.1 passes over 100 images, 5.9 over 87
    stream = io.StringIO()
    train(config(recipe=recipe), tiny_data, tmp_path, device=CPU, max_steps=1, reporter=JsonReporter(stream))
    (start,) = [event for event in map(json.loads, stream.getvalue().splitlines()) if event["event"] == "start"]
    assert start["total_epochs"] == recipe.total_epochs(num_train=87)


def test_a_diverging_run_names_its_last_good_checkpoint(tmp_path, tiny_data):
    from dataclasses import replace

    from deepres.recipes.recipe import StepDecay
    from deepres.training.trainer import DivergedError

    wild = replace(tiny_recipe(), schedule=StepDecay((8,), 1e9))
    with pytest.raises(DivergedError) as raised:
        train(config(recipe=wild), tiny_data, tmp_path, device=CPU, checkpoint_minutes=0)
    good = newest_step(tmp_path)  # whose weights may be huge, and are finite
    assert 8 <= good < 12
    assert f"; the last good checkpoint is {tmp_path / 'checkpoints'}/step-{good:08d}-" in str(raised.value)
    assert "learning rate 2e+08" in str(raised.value)


def test_a_run_works_outside_the_main_thread(tmp_path, tiny_data):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, config(), tiny_data, tmp_path, device=CPU, max_steps=1).result()
    assert result["steps"] == 1
