"""What only an NVIDIA GPU can show: that replaying its graphs changes no bit, and that runs resume exactly on it.

And that its fused kernels, from compute capability 8.0 on, compute in bfloat16 what plain torch does.

Skipped elsewhere. The images are random, so that nothing is fetched.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from deepres.backends.accelerator import Accelerator
from deepres.backends.build import build_backend, why_not_fused
from deepres.backends.device import native_precisions, resolve_device, resumes_exactly
from deepres.data.augment import Normalization
from deepres.data.cifar10 import Cifar10, Split
from deepres.data.loader import build_stream
from deepres.models import build_model
from deepres.recipes.named import fast, paper
from deepres.recipes.recipe import LookAhead
from deepres.runs.directory import RunDir
from deepres.training.config import RunConfig
from deepres.training.graph import Replays
from deepres.training.losses import WINDOW
from deepres.training.optimizers import build_optimizers
from deepres.training.together import train_together
from deepres.training.train import Run, train
from deepres.training.trainer import DivergedError, Trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(torch.version.hip is not None, reason="AMD's GPUs compute each step anew"),
]

STEPS = 3 * WINDOW
RECIPES = {
    "paper": replace(paper(), steps=STEPS, schedule=replace(paper().schedule, milestones=(20, 40))),
    "fast": replace(fast(), steps=STEPS, epochs=None),  # on images of 16, 24, then 32 rows
}
RECIPES["mixed"] = replace(RECIPES["fast"], mixup=0.2, mixing_until=0.85, ema=0.99)
RECIPES["ahead"] = replace(RECIPES["fast"], look_ahead=LookAhead(reach=0.6, decay=0.5))
NUM_IMAGES = 1000


def why_no_fused_kernels():
    """Of this machine, for a net that there are kernels for."""
    if not torch.cuda.is_available():
        return "no GPU"
    return why_not_fused(build_model("resnet20").cuda(), torch.device("cuda"), "bfloat16", [32])


needs_fused = pytest.mark.skipif(why_no_fused_kernels() is not None, reason=str(why_no_fused_kernels()))
BACKENDS = ["eager", pytest.param("fused", marks=needs_fused)]


@pytest.fixture(scope="module")
def device():
    return resolve_device("cuda")


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)

    def split(num_images):
        images = random.integers(0, 256, (num_images, 3, 32, 32), np.uint8)
        return Split(images, random.integers(0, 10, num_images, np.int64))

    return Cifar10(train=split(NUM_IMAGES), test=split(1500))  # a batch of 1,000 and a rest, which is evaluated apart


@pytest.fixture
def trainer_of(device, data):
    images, labels = (torch.from_numpy(array).to(device) for array in (data.train.images, data.train.labels))

    def make(recipe, name="resnet20", precision="float32", *, backend="eager", replayed=True):
        trainer = Trainer(
            name=name,
            option="A",
            recipe=recipe,
            seed=3,
            stream=build_stream(images, labels, recipe, seed=3),
            total_steps=STEPS,
            device=device,
            precision=precision,
            backend=backend,
            notice=pytest.fail,
        )
        assert trainer._replays.recording
        if not replayed:
            trainer._replays = Replays(None, pytest.fail)
        return trainer

    return make


def assert_same_state(one, other):
    one, other = one.state(), other.state()
    assert one["totals"] == other["totals"]
    assert all(torch.equal(one["model"][key], tensor) for key, tensor in other["model"].items())


def test_the_card_is_known(device):
    accelerator = Accelerator.of(device)
    assert accelerator.kind == "cuda"
    assert accelerator.why_no_kernels is None
    assert resumes_exactly(device, "eager")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["resnet20", "plain20"])
@pytest.mark.parametrize("recipe", ["paper", "fast", "ahead", "mixed"])
def test_replayed_steps_and_evaluations_are_the_plain_ones_bit_for_bit(
    trainer_of, device, data, recipe, name, backend
):
    images = torch.from_numpy(data.test.images).to(device)
    for precision in native_precisions(device) if backend == "eager" else ["bfloat16"]:
        replayed = trainer_of(RECIPES[recipe], name, precision, backend=backend)
        plain = trainer_of(RECIPES[recipe], name, precision, backend=backend, replayed=False)
        for _ in range(STEPS):
            replayed.advance()
            plain.advance()
            if plain.step % 25 == 0:
                assert torch.equal(replayed.evaluate(images), plain.evaluate(images)), precision
        assert_same_state(replayed, plain)
        # Steps of each size of image, and evaluations of 1,000 images and of 500.
        assert len(replayed._replays._replays) == 3 + len(RECIPES[recipe].low_resolutions)


def test_all_steps_are_in_the_totals_in_order(trainer_of):
    """Read a window late, against read at each step."""
    recipe = RECIPES["paper"]
    late, prompt = trainer_of(recipe), trainer_of(recipe)
    for _ in range(2 * WINDOW + 5):
        late.advance()
        prompt.advance()
        prompt.read_losses()
    assert late.totals.images == WINDOW * recipe.batch_size
    late.read_losses()
    assert late.totals == prompt.totals


def test_a_loss_that_is_not_finite_is_found(trainer_of):
    trainer = trainer_of(replace(RECIPES["paper"], learning_rate=1e6))

    def take_steps():
        for _ in range(STEPS):
            trainer.advance()

    with pytest.raises(DivergedError, match=r"the loss is \w+ at step \d+ \(seen after step \d+\)"):
        take_steps()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_a_resumed_run_ends_with_the_bits_of_a_straight_one(tmp_path, device, data, recipe, backend):
    config = RunConfig("resnet20", RECIPES[recipe], backend=backend)
    straight, resumed = RunDir(tmp_path / "straight"), RunDir(tmp_path / "resumed")
    train(config, data, straight.path, device=device)
    for steps in (7, 41, None):
        train(config, data, resumed.path, device=device, max_steps=steps)
    assert_same_run(straight, resumed)


@pytest.mark.parametrize(
    ("precision", "backend"),
    [("float32", "eager"), ("auto", "eager"), pytest.param("auto", "fused", marks=needs_fused)],
)
def test_runs_on_streams_of_their_own_end_with_the_bits_of_runs_alone(tmp_path, device, data, precision, backend):
    """Three at a time of different nets and recipes, and a fourth where one of them has ended."""
    kinds = [("resnet20", "fast"), ("plain20", "paper"), ("resnet32", "paper"), ("resnet20", "paper")]
    configs = {
        f"{net}-{recipe}": RunConfig(net, RECIPES[recipe], precision=precision, backend=backend)
        for net, recipe in kinds
    }
    for name, config in configs.items():
        train(config, data, tmp_path / "alone" / name, device=device)
    runs = [Run(config, data, tmp_path / "together" / name) for name, config in configs.items()]
    ended = train_together(runs, device=device, at_a_time=3)
    assert [end.error for end in ended] == [None] * len(runs)
    for name in configs:
        assert_same_run(RunDir(tmp_path / "alone" / name), RunDir(tmp_path / "together" / name))


def assert_same_run(run, other):
    """Weights and metrics bit for bit, times apart."""
    weights, others = load_file(run.weights), load_file(other.weights)
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    times = ("seconds", "images_per_second")
    rows, other_rows = (
        [{key: value for key, value in row.items() if key not in times} for row in one.read_metrics()]
        for one in (run, other)
    )
    assert rows == other_rows


@needs_fused
@pytest.mark.parametrize("name", ["resnet20", "plain20", "resnet56"])
@pytest.mark.parametrize("num_images", [128, 101])
def test_fused_gradients_are_as_good_as_those_of_plain_torch(device, name, num_images):
    """Against float32: by the comparison at the start of a run, and on a mini-batch of the net's initial weights."""
    model = build_model(name, generator=torch.Generator().manual_seed(0)).to(device)
    exact, plain = copy.deepcopy(model), copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    examples = [
        (
            F.interpolate(torch.randn(num_images, 3, 8, 8, generator=generator), size=size, mode="bilinear").to(
                device
            ),
            torch.randint(10, (num_images,), generator=generator).to(device),
        )
        for size in (32, 24, 16)
    ]
    fused = build_backend("fused", model, device, "bfloat16", 128, pytest.fail, examples=examples)
    eager = build_backend("eager", plain, device, "bfloat16", 128, pytest.fail)
    reference = build_backend("eager", exact, device, "float32", 128, pytest.fail)
    for images, labels in examples:
        for net in (plain, exact):
            net.zero_grad()  # to which autograd adds
        losses = [backend.forward_backward(images, labels)[0].item() for backend in (fused, eager, reference)]
        assert losses[0] == pytest.approx(losses[2], rel=0.02)
        gradient, rounded, expected = (
            torch.cat([parameter.grad.flatten() for parameter in net.parameters()]) for net in (model, plain, exact)
        )
        assert (gradient - expected).norm() < 1.5 * (rounded - expected).norm()


