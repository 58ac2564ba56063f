"""Steps that are recorded and replayed, on a CPU: by a tape in place of a graph."""

from dataclasses import replace

import pytest
import torch
from tape import LOOKS, UNORDERED, Tape, TapeRecorder

from deepres.data.loader import build_stream
from deepres.recipes.named import fast, paper
from deepres.recipes.recipe import LookAhead
from deepres.training.graph import Replays
from deepres.training.optimizers import build_optimizers
from deepres.training.trainer import Trainer

CPU = torch.device("cpu")
STEPS = 8
RECIPES = {
    "paper": replace(paper(), batch_size=8, schedule=replace(paper().schedule, milestones=(3, 5))),
    "fast": replace(fast(), batch_size=8, steps=STEPS, epochs=None),  # on images of 16, 24, then 32 rows
}
RECIPES["norms by SGD"] = replace(RECIPES["fast"], norm_adam=None)
RECIPES["ahead"] = replace(RECIPES["fast"], look_ahead=LookAhead(reach=0.6, decay=0.5))
RECIPES["mixed"] = replace(RECIPES["fast"], mixup=0.5, mixing_until=0.7, cutout=8)
RECIPES["cut and smoothed"] = replace(RECIPES["fast"], cutmix=1.0, label_smoothing=0.1)
RECIPES["smoothed"] = replace(RECIPES["fast"], label_smoothing=0.1)
RECIPES["clipped and averaged"] = replace(RECIPES["paper"], clip_norm=0.5, ema=0.5)


class SmallNet(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=4, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def images_and_labels():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (30, 3, 32, 32), dtype=torch.uint8, generator=generator
    )  # mini-batches straddle epochs
    return images, torch.randint(10, (30,), generator=generator)


@pytest.fixture
def trainer_of(images_and_labels):
    def make(recipe, name="resnet20", *, precision="float32", record=None, notices=None):
        """A trainer as on a GPU, Muon in one stack; without `record` it computes each step anew."""
        trainer = Trainer(
            name=name,
            option="A",
            recipe=recipe,
            seed=3,
            stream=build_stream(*images_and_labels, recipe, seed=3),
            total_steps=STEPS,
            device=CPU,
            precision=precision,
            backend="eager",
            notice=pytest.fail,
        )
        trainer.optimizers = build_optimizers(recipe, trainer.model, stacked=True)
        trainer._replays = Replays(record, pytest.fail if notices is None else notices.append)
        return trainer

    return make


def assert_same_state(one, other):
    one, other = one.state(), other.state()
    assert one.keys() == other.keys()
    for key in ("step", "totals", "learning_rate", "slow_start"):
        assert one[key] == other[key]
    assert all(torch.equal(one["model"][key], tensor) for key, tensor in other["model"].items())
    for optimizer, other_optimizer in zip(one["optimizers"], other["optimizers"], strict=True):
        for values, others in zip(optimizer["state"].values(), other_optimizer["state"].values(), strict=True):
            assert all(torch.equal(values[key], others[key]) for key in others)
    for key in one.keys() & {"look_ahead", "mean"}:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("recipe", "name", "precision"),
    [
        ("paper", "resnet20", "float32"),
        ("paper", "plain20", "float32"),
        ("fast", "resnet20", "float32"),
        ("fast", "plain20", "float32"),
        ("norms by SGD", "plain20", "float32"),
        ("ahead", "resnet20", "float32"),
        ("mixed", "resnet20", "float32"),
        ("cut and smoothed", "small", "float32"),
        ("smoothed", "small", "float32"),
        ("clipped and averaged", "small", "float32"),
        ("fast", "resnet20", "bfloat16"),
        ("fast", "small", "float16"),  # which a CPU computes slowly
    ],
)
def test_replayed_steps_are_the_steps_bit_for_bit(trainer_of, recipe, name, precision):
    recorder = TapeRecorder()
    net = SmallNet(10) if name == "small" else name
    replayed = trainer_of(RECIPES[recipe], net, precision=precision, record=recorder)
    plain = trainer_of(RECIPES[recipe], net, precision=precision)
    rates = set()
    for _ in range(STEPS):
        replayed.advance()
        plain.advance()
        rates.add(plain.learning_rate)
    assert len(rates) > 2
    assert_same_state(replayed, plain)
    assert len(recorder.tapes) == 1 + len(RECIPES[recipe].low_resolutions)
    names = {function.overloadpacket.__name__ for tape in recorder.tapes for function, *_ in tape.calls}
    assert not names & {*LOOKS, *UNORDERED}
    assert {"convolution", "convolution_backward", "_fused_sgd_"} <= names
    assert ("baddbmm" in names) == (RECIPES[recipe].muon is not None)


