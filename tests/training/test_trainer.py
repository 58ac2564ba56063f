from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_run import first_images

from deepres.backends.device import find_compiler
from deepres.data.loader import build_stream
from deepres.models import build_model
from deepres.recipes.named import one_cycle, paper
from deepres.recipes.recipe import Adam, Chain, LookAhead, Muon
from deepres.seeding import Stream, derive_generator
from deepres.training.start import initial_shift
from deepres.training.trainer import DivergedError, Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images_and_labels(cifar10_dir):
    train = first_images(cifar10_dir).train[:64]
    return torch.from_numpy(train.images), torch.from_numpy(train.labels)


@pytest.fixture
def trainer_of(images_and_labels):
    def make(recipe, *, name="resnet20", precision="float32", backend="eager", notices=None, total_steps=20):
        images, labels = images_and_labels
        return Trainer(
            name=name,
            option="A",
            recipe=recipe,
            seed=3,
            stream=build_stream(images, labels, recipe, seed=3),
            total_steps=total_steps,
            device=CPU,
            precision=precision,
            backend=backend,
            notice=(notices if notices is not None else []).append,
        )

    return make


@pytest.mark.parametrize("make_recipe", [paper, one_cycle])
def test_steps_are_sgd_written_out_by_hand(trainer_of, make_recipe):
    """Three steps against momentum, weight decay and Nesterov written out on plain tensors."""
    recipe = replace(make_recipe(), batch_size=16)
    trainer = trainer_of(recipe)
    model = build_model("resnet20", generator=derive_generator(3, Stream.WEIGHTS))
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    # The one cycle goes up for 3 of 20 steps: 1/4, 2/4, 3/4 of 0.2.
    rates = [0.1, 0.1, 0.1] if recipe.name == "paper" else [0.05, 0.1, 0.15]
    for step, rate in enumerate(rates):
        trainer.advance()
        assert trainer.learning_rate == pytest.approx(rate)
        images, labels = trainer.stream.batch(step)
        # In the trainer's memory format: other rounding would flip some ReLU, and three steps amplify that.
        F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                gradient = p.grad + recipe.weight_decay * p
                velocity[name] = 0.9 * velocity[name] + gradient
                p -= rate * (gradient + 0.9 * velocity[name] if recipe.nesterov else velocity[name])
                p.grad = None
    trained = dict(trainer.model.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(trained[name], p, rtol=1e-2, atol=1e-3)


def test_loss_falls_and_totals_are_the_running_means(trainer_of):
    trainer = trainer_of(replace(one_cycle(), batch_size=32, learning_rate=0.05), total_steps=30)
    expected = []
    for _ in range(30):
        before = trainer.totals.loss
        trainer.advance()
        expected.append((trainer.totals.loss - before) / 32)
    assert trainer.totals.images == 30 * 32
    assert trainer.totals.mean_loss == pytest.approx(sum(expected) / 30)
    assert sum(expected[-5:]) < 0.7 * sum(expected[:5])


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        ("float32", {}),
        ("bfloat16", {}),
        ("float32", {"muon": Muon(learning_rate=0.1, momentum=0.8)}),
        ("float32", {"norm_adam": Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10)}),
        ("float32", {"look_ahead": LookAhead(reach=0.6, decay=0.5)}),
    ],
)
def test_state_restores_the_next_steps_bit_for_bit(trainer_of, precision, changes):
    recipe = replace(one_cycle(), batch_size=16, **changes)
    straight = trainer_of(recipe, precision=precision)
    for _ in range(4):
        straight.advance()
    halfway = {
        key: {k: v.clone() for k, v in value.items()} if key == "model" else value
        for key, value in straight.state().items()
    }
    from deepres.training.checkpoint import decode_state, encode_state

    content = encode_state(halfway)
    for _ in range(4):
        straight.advance()
    resumed = trainer_of(recipe, precision=precision)
    resumed.load_state(decode_state(content, CPU))
    for _ in range(4):
        resumed.advance()
    assert resumed.totals == straight.totals
    weights = straight.model.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in resumed.model.state_dict().items())


