import copy
import random
import time

import pytest
import torch
import torch.nn.functional as F
from tiny_run import first_images
from torch import nn

from deepres.backends.build import build_backend
from deepres.backends.fused.agreement import NUM_IMAGES, disagreement
from deepres.backends.fused.build import KernelsUnavailable, load_kernels
from deepres.backends.fused.net import FusedNet
from deepres.backends.fused.standard import why_not_standard
from deepres.backends.torch_backend import TorchBackend
from deepres.data.augment import Normalization, shrink
from deepres.errors import UserError
from deepres.models import build_model
from deepres.recipes.named import fast
from deepres.zoo.catalogue import load_pretrained

CPU = torch.device("cpu")


def reason_for(precision):
    try:
        load_kernels(precision)
    except KernelsUnavailable as error:
        return str(error)
    return None


PRECISIONS = [
    pytest.param(precision, marks=pytest.mark.skipif(reason_for(precision) is not None, reason="no kernels here"))
    for precision in ("float32", "bfloat16")
]
needs_float32 = pytest.mark.skipif(reason_for("float32") is not None, reason="no kernels here")


@pytest.fixture(scope="module")
def examples(cifar10_dir):
    """Eight real images in every size that there are kernels for."""
    train = first_images(cifar10_dir, NUM_IMAGES).train
    images = torch.from_numpy(train.images)
    normalized = Normalization.fit(images, "channel")(images)
    labels = torch.from_numpy(train.labels)
    return [(normalized if size == 32 else shrink(normalized, size), labels) for size in (32, 24, 16)]


def fresh(name="resnet20", **options):
    return build_model(name, generator=torch.Generator().manual_seed(3), **options)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["plain20", "resnet20", "plain56", "resnet56"])
def test_kernels_and_nets_agree_on_every_size_of_image(name, precision, examples):
    assert disagreement(fresh(name), precision, examples) is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["plain110", "resnet110"])
def test_they_agree_in_the_deepest_nets(name, precision, examples):
    assert disagreement(fresh(name), precision, examples[:1]) is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_they_agree_on_trained_weights_and_other_classes(precision, examples):
    assert disagreement(load_pretrained("resnet20-fast").net, precision, examples) is None
    assert disagreement(fresh(num_classes=100), precision, examples[:1]) is None


class StraightThrough(torch.autograd.Function):
    """ReLU with the gradient of the identity."""

    @staticmethod
    def forward(context, x):
        return x.relu()

    @staticmethod
    def backward(context, grad):
        return grad


RELUS = {
    "SiLU": F.silu,
    "GELU": F.gelu,
    "ReLU6": F.relu6,
    "ELU": F.elu,
    "leaky ReLU": lambda x: F.leaky_relu(x, 0.1),
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "gradient doubled": lambda x: 2 * x.clamp_min(0) - x.clamp_min(0).detach(),
    "dropout": lambda x: F.dropout(x.clamp_min(0), 0.1),
    "straight through": StraightThrough.apply,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", RELUS)
def test_another_function_by_the_name_of_relu_is_found_out(name, precision, examples, monkeypatch):
    """The sources are what they were, but what they call is not: only the comparison can tell."""
    monkeypatch.setattr(F, "relu", RELUS[name])
    net = fresh()
    assert why_not_standard(net) is None
    assert "they differ from the net itself by" in disagreement(net, precision, examples[:1])


@needs_float32
def test_float32_tells_a_slope_of_a_hundredth_below_zero(examples, monkeypatch):
    monkeypatch.setattr(F, "relu", lambda x: F.leaky_relu(x, 0.01))
    assert "running_" in disagreement(fresh(), "float32", examples[:1])


def scaled_gradient(net, scale):
    """A step whose gradients of one parameter are wrong."""
    step = net.forward_backward

    def wrong(images, labels):
        outcome = step(images, labels)
        dict(net._model.named_parameters())["layer3.1.conv2.weight"].grad.mul_(scale)
        return outcome

    return wrong


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [0.0, -1.0, 2.0, float("nan")])
def test_one_wrong_gradient_is_found_out(precision, scale, examples):
    def build(*arguments):
        net = FusedNet(*arguments)
        net.forward_backward = scaled_gradient(net, scale)
        return net

    found = disagreement(fresh(), precision, examples[:1], build)
    assert " of layer3.1.conv2.weight, where rounding makes" in found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_hooks_on_all_modules_are_found_out(precision, examples):
    def halve_heads(module, inputs, output):
        return 0.5 * output if isinstance(module, nn.Linear) else None

    handle = nn.modules.module.register_module_forward_hook(halve_heads)
    try:
        assert "they differ from the net itself" in disagreement(fresh(), precision, examples[:1])
    finally:
        handle.remove()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_comparison_leaves_no_trace(precision, examples):
    net, untouched = fresh().train(), fresh().train()
    images, labels = examples[0]
    for each in (net, untouched):
        each(images)  # moves the running statistics
        each.fc.weight.grad = torch.ones_like(each.fc.weight)
    states = torch.get_rng_state(), random.getstate()
    assert disagreement(net, precision, examples) is None
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    weights = untouched.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in net.state_dict().items())
    assert int(net.bn1.num_batches_tracked) == 1
    assert all(module.training for module in net.modules())
    assert torch.equal(net.fc.weight.grad, torch.ones_like(net.fc.weight))
    assert net.conv1.weight.grad is None
    backends = [FusedNet(each, precision, NUM_IMAGES) for each in (net, untouched)]
    losses = [backend.forward_backward(images, labels)[0] for backend in backends]
    assert torch.equal(*losses)
    for p, q in zip(net.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@needs_float32
def test_an_error_leaves_no_trace_either(examples):
    net = fresh().eval()
    before = copy.deepcopy(net.state_dict())

    def fail(images, labels):
        raise RuntimeError("the power failed")

    def build(*arguments):
        kernels = FusedNet(*arguments)
        kernels.forward_backward = fail
        return kernels

    with pytest.raises(RuntimeError, match="the power failed"):
        disagreement(net, "float32", examples[:1], build)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert not any(module.training for module in net.modules())


@needs_float32
def test_where_they_differ_plain_torch_trains_or_an_error_says_so(examples, monkeypatch):
    monkeypatch.setattr(F, "relu", F.silu)
    net, notices = fresh(), []
    images, labels = examples[0]
    expected = F.cross_entropy(copy.deepcopy(net)(images), labels)
    backend = build_backend("fused", net, CPU, "float32", 8, notices.append, examples=examples[:1], fall_back=True)
    assert isinstance(backend, TorchBackend)
    (notice,) = notices
    assert notice.startswith("no fused kernels (on 8 images of 32 x 32 they differ from the net itself by ")
    assert notice.endswith(" at most): going on without them, slower")
    loss, _ = backend.forward_backward(images, labels)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(UserError, match=r"fused kernels do not work here \(on 8 images of 32 x 32 they differ"):
        build_backend("fused", fresh(), CPU, "float32", 8, print, examples=examples[:1])


@needs_float32
def test_the_recipe_fast_starts_no_second_later_for_it(examples):
    """A tenth of a second is what it takes on a machine that has nothing else to do."""
    sizes = [32, *fast().small_sizes]
    pairs = [(images, labels) for images, labels in examples if images.shape[-1] in sizes]
    net = fresh()
    start = time.process_time()
    assert disagreement(net, "float32", pairs) is None
    assert time.process_time() - start < 1.0
