from dataclasses import replace

import pytest
import torch

from deepres.data.loader import build_stream
from deepres.recipes.named import paper
from deepres.training.losses import Losses
from deepres.training.trainer import DivergedError, Trainer

CPU = torch.device("cpu")


def push(losses, step):
    losses.latest.copy_(torch.tensor([step / 4, step]))
    return losses.push()


def test_on_a_cpu_each_step_is_read_at_once():
    losses = Losses(CPU, 1)
    assert [push(losses, step) for step in range(3)] == [[(0.0, 0)], [(0.25, 1)], [(0.5, 2)]]
    assert losses.flush() == []
    assert losses.num_unread == 0


def test_a_window_is_read_when_the_next_one_is_full():
    losses = Losses(CPU, 4)
    steps = [(step / 4, step) for step in range(22)]
    read = []
    for step in range(18):
        arrived = push(losses, step)
        read += arrived
        assert len(arrived) == (4 if step in (7, 11, 15) else 0)
        assert losses.num_unread == step + 1 - len(read)
    assert read == steps[:12]
    assert losses.flush() == steps[12:18]
    assert losses.flush() == []
    assert [push(losses, step) for step in range(18, 22)] == [[]] * 4  # windows begin anew
    assert losses.flush() == steps[18:22]


@pytest.fixture
def trainer():
    recipe = replace(paper(), batch_size=8)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (24,), generator=generator)
    trainer = Trainer(
        name="resnet20",
        option="A",
        recipe=recipe,
        seed=3,
        stream=build_stream(images, labels, recipe, seed=3),
        total_steps=20,
        device=CPU,
        precision="float32",
        backend="eager",
        notice=pytest.fail,
    )
    trainer._losses = Losses(CPU, 3)  # as on a GPU, where windows are longer
    return trainer


def test_totals_are_whole_whenever_they_are_asked_for(trainer):
    for _ in range(8):
        trainer.advance()
    assert trainer.totals.images == 3 * 8  # two windows are full, the first is read
    trainer.read_losses()
    assert trainer.totals.images == 8 * 8
    assert trainer.state()["totals"][2] == 8 * 8
    trainer.start_epoch()
    trainer.advance()
    trainer.read_losses()
    assert trainer.totals.images == 8


@pytest.mark.parametrize(("diverged_at", "seen"), [(2, 6), (5, 9), (7, 9)])  # the last by asking at the end
def test_the_step_that_diverged_is_named_though_it_is_seen_later(trainer, diverged_at, seen):
    def take_steps():
        for _ in range(9):
            trainer.advance()
            if trainer.step == diverged_at - 1:
                trainer.model.fc.bias.data[0] = float("nan")
        trainer.read_losses()

    with pytest.raises(DivergedError, match=rf"the loss is nan at step {diverged_at} \(seen after step {seen}\)"):
        take_steps()


def test_a_diverged_state_is_not_saved(trainer):
    for _ in range(4):
        trainer.advance()
    trainer.model.fc.bias.data[0] = float("nan")
    trainer.advance()
    with pytest.raises(DivergedError, match="the loss is nan at step 5,"):
        trainer.state()