def test_a_step_that_looks_at_a_value_is_found():
    with Tape(), pytest.raises(AssertionError, match="the host looks at a value"):
        float(torch.zeros(()))


def test_a_step_that_adds_up_in_any_order_is_found():
    x = torch.ones(3, requires_grad=True)
    with Tape() as tape:
        x[torch.tensor([0, 0])].sum().backward()
    assert {function.overloadpacket.__name__ for function, *_ in tape.calls} & set(UNORDERED)
    assert all(hasattr(torch.ops.aten, name) for name in UNORDERED)


def test_what_was_recorded_reads_the_state_that_is_loaded(trainer_of):
    """As where a run goes on: from a checkpoint, into a trainer that has taken steps or none."""
    straight = trainer_of(RECIPES["fast"])
    replayed = trainer_of(RECIPES["fast"], record=TapeRecorder())
    for _ in range(4):
        straight.advance()
    for _ in range(2):
        replayed.advance()
    replayed.load_state(straight.state())
    replayed.totals = replace(straight.totals)
    for trainer in (straight, replayed):
        for _ in range(STEPS - 4):
            trainer.advance()
    assert_same_state(replayed, straight)


def test_replayed_evaluations_are_the_evaluations_bit_for_bit(trainer_of, images_and_labels):
    batch = 8  # of 30 images: three whole batches and a rest of 6
    images, recorder = images_and_labels[0], TapeRecorder()
    replayed, plain = trainer_of(RECIPES["paper"], record=recorder), trainer_of(RECIPES["paper"])
    for _ in range(3):
        assert torch.equal(replayed.evaluate(images, batch), plain.evaluate(images, batch))
        for trainer in (replayed, plain):
            trainer.advance()
    assert len(recorder.tapes) == 3  # the step, the batch of 8 and that of 6
    assert_same_state(replayed, plain)


def test_another_stream_is_recorded_anew(trainer_of, images_and_labels):
    images, labels = images_and_labels
    other = build_stream(255 - images, labels, RECIPES["paper"], seed=5)
    replayed, plain = trainer_of(RECIPES["paper"], record=TapeRecorder()), trainer_of(RECIPES["paper"])
    for trainer in (replayed, plain):
        trainer.advance()
        trainer.use_stream(other)
        trainer.advance()
    assert_same_state(replayed, plain)


def test_where_nothing_can_be_recorded_steps_are_taken_plainly(trainer_of):
    def fails(function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    notices = []
    replayed, plain = trainer_of(RECIPES["fast"], record=fails, notices=notices), trainer_of(RECIPES["fast"])
    for _ in range(STEPS):
        replayed.advance()
        plain.advance()
    reason = "operation not permitted when stream is capturing"
    assert notices == [f"no CUDA graph of a step ({reason}): going on without it, slower"]
    assert_same_state(replayed, plain)


def own_augmentation(images, labels, generator):
    return images, labels


def test_nets_and_augmentations_of_ones_own_are_not_recorded(images_and_labels):
    """Their Python code may do something else at each step."""
    own = replace(RECIPES["paper"], augmentation=f"{__name__}:own_augmentation")
    for name, recipe, recorded in (
        ("resnet20", RECIPES["paper"], True),
        ("resnet20", RECIPES["mixed"], True),
        (SmallNet, RECIPES["paper"], False),
        ("resnet20", own, False),
    ):
        trainer = Trainer(
            name=name,
            option="A",
            recipe=recipe,
            seed=3,
            stream=build_stream(*images_and_labels, recipe, seed=3),
            total_steps=STEPS,
            device=CPU,
            precision="float32",
            backend="eager",
            notice=pytest.fail,
            record=TapeRecorder(),
        )
        assert trainer._replays.recording == recorded