def test_mini_batches_are_those_of_a_cpu(trainer_of, data):
    """The same images, crops and flips, and pixels but for the last digit."""
    images, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    for kind in ("pixel_mean", "channel"):
        here, there = Normalization.fit(images, kind), Normalization.fit(images.cuda(), kind)
        assert torch.equal(here.mean, there.mean.cpu())
        assert torch.equal(here.std, there.std.cpu())
    trainer = trainer_of(RECIPES["fast"])
    stream = build_stream(images, labels, RECIPES["fast"], seed=3)
    for step in (0, 5, STEPS - 1):
        (pixels, classes), (others, other_classes) = trainer.stream.batch(step), stream.batch(step)
        torch.testing.assert_close(pixels.cpu(), others, rtol=1e-5, atol=1e-6)
        assert torch.equal(classes.cpu(), other_classes)


def test_muon_in_one_stack_steps_as_on_a_cpu(device):
    models = [build_model("resnet20", generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    models[1].to(device, memory_format=torch.channels_last)
    muons = [build_optimizers(fast(), models[i], stacked=bool(i))[0] for i in range(2)]
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        for one, other in zip(muons[0].groups[0].params, muons[1].groups[0].params, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = torch.empty_like(other).copy_(one.grad)
        for muon in muons:
            muon.set_rate(0.1 / (step + 1), highest=0.1)
            muon.step()
    for one, other in zip(muons[0].groups[0].params, muons[1].groups[0].params, strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-4)