def test_state_goes_from_one_memory_format_to_another(trainer_of):
    """The fused kernels keep weights in the default format, torch's backends channels last."""
    recipe = replace(one_cycle(), batch_size=16, learning_rate=0.01)
    straight, resumed = trainer_of(recipe), trainer_of(recipe)
    for _ in range(3):
        straight.advance()
    state = deepcopy(straight.state())
    for saved in state["optimizers"]:
        for values in saved["state"].values():
            values["momentum_buffer"] = values["momentum_buffer"].contiguous()
    resumed.load_state(state)
    for trainer in (straight, resumed):
        trainer.advance()
    weights = straight.model.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in resumed.model.state_dict().items())


def test_every_optimizer_follows_the_schedule(trainer_of):
    recipe = replace(one_cycle(), batch_size=16, learning_rate=0.5, muon=Muon(learning_rate=0.1, momentum=0.8))
    trainer = trainer_of(recipe)
    trainer.advance()
    rates = [float(group.lr) for optimizer in trainer.optimizers for group in optimizer.groups]
    assert rates == pytest.approx([0.1 / 4, 0.5 / 4, 0.5 / 4])  # the first of three steps up


def test_very_deep_nets_start_slowly(trainer_of):
    recipe = replace(paper(), batch_size=2, slow_start=replace(paper().slow_start, window=2, until_error=101.0))
    trainer = trainer_of(recipe, name="resnet110")
    for rate in (0.01, 0.01, 0.1):  # the window of two is full, and below 101%, after two steps
        trainer.advance()
        assert trainer.learning_rate == pytest.approx(rate)


def test_a_loss_that_is_not_finite_stops_the_run(trainer_of):
    trainer = trainer_of(replace(paper(), batch_size=16, learning_rate=1e6))
    trainer.last_checkpoint = "runs/x/checkpoints/step-00000000.pt"
    message = r"diverged: the loss is \w+ at step \d+, learning rate 1e\+06; the last good checkpoint is runs/x/check"

    def take_steps():
        for _ in range(20):
            trainer.advance()

    with pytest.raises(DivergedError, match=message):
        take_steps()


def test_weights_that_are_not_finite_are_not_saved(trainer_of):
    trainer = trainer_of(replace(paper(), batch_size=16))
    trainer.advance()
    trainer.model.fc.bias.data[0] = float("inf")
    with pytest.raises(DivergedError, match="a weight is not finite after step 1"):
        trainer.state()


@pytest.mark.parametrize("evaluated_first", [False, True])
def test_without_a_working_compiler_training_goes_on_plainly(trainer_of, monkeypatch, evaluated_first):
    def broken(function, *, dynamic):
        def fail(*arguments):
            function(*arguments)  # has moved the running statistics when the compiler gives up
            raise RuntimeError("no C++ compiler\nand so on")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    notices = []
    recipe = replace(one_cycle(), batch_size=16)
    trainer, plain = trainer_of(recipe, backend="compiled", notices=notices), trainer_of(recipe)
    if evaluated_first:  # as `deepres bench` does, and a run that goes on at an epoch's end
        images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        assert torch.equal(trainer.evaluate(images), plain.evaluate(images))
    for _ in range(3):
        trainer.advance()
        plain.advance()
    assert notices == ["torch.compile does not work here (no C++ compiler): going on without it, slower"]
    weights = plain.model.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in trainer.model.state_dict().items())


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_compiled_steps_agree_with_plain_ones(trainer_of):
    recipe = replace(one_cycle(), batch_size=16, learning_rate=0.01)
    notices = []
    name = "resnet8"  # which has every kind of layer, and a third of the code to compile
    compiled = trainer_of(recipe, name=name, backend="compiled", notices=notices)
    plain = trainer_of(recipe, name=name)
    for _ in range(3):
        compiled.advance()
        plain.advance()
    assert notices == []
    assert compiled.totals.mean_loss == pytest.approx(plain.totals.mean_loss, rel=1e-4)
    weights = plain.model.state_dict()
    for key, tensor in compiled.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[key], rtol=1e-2, atol=1e-3)


def test_a_chain_starts_as_the_recipe_says(trainer_of):
    trainer = trainer_of(replace(one_cycle(), batch_size=16, chain=Chain(gain=7.39)), name="plain20")
    assert trainer.model.bn1.bias.tolist() == [pytest.approx(initial_shift(18, 7.39))] * 16
