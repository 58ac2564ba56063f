"""Runs as users see them: real processes, really killed."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import BATCH, NUM_TRAIN, first_images, run_tiny, tiny_command, tiny_recipe

from deepres.backends.choose import Choice
from deepres.backends.device import has_native_bfloat16
from deepres.data import cifar10
from deepres.data.cifar10 import load_cifar10
from deepres.data.loader import build_stream
from deepres.errors import UserError
from deepres.models import build_model
from deepres.models.blocks import Block
from deepres.models.cost import flop_per_image
from deepres.recipes import recipe as recipes
from deepres.recipes.recipe import LowResolution
from deepres.runs.directory import RunDir, checkpoint_step
from deepres.runs.predictions import Predictions
from deepres.seeding import Stream, derive_generator
from deepres.training.checkpoint import load_weights
from deepres.training.progress import JsonReporter
from deepres.training.train import InterruptedRun, RunConfig, load_sets, train
from deepres.weights.evaluate import predict_logits

CPU = torch.device("cpu")
TIMES = ("seconds", "images_per_second")
STEPS = 25


@pytest.fixture(scope="module")
def tiny_data(cifar10_dir):
    return first_images(load_cifar10(cifar10_dir))


def config(seed=0, **changes):
    return RunConfig(**{"model": "resnet20", "recipe": tiny_recipe(), "seed": seed, "precision": "float32", **changes})


def without_times(row):
    return {key: value for key, value in row.items() if key not in TIMES}


def assert_same_outcome(one, other):
    """Weights and metrics bit for bit, times apart."""
    one, other = RunDir(one), RunDir(other)
    weights, others = load_file(one.weights), load_file(other.weights)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    rows, other_rows = one.read_metrics(), other.read_metrics()
    assert list(map(without_times, rows)) == list(map(without_times, other_rows))
    results = [without_times(json.loads(d.result.read_text())) for d in (one, other)]
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_data):
    path = tmp_path_factory.mktemp("uninterrupted")
    train(config(), tiny_data, path, device=CPU)
    return path


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
    assert result["model"] == "resnet20"
    assert result["recipe"] == "tiny"
    assert result["seed"] == 0
    assert result["num_parameters"] == 269_722
    assert result["flop_per_image"] == flop_per_image(build_model("resnet20"))
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


def test_max_steps_at_an_epochs_end_whose_checkpoint_is_left(tmp_path, tiny_data, uninterrupted):
    """As after a kill in the next epoch: the epoch has its row, and its sums are gone."""
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=8, checkpoint_minutes=60)
    run_dir = RunDir(tmp_path)
    newest, left = run_dir.checkpoint_paths()
    assert checkpoint_step(left) == 7
    newest.unlink()
    run_dir.result.unlink()
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


TRAIN = ("train", "resnet20", "--recipe", "tiny", "--checkpoint-minutes", "0", "--device", "cpu")


NATIVE_BFLOAT16 = pytest.mark.skipif(
    not has_native_bfloat16(CPU), reason="bfloat16 without its instructions is slow; test_loop.py resumes in it"
)


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=NATIVE_BFLOAT16)])
def precision_and_reference(request, tmp_path_factory, cifar10_dir):
    path = tmp_path_factory.mktemp(request.param)
    run_tiny(*TRAIN, "--precision", request.param, "--run-dir", path, data_dir=cifar10_dir)
    return request.param, path


@pytest.mark.parametrize("kill_after_step", [1, 6, 7, 18])
def test_killed_runs_end_bit_identical(tmp_path, cifar10_dir, precision_and_reference, kill_after_step):
    precision, reference = precision_and_reference
    arguments = (*TRAIN, "--precision", precision, "--run-dir", tmp_path)
    kill_when(arguments, cifar10_dir, lambda: newest_step(tmp_path) >= kill_after_step)
    assert not RunDir(tmp_path).result.exists()
    done = run_tiny(*arguments, data_dir=cifar10_dir)
    assert "resuming" in done.stderr
    assert_same_outcome(tmp_path, reference)


def test_killed_again_and_again(tmp_path, cifar10_dir, precision_and_reference):
    """Killed at moments that the clock chooses, whatever is going on then."""
    precision, reference = precision_and_reference
    arguments = (*TRAIN, "--precision", precision, "--run-dir", tmp_path)
    step = 0
    for _ in range(4):
        started = time.monotonic()

        def some_steps_later(step=step, started=started):
            return newest_step(tmp_path) > step + 2 and time.monotonic() - started > 0.3

        kill_when(arguments, cifar10_dir, some_steps_later)
        if RunDir(tmp_path).result.exists():
            break
        step = newest_step(tmp_path)
    run_tiny(*arguments, data_dir=cifar10_dir)
    assert_same_outcome(tmp_path, reference)


def newest_step(path):
    return max((int(p.name.split("-")[1]) for p in path.glob("checkpoints/step-*.pt")), default=-1)


def kill_when(arguments, data_dir, condition, number=signal.SIGKILL):
    """Start the run, send it a signal once the condition holds, and return what it said."""
    environment = {**os.environ, "DEEPRES_DATA": str(data_dir)}
    with subprocess.Popen(tiny_command(*arguments), stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 120
        while not condition() and process.poll() is None:
            assert time.monotonic() < deadline, "the run does not get on"
            time.sleep(0.002)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_prints_the_resume_command(tmp_path, cifar10_dir, uninterrupted, number):
    arguments = ("train", "resnet20", "--recipe", "tiny", "--precision", "float32", "--run-dir", tmp_path)
    code, stderr = kill_when(arguments, cifar10_dir, lambda: newest_step(tmp_path) >= 7, number)
    assert code == 128 + number
    last = stderr.strip().splitlines()[-1]
    assert f"stopped by {number.name} after step" in last
    assert f"train resnet20 --recipe tiny --precision float32 --run-dir {tmp_path}" in last.split("resume with: ")[1]
    assert "Traceback" not in stderr
    step = newest_step(tmp_path)
    assert f"after step {step}, state saved" in last
    done = run_tiny(*arguments, data_dir=cifar10_dir)
    assert f"after step {step}" in done.stderr
    assert_same_outcome(tmp_path, uninterrupted)


def interrupted_copy(path, data):
    """Stop a run after step 20, in the fourth epoch; its checkpoints are those of steps 19 and 20."""
    with pytest.raises(InterruptedRun):
        train(config(), data, path, device=CPU, reporter=InterruptAt(20))
    assert not RunDir(path).result.exists()
    return sorted(RunDir(path).checkpoints.iterdir())


class InterruptAt:
    """A reporter that sends SIGINT to its own process after a step."""

    def __init__(self, at):
        self.at = at
        self.notices = []

    def step(self, state):
        if state.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)

    def notice(self, message):
        self.notices.append(message)

    def __getattr__(self, name):
        return lambda *_: None


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, tiny_data, uninterrupted, damage):
    *_, before, latest = interrupted_copy(tmp_path, tiny_data)
    content = bytearray(latest.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "altered":
        content[len(content) // 2] ^= 1
    else:
        content = b""
    latest.write_bytes(content)
    reporter = InterruptAt(None)
    train(config(), tiny_data, tmp_path, device=CPU, reporter=reporter)
    assert f"checkpoint {latest} is damaged: using the one before it" in reporter.notices
    assert f"resuming {tmp_path} after step 19" in reporter.notices
    assert before.name.startswith("step-00000019")
    assert_same_outcome(tmp_path, uninterrupted)


def test_damaged_checkpoints_alone_are_an_error(tmp_path, tiny_data):
    for path in interrupted_copy(tmp_path, tiny_data):
        path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: delete .* to train from the start"):
        train(config(), tiny_data, tmp_path, device=CPU)


def test_a_second_process_is_refused(tmp_path, tiny_data, run, monkeypatch):
    monkeypatch.setattr(cifar10, "load_cifar10", lambda data_dir: tiny_data)
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(UserError, match=r"is in use by another process"):
            train(config(), tiny_data, tmp_path, device=CPU)
        code, _, stderr = run("train", "resnet20", "--run-dir", tmp_path)
    assert code == 2
    assert stderr.splitlines()[-1].endswith("wait for it, or give another --run-dir")
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", "checkpoints"}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 7}, "seed was 0, is 7"),
        ({"model": "plain20"}, "model was resnet20, is plain20"),
        ({"option": "B"}, "option was A, is B"),
        ({"precision": "bfloat16"}, "precision was float32, is bfloat16"),
    ],
)
def test_changing_a_started_run_is_refused(uninterrupted, tiny_data, changes, difference):
    before = RunDir(uninterrupted).recipe.read_bytes()
    with pytest.raises(UserError, match=difference):
        train(config(**changes), tiny_data, uninterrupted, device=CPU)
    assert RunDir(uninterrupted).recipe.read_bytes() == before


def test_changing_the_recipe_is_refused_with_every_difference(uninterrupted, tiny_data):
    from dataclasses import replace

    from deepres.recipes.recipe import StepDecay

    changed = replace(tiny_recipe(), momentum=0.8, schedule=StepDecay((3,), 0.1))
    with pytest.raises(UserError, match="was begun with another configuration") as raised:
        train(config(recipe=changed), tiny_data, uninterrupted, device=CPU)
    assert "recipe.momentum was 0.9, is 0.8" in str(raised.value)
    assert "recipe.schedule.milestones was None, is [3]" in str(raised.value)


def test_auto_settings_follow_the_run_that_was_begun(tmp_path, tiny_data):
    train(config(precision="bfloat16"), tiny_data, tmp_path, device=CPU, max_steps=2)
    result = train(config(precision="auto"), tiny_data, tmp_path, device=CPU, max_steps=3)
    assert result["precision"] == "bfloat16"


def test_a_run_begun_with_a_slower_backend_keeps_it_and_says_so(tmp_path, tiny_data, monkeypatch):
    train(config(backend="eager"), tiny_data, tmp_path, device=CPU, max_steps=2)
    choice = Choice("float32", "compiled", {})
    monkeypatch.setattr("deepres.training.train.choose", lambda *arguments, **settings: choice)
    reporter = InterruptAt(None)
    result = train(config(), tiny_data, tmp_path, device=CPU, max_steps=3, reporter=reporter)
    assert result["backend"] == "eager"
    assert any("with the backend eager, as the run began: --backend compiled is" in line for line in reporter.notices)


def test_a_resumed_run_keeps_precision_and_backend_whatever_is_faster_now(tmp_path, tiny_data, monkeypatch):
    fastest = Choice("float32", "fused", {"fused float32": 2.0, "fused bfloat16": 1.0})
    monkeypatch.setattr("deepres.training.train.choose", lambda *arguments, **settings: fastest)
    auto = config(precision="auto")
    train(auto, tiny_data, tmp_path, device=CPU, max_steps=2)
    fastest = Choice("bfloat16", "eager", {"fused float32": 1.0, "eager bfloat16": 2.0})
    result = train(auto, tiny_data, tmp_path, device=CPU, max_steps=3)
    assert (result["precision"], result["backend"]) == ("float32", "fused")


def test_a_finished_run_chooses_and_compiles_nothing(uninterrupted, tiny_data, monkeypatch):
    def fail(*arguments, **settings):
        raise AssertionError("nothing is to be computed")

    monkeypatch.setattr("deepres.training.train.choose", fail)
    monkeypatch.setattr("deepres.backends.torch_backend.load_kernels", fail)
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
def test_a_net_with_silu_is_trained_as_such(tmp_path, tiny_data, monkeypatch, patched):
    """The loss of its first step is its own, whether `forward` was edited or only what it calls."""
    if patched == "forward":
        monkeypatch.setattr(Block, "forward", silu_forward)
    else:
        monkeypatch.setattr("deepres.models.blocks.F", SimpleNamespace(relu=F.silu, pad=F.pad))
    monkeypatch.setattr(
        "deepres.backends.choose.measured_speeds", lambda model, device, ways, size: {" ".join(ways[0]): 1.0}
    )
    reporter = InterruptAt(None)
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1, reporter=reporter)
    (row,) = RunDir(tmp_path).read_metrics()
    recipe = tiny_recipe()
    sets = load_sets(tiny_data, recipe, CPU)
    model = build_model("resnet20", generator=derive_generator(0, Stream.WEIGHTS))
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
    with pytest.raises(DivergedError, match=r"the last good checkpoint is .*step-00000007-") as raised:
        train(config(recipe=wild), tiny_data, tmp_path, device=CPU)
    assert newest_step(tmp_path) == 7
    assert "learning rate 2e+08" in str(raised.value)


def test_a_run_works_outside_the_main_thread(tmp_path, tiny_data):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, config(), tiny_data, tmp_path, device=CPU, max_steps=1).result()
    assert result["steps"] == 1


WORKERS = ("train", "resnet20", "--recipe", "tiny", "--precision", "float32", "--device", "cpu", "--workers", "2")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, cifar10_dir):
    path = tmp_path_factory.mktemp("two_workers")
    done = run_tiny(*WORKERS, "--run-dir", path, data_dir=cifar10_dir)
    return path, done


def test_two_workers_finish_one_run(two_workers, uninterrupted):
    path, done = two_workers
    result = json.loads(RunDir(path).result.read_text())
    assert result["workers"] == 2
    assert result["steps"] == STEPS
    assert done.stdout.count("run directory") == 1
    assert done.stderr.count("epoch ") == 4
    # Not the same as one process: batch statistics are those of 8 images, not of 16; but close at first.
    first, alone = (RunDir(p).read_metrics()[0]["train_loss"] for p in (path, uninterrupted))
    assert first != alone
    assert first == pytest.approx(alone, rel=0.3)


@pytest.mark.parametrize("shares", [[8, 8], [5, 5, 6]])
def test_workers_take_the_step_that_their_shares_add_up_to(tmp_path, tiny_data, cifar10_dir, shares):
    """The first step by hand: the whole mini-batch's mean gradient, and the mean of the running statistics."""
    from deepres.models import build_model
    from deepres.seeding import Stream, derive_generator
    from deepres.training.group import Group
    from deepres.training.schedule import learning_rate
    from deepres.training.train import build_trainer, load_sets

    trainer = build_trainer(
        config(backend="eager"), load_sets(tiny_data, tiny_recipe(), CPU), STEPS, CPU, Group(), notice=print
    )
    models = [build_model("resnet20", generator=derive_generator(0, Stream.WEIGHTS)) for _ in shares]
    losses = []
    for rank, model in enumerate(models):
        images, labels = trainer.stream.batch(0, Group(rank, len(shares)).share(BATCH))
        assert len(labels) == shares[rank]
        images = images.contiguous(memory_format=torch.channels_last)  # as the eager backend has them: same rounding
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        losses.append(loss.item())
    weights_of_shares = [share / BATCH for share in shares]
    for p, *parts in zip(trainer.model.parameters(), *(model.parameters() for model in models), strict=True):
        gradient = sum(part.grad * weight for part, weight in zip(parts, weights_of_shares, strict=True))
        p.grad = torch.empty_like(p).copy_(gradient)  # in the memory format of p
    (optimizer,) = trainer.optimizers
    for group in optimizer.groups:
        group.lr = learning_rate(tiny_recipe(), 0, STEPS)
    optimizer.step()

    workers = (*WORKERS[:-1], len(shares), "--backend", "eager", "--run-dir", tmp_path)
    run_tiny(*workers, "--max-steps", 1, data_dir=cifar10_dir)
    weights = load_file(RunDir(tmp_path).weights)
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(weights[name], p.detach(), rtol=1e-4, atol=1e-5)
    for name, buffer in models[0].named_buffers():
        if buffer.is_floating_point():
            mean = sum(model.get_buffer(name) for model in models) / len(models)
            torch.testing.assert_close(weights[name], mean, rtol=1e-4, atol=1e-5)
    expected = sum(loss * weight for loss, weight in zip(losses, weights_of_shares, strict=True))
    assert RunDir(tmp_path).read_metrics()[0]["train_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_run_and_it_goes_on_exactly(tmp_path, cifar10_dir, two_workers, victim):
    arguments = (*WORKERS, "--run-dir", tmp_path, "--checkpoint-minutes", "0")
    environment = {**os.environ, "DEEPRES_DATA": str(cifar10_dir)}
    with subprocess.Popen(tiny_command(*arguments), stderr=subprocess.PIPE, text=True, env=environment) as launcher:
        deadline = time.monotonic() + 120
        while newest_step(tmp_path) < 8:
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(worker_pid(launcher.pid, victim), signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert "Traceback" not in stderr
    assert f"deepres: error: worker {victim} was killed by SIGKILL: run the same command to go on" in stderr
    run_tiny(*arguments, data_dir=cifar10_dir)
    assert_same_outcome(tmp_path, two_workers[0])


def worker_pid(launcher, rank):
    """Return the process that the launcher gave this rank."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text()
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if int(status.rsplit(")", 1)[1].split()[1]) == launcher and b"RANK=%d" % rank in environment:
                return int(entry.name)
    raise AssertionError(f"no worker {rank}")


def test_sigterm_stops_all_workers_at_the_same_step(tmp_path, cifar10_dir, two_workers):
    arguments = (*WORKERS, "--run-dir", tmp_path)
    code, stderr = kill_when(arguments, cifar10_dir, lambda: newest_step(tmp_path) >= 7, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert stderr.count("stopped by SIGTERM") == 1
    assert "train resnet20 --recipe tiny" in stderr.split("resume with: ")[1]
    run_tiny(*arguments, data_dir=cifar10_dir)
    assert_same_outcome(tmp_path, two_workers[0])


def test_torchrun_launches_the_same_run(tmp_path, cifar10_dir, two_workers):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    without_workers = tiny_command(*WORKERS[:-2], "--run-dir", tmp_path)[1:]
    environment = {**os.environ, "DEEPRES_DATA": str(cifar10_dir)}
    done = subprocess.run([*torchrun, *without_workers], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_outcome(tmp_path, two_workers[0])


def test_workers_that_cannot_be_are_refused(two_workers, tiny_data, cifar10_dir, tmp_path):
    with pytest.raises(UserError, match="workers was 2, is 1"):
        train(config(), tiny_data, two_workers[0], device=CPU)

    def refused(message, *arguments, **environment):
        done = subprocess.run(
            tiny_command(*WORKERS[:-2], "--run-dir", tmp_path / "no", *arguments),
            capture_output=True,
            text=True,
            env={**os.environ, "DEEPRES_DATA": str(cifar10_dir), **environment},
            check=False,
        )
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "no").exists()

    refused("--workers 2 contradicts WORLD_SIZE 3", "--workers", "2", WORLD_SIZE="3", RANK="0")
    refused("17 workers are too many: a mini-batch has 16 images", "--workers", "17")
    refused("WORLD_SIZE is 'abc'", WORLD_SIZE="abc")
    refused("the workers do not find one another", WORLD_SIZE="2")


KILLED_AT = ("recipe.json", "environment.json", "metrics.jsonl", "model.safetensors", "curve.png", "result.json")


@pytest.mark.parametrize("name", KILLED_AT)
def test_killed_while_a_file_is_written(tmp_path, cifar10_dir, tiny_data, uninterrupted, name):
    arguments = (*TRAIN, "--precision", "float32", "--run-dir", tmp_path)
    environment = {**os.environ, "DEEPRES_DATA": str(cifar10_dir), "KILL_BEFORE": name}
    killed = subprocess.run(tiny_command(*arguments), capture_output=True, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not RunDir(tmp_path).result.exists()
    train(config(), tiny_data, tmp_path, device=CPU, checkpoint_minutes=0)
    assert_same_outcome(tmp_path, uninterrupted)


def finished_copy(tmp_path, uninterrupted):
    """Return the run directory of a finished run."""
    return RunDir(shutil.copytree(uninterrupted, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.json", '{"a": 1}', "recipe.json is damaged (no 'precision')"),
        ("recipe.json", "[]", "recipe.json is damaged"),
        ("result.json", "{}", "result.json is damaged (no 'model')"),
        ("result.json", '{"steps": 25}', "result.json is damaged (no 'model')"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, tiny_data, uninterrupted, monkeypatch, run, name, content, message):
    monkeypatch.setattr(cifar10, "load_cifar10", lambda data_dir: tiny_data)
    monkeypatch.setattr(recipes, "RECIPES", {**recipes.RECIPES, "tiny": tiny_recipe})
    copy = finished_copy(tmp_path, uninterrupted)
    (copy.path / name).write_text(content)
    arguments = ("train", "resnet20", "--recipe", "tiny", "--precision", "float32", "--run-dir", copy)
    code, _, stderr = run(*arguments)
    assert code == 2
    assert message in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("content", ["{}", "{", None])
def test_a_damaged_environment_stops_nothing(tmp_path, tiny_data, content):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=2)
    if content is None:
        RunDir(tmp_path).environment.unlink()
    else:
        RunDir(tmp_path).environment.write_text(content)
    assert train(config(), tiny_data, tmp_path, device=CPU, max_steps=3)["steps"] == 3


@pytest.mark.parametrize("kind", ["another net", "junk"])
def test_a_checkpoint_of_something_else_is_refused_and_nothing_is_lost(tmp_path, tiny_data, kind):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=2)
    run_dir = RunDir(tmp_path)
    before = run_dir.result.read_bytes()
    if kind == "junk":
        state = b"junk with a checksum that fits"
    else:
        train(config(model="plain20", option="A"), tiny_data, tmp_path / "other", device=CPU, max_steps=3)
        state = RunDir(tmp_path / "other").latest_checkpoint()[1].replace(b"fc.bias", b"fd.bias")
    foreign = run_dir.write_checkpoint(3, state)
    with pytest.raises(UserError, match=rf"checkpoint {foreign} is not of this run"):
        train(config(), tiny_data, tmp_path, device=CPU)
    assert run_dir.result.read_bytes() == before


def test_a_changed_machine_is_noticed(tmp_path, tiny_data):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=2)
    run_dir = RunDir(tmp_path)
    environment = json.loads(run_dir.environment.read_text())
    run_dir.environment.write_text(json.dumps(environment | {"torch": "1.0", "num_threads": 96}))
    reporter = InterruptAt(None)
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=3, reporter=reporter)
    now = f"num_threads {torch.get_num_threads()} after 96, torch {torch.__version__} after 1.0"
    assert f"going on with {now}: the result will not be bit-identical" in reporter.notices


def test_interrupted_in_the_last_evaluation(tmp_path, tiny_data, uninterrupted):
    """All steps are taken; what is left is the evaluation in float32 and the files."""

    class Interrupt(InterruptAt):
        def evaluating(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRun, match="stopped by SIGTERM after step 25"):
        train(config(), tiny_data, tmp_path, device=CPU, reporter=Interrupt(None))
    assert not RunDir(tmp_path).result.exists()
    train(config(), tiny_data, tmp_path, device=CPU)
    assert_same_outcome(tmp_path, uninterrupted)
