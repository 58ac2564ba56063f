"""Runs that were interrupted, as users see them: real processes, really killed."""

import json
import os
import shlex
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from forked import fork, run_forked
from tiny_run import TINY, command, environment, tiny_recipe
from tiny_training import (
    CPU,
    TRAIN,
    InterruptAt,
    assert_same_outcome,
    config,
    kill_when,
    newest_step,
    wait_until,
)

from deepres.backends.device import has_native_bfloat16
from deepres.errors import UserError
from deepres.runs.directory import RunDir
from deepres.training.train import InterruptedRun, train

NATIVE_BFLOAT16 = pytest.mark.skipif(
    not has_native_bfloat16(CPU), reason="bfloat16 without its instructions is slow; test_trainer.py resumes in it"
)


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=NATIVE_BFLOAT16)])
def precision_and_reference(request, tmp_path_factory, cifar10_dir):
    path, output = tmp_path_factory.mktemp(request.param), tmp_path_factory.mktemp("output") / "output.txt"
    run_forked((*TRAIN, "--precision", request.param, "--run-dir", path), environment(cifar10_dir), output)
    return request.param, path


@pytest.mark.parametrize(
    ("precision_and_reference", "kill_after_step"),
    [
        *(("float32", step) for step in (1, 6, 7, 18)),
        *(pytest.param("bfloat16", step, marks=NATIVE_BFLOAT16) for step in (6, 18)),
    ],
    indirect=["precision_and_reference"],
)
def test_killed_runs_end_bit_identical(tmp_path, cifar10_dir, output, precision_and_reference, kill_after_step):
    precision, reference = precision_and_reference
    run = ((*TRAIN, "--precision", precision, "--run-dir", tmp_path), environment(cifar10_dir), output)
    kill_forked_when(fork(*run), lambda: newest_step(tmp_path) >= kill_after_step)
    assert not RunDir(tmp_path).result.exists()
    assert "resuming" in run_forked(*run)
    assert_same_outcome(tmp_path, reference)


def kill_forked_when(process, condition):
    wait_until(condition, lambda: not process.is_alive())
    process.kill()
    process.join(60)
    assert process.exitcode is not None


def test_killed_again_and_again(tmp_path, cifar10_dir, output, precision_and_reference):
    """Killed at moments that the clock chooses, whatever is going on then."""
    precision, reference = precision_and_reference
    run = ((*TRAIN, "--precision", precision, "--run-dir", tmp_path), environment(cifar10_dir), output)
    step = 0
    for _ in range(4):
        started = time.monotonic()

        def some_steps_later(step=step, started=started):
            return newest_step(tmp_path) > step + 2 and time.monotonic() - started > 0.3

        kill_forked_when(fork(*run), some_steps_later)
        if RunDir(tmp_path).result.exists():
            break
        step = newest_step(tmp_path)
    run_forked(*run)
    assert_same_outcome(tmp_path, reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_prints_the_resume_command(tmp_path, cifar10_dir, output, uninterrupted, number):
    arguments = ("train", "resnet8", *TINY, "--precision", "float32", "--run-dir", tmp_path)
    arguments += ("--checkpoint-minutes", "0")
    code, stderr = kill_when(command(*arguments), environment(cifar10_dir), lambda: newest_step(tmp_path) >= 7, number)
    assert code == 128 + number
    last = stderr.strip().splitlines()[-1]
    assert f"stopped by {number.name} after step" in last
    assert f"train resnet8 {shlex.join(TINY)} --precision float32" in last.split("resume with: ")[1]
    assert "Traceback" not in stderr
    step = newest_step(tmp_path)
    assert f"after step {step}, state saved" in last
    assert f"after step {step}" in run_forked(arguments, environment(cifar10_dir), output)
    assert_same_outcome(tmp_path, uninterrupted)


def interrupted_copy(path, data):
    """Stop a run after step 20, in the fourth epoch; its checkpoints are those of steps 19 and 20."""
    with pytest.raises(InterruptedRun):
        train(config(), data, path, device=CPU, reporter=InterruptAt(20), checkpoint_minutes=0)
    assert not RunDir(path).result.exists()
    return sorted(RunDir(path).checkpoints.iterdir())


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


def test_a_second_process_is_refused(tmp_path, tiny_data, run):
    with FileLock(tmp_path / ".lock"):
        with pytest.raises(UserError, match=r"is in use by another process"):
            train(config(), tiny_data, tmp_path, device=CPU)
        code, _, stderr = run("train", "resnet8", *TINY, "--run-dir", tmp_path)
    assert code == 2
    assert stderr.splitlines()[-1].endswith("wait for it, or give another --run-dir (for a grid: another --out)")
    assert {path.name for path in tmp_path.iterdir()} <= {".lock", "checkpoints"}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 7}, "seed was 0, is 7"),
        ({"model": "plain8"}, "model was resnet8, is plain8"),
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

    from deepres.recipes.recipe import StepDecay

    changed = replace(tiny_recipe(), momentum=0.8, schedule=StepDecay((3,), 0.1))
    with pytest.raises(UserError, match="was begun with another configuration") as raised:
        train(config(recipe=changed), tiny_data, uninterrupted, device=CPU)
    assert "recipe.momentum was 0.9, is 0.8" in str(raised.value)
    assert "recipe.schedule.milestones was None, is [3]" in str(raised.value)


KILLED_AT = ("recipe.json", "environment.json", "metrics.jsonl", "model.safetensors", "result.json", "curve.png")


@pytest.mark.parametrize("name", KILLED_AT)
def test_killed_while_a_file_is_written(tmp_path, cifar10_dir, output, tiny_data, uninterrupted, name):
    arguments = (*TRAIN, "--precision", "float32", "--run-dir", tmp_path)
    process = fork(arguments, environment(cifar10_dir, KILL_BEFORE=name), output)
    process.join()
    assert process.exitcode == -signal.SIGKILL, output.read_text()
    assert RunDir(tmp_path).result.exists() == (name == "curve.png")  # the one file that comes after the result
    train(config(), tiny_data, tmp_path, device=CPU, checkpoint_minutes=0)
    assert_same_outcome(tmp_path, uninterrupted)


def finished_copy(tmp_path, uninterrupted):
    """Return the run directory of a finished run."""
    return RunDir(shutil.copytree(uninterrupted, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.json", '{"a": 1}', "recipe.json is damaged (no 'model')"),
        ("recipe.json", "[]", "recipe.json is damaged"),
        ("recipe.json", "", "recipe.json is damaged"),
        ("result.json", "{}", "result.json is damaged (no 'model')"),
        ("result.json", '{"steps": 25}', "result.json is damaged (no 'model')"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, uninterrupted, run, name, content, message):
    copy = finished_copy(tmp_path, uninterrupted)
    (copy.path / name).write_text(content)
    arguments = ("train", "resnet8", *TINY, "--precision", "float32", "--run-dir", copy)
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
        train(config(model="plain8", option="A"), tiny_data, tmp_path / "other", device=CPU, max_steps=3)
        state = RunDir(tmp_path / "other").latest_checkpoint()[1]
    foreign = run_dir.write_checkpoint(3, state)
    what = "not of this run" if kind == "junk" else r"of another configuration \(model was plain8, is resnet8\)"
    with pytest.raises(UserError, match=rf"checkpoint {foreign} is {what}"):
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
