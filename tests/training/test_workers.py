"""Several processes that train one net, started by torchrun."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import fork, run_forked
from safetensors.torch import load_file
from tiny_run import BATCH, TINY, environment, tiny_recipe
from tiny_training import (
    CPU,
    STEPS,
    assert_same_outcome,
    config,
    newest_step,
    wait_until,
)

from deepres.errors import UserError
from deepres.models import build_model
from deepres.runs.directory import RunDir
from deepres.seeding import Stream, derive_generator
from deepres.training.train import load_sets, train

pytestmark = pytest.mark.long

TRAIN = ("train", "resnet8", *TINY, "--precision", "float32", "--device", "cpu")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def variables(data_dir):
    return environment(data_dir, FORBID_DYNAMO="")  # which torch.distributed imports


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, cifar10_dir):
    """A run as users start it; the other tests fork torchrun and its workers, which saves their imports."""
    path = tmp_path_factory.mktemp("two_workers")
    words = (*TORCHRUN, "2", "-m", "deepres", *TRAIN, "--run-dir", path)
    done = subprocess.run(words, capture_output=True, text=True, env=variables(cifar10_dir), check=False)
    assert done.returncode == 0, done.stderr
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
def test_workers_take_the_step_that_their_shares_add_up_to(tmp_path, tiny_data, cifar10_dir, output, shares):
    """The first step by hand: the whole mini-batch's mean gradient, and the mean of the running statistics."""
    from deepres.training.group import Group
    from deepres.training.schedule import learning_rate
    from deepres.training.train import build_trainer

    trainer = build_trainer(
        config(backend="eager"), load_sets(tiny_data, tiny_recipe(), CPU), CPU, Group(), notice=print
    )
    models = [build_model("resnet8", generator=derive_generator(0, Stream.WEIGHTS)) for _ in shares]
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
    optimizer.set_rate(learning_rate(tiny_recipe(), 0, STEPS), tiny_recipe().learning_rate)
    optimizer.step()

    once = (*TRAIN, "--backend", "eager", "--run-dir", tmp_path, "--max-steps", 1)
    run_forked(once, variables(cifar10_dir), output, len(shares))
    weights = load_file(RunDir(tmp_path).weights)
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(weights[name], p.detach(), rtol=1e-4, atol=1e-5)
    for name, buffer in models[0].named_buffers():
        if buffer.is_floating_point():
            mean = sum(model.get_buffer(name) for model in models) / len(models)
            torch.testing.assert_close(weights[name], mean, rtol=1e-4, atol=1e-5)
    expected = sum(loss * weight for loss, weight in zip(losses, weights_of_shares, strict=True))
    assert RunDir(tmp_path).read_metrics()[0]["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_a_run_that_is_ended_three_times_goes_on_exactly(tmp_path, cifar10_dir, output, two_workers):
    """One worker is killed, then the other one, then SIGTERM stops both at the same step."""
    run = ((*TRAIN, "--run-dir", tmp_path, "--checkpoint-minutes", "0"), variables(cifar10_dir), output, 2)

    def end_some_steps_later(number, rank=None):
        """Send a signal to the worker of this rank, or to torchrun; return how it ended and what was said."""
        step = newest_step(tmp_path) + 4
        launcher = fork(*run)
        wait_until(lambda: newest_step(tmp_path) >= step, lambda: not launcher.is_alive())
        os.kill(launcher.pid if rank is None else worker_pid(launcher.pid, rank), number)
        launcher.join(60)
        assert not RunDir(tmp_path).result.exists()
        return launcher.exitcode, output.read_text()

    for rank in (0, 1):
        code, said = end_some_steps_later(signal.SIGKILL, rank)
        assert code == 1
        assert ("resuming" in said) == (rank == 1)
    _, said = end_some_steps_later(signal.SIGTERM)
    assert "resuming" in said
    assert said.count("stopped by SIGTERM") == 1
    assert "resume with: the same torchrun command" in said
    assert "resuming" in run_forked(*run)
    assert_same_outcome(tmp_path, two_workers[0])


def worker_pid(launcher, rank):
    """Return the process that torchrun gave this rank: it starts them in order."""
    return int(Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()[rank])


def test_workers_that_cannot_be_are_refused(two_workers, tiny_data, cifar10_dir, output, tmp_path):
    with pytest.raises(UserError, match="workers was 2, is 1"):
        train(config(), tiny_data, two_workers[0], device=CPU)

    def refused(message, *arguments, **more):
        process = fork((*TRAIN, "--run-dir", tmp_path / "no", *arguments), variables(cifar10_dir) | more, output)
        process.join()
        assert process.exitcode == 2
        assert message in output.read_text()
        assert "Traceback" not in output.read_text()
        assert not (tmp_path / "no").exists()

    typed = shlex.join(map(str, (*TRAIN, "--run-dir", tmp_path / "no", "--workers", "2")))
    refused(f"run `torchrun --standalone --nproc-per-node 2 -m deepres {typed}`", "--workers", "2")
    refused("--workers 2 contradicts WORLD_SIZE 3", "--workers", "2", WORLD_SIZE="3", RANK="0")
    refused("17 workers are too many: a mini-batch has 16 images", WORLD_SIZE="17", RANK="0")
    refused("WORLD_SIZE is 'abc'", WORLD_SIZE="abc")
    refused("the workers do not find one another", WORLD_SIZE="2")
