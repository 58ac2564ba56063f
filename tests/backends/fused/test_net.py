import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from fused_variants import PRECISIONS, VARIANTS, batch, error, make_model, needs_float32, parameter
from torch import Tensor, nn

from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.net import FusedNet, why_unsupported
from deepres.models import build_model

CPU = torch.device("cpu")


def reference_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """The same step by autograd on a copy: the copy with its gradients, and the loss."""
    model = copy.deepcopy(model).to(dtype).train()
    loss = F.cross_entropy(model(images.to(dtype)), labels)
    loss.backward()
    return model, loss.detach()


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("precision", "unit"), VARIANTS)
def test_relu_lets_nan_pass(precision, unit):
    model = make_model("resnet20")
    with torch.no_grad():
        model.get_submodule("bn1").weight[3] = float("nan")
    net, (images, labels) = FusedNet(model, precision, 4, unit), batch(4)
    loss, _ = net.forward_backward(images, labels)
    assert loss.isnan()
    assert model.get_submodule("conv1").weight.grad.isnan().any()
    assert net.logits(images).isnan().all()


def distance_from_kinks(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """The smallest absolute value that enters a ReLU."""
    smallest = []

    def relu(x: Tensor) -> Tensor:
        smallest.append(float(x.abs().min()))
        return x.clamp_min(0)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "relu", relu)
        copy.deepcopy(model).double().train()(images.double())
    return min(smallest)


@needs_float32
@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("plain20", 32, 0.02),
        ("resnet20", 32, 5e-5),
        ("resnet20", 24, 5e-5),
        ("resnet20", 16, 5e-5),
        ("resnet32", 32, 5e-5),
    ],
)
def test_float32_nets_agree_with_autograd(name, size, tolerance, monkeypatch):
    model = make_model(name)
    # A ReLU whose input rounds to the other side of zero moves gradients by up to a percent, so choose images that are
    # far from that; there are half a million ReLUs. In the plain net errors grow from layer to layer, and none are
    # far enough.
    batches = [batch(2, seed=seed, size=size) for seed in range(20)]
    images, labels = max(batches, key=lambda pair: distance_from_kinks(model, pair[0], monkeypatch))
    exact, exact_loss = reference_step(model, images, labels, torch.float64)
    loss, wrong = FusedNet(model, "float32", 32).forward_backward(images, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-5)
    with torch.no_grad():
        predictions = copy.deepcopy(exact).train()(images.double()).argmax(dim=1)
    assert int(wrong) == int((predictions != labels).sum())
    for (key, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert error(p.grad, q.grad) < tolerance, key
    for (key, found), expected in zip(model.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("precision", [parameter("bfloat16")])
@pytest.mark.parametrize(("name", "size"), [("plain20", 32), ("resnet20", 32), ("resnet20", 24), ("resnet20", 16)])
def test_bfloat16_gradients_are_as_good_as_autocast(precision, name, size):
    model = make_model(name)
    images, labels = batch(48, size=size)
    exact, exact_loss = reference_step(model, images, labels, torch.float64)
    autocast = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = autocast(images)
    F.cross_entropy(logits.float(), labels).backward()
    loss, _ = FusedNet(model, precision, 48).forward_backward(images, labels)
    assert float(loss) == pytest.approx(float(exact_loss), rel=0.02)

    def gradient(net):
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    assert error(gradient(model), gradient(exact)) < 1.3 * error(gradient(autocast), gradient(exact))
    for (key, p), q, t in zip(model.named_parameters(), exact.parameters(), autocast.parameters(), strict=True):
        assert error(p.grad, q.grad) < 0.01 + 2.5 * error(t.grad, q.grad), key


@needs_float32
@pytest.mark.parametrize("num_images", [1, 7, 128])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_number_of_images_and_classes(num_images, memory_format):
    model = make_model("resnet20", num_classes=13)
    images, labels = batch(num_images, num_classes=13)
    torchs, torch_loss = reference_step(model, images, labels, torch.float32)
    net = FusedNet(model, "float32", 128)
    loss, _ = net.forward_backward(images.to(memory_format=memory_format), labels)
    assert float(loss) == pytest.approx(float(torch_loss), rel=1e-4)
    for (key, p), q in zip(model.named_parameters(), torchs.named_parameters(), strict=True):
        assert error(p.grad, q[1].grad) < 0.02, key


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["plain20", "resnet20"])
def test_logits_are_those_of_evaluation(precision, name):
    model = make_model(name, num_classes=7)
    net = FusedNet(model, precision, 8)
    net.forward_backward(*batch(8, num_classes=7))  # moves the running statistics
    images, _ = batch(19, seed=5)  # in pieces of 8, 8 and 3
    logits = net.logits(images)
    with torch.no_grad():
        expected = model.eval()(images)
    assert logits.dtype == torch.float32
    assert logits.shape == (19, 7)
    assert error(logits, expected) < {"float32": 1e-5, "bfloat16": 0.02}[precision]
    assert net.logits(images[:0]).shape == (0, 7)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_depend_on_neither_threads_nor_capacity_nor_run(precision, num_threads):
    images, labels = batch(21)
    results = []
    for threads, capacity in ((1, 21), (1, 21), (2, 21), (2, 40)):
        num_threads(threads)
        model = make_model("resnet20")
        net = FusedNet(model, precision, capacity)
        for size in (32, 24):  # leave their traces in the buffers
            net.forward_backward(*batch(17, seed=9, size=size))
        loss, _ = net.forward_backward(images, labels)
        grads = [p.grad for p in model.parameters()]
        results.append([loss, net.logits(images), *grads, *model.buffers()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("precision", "unit"), VARIANTS)
def test_more_than_eight_threads_divide_the_work_and_change_no_bit(precision, unit, num_threads):
    results = []
    for threads in (1, 9, 70):
        num_threads(threads)
        model = make_model("resnet8")
        FusedNet(model, precision, 11, unit).forward_backward(*batch(11, size=16))
        results.append([p.grad for p in model.parameters()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_fewer_threads_than_were_asked_for_do_all_the_work(precision):
    script = (
        "import torch; from hashlib import sha256;"
        "from deepres.backends.fused.net import FusedNet; from deepres.models import build_model;"
        "torch.manual_seed(0); torch.set_num_threads(3); model = build_model('resnet8');"
        f"net = FusedNet(model, {precision!r}, 7);"
        "net.forward_backward(torch.randn(7, 3, 16, 16), torch.arange(7));"
        "print(torch.get_num_threads(), [sha256(p.grad.numpy()).hexdigest() for p in model.parameters()])"
    )
    outputs = {
        limit: subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"OMP_THREAD_LIMIT": limit},
            capture_output=True,
            check=True,
        ).stdout
        for limit in ("1", "8")
    }
    assert outputs["1"] == outputs["8"]


@needs_float32
def test_steps_follow_those_of_torch():
    model = make_model("resnet20")
    torchs = copy.deepcopy(model)
    net = FusedNet(model, "float32", 16)
    optimizers = [
        torch.optim.SGD(m.parameters(), 0.02, momentum=0.9, nesterov=True, fused=True) for m in (model, torchs)
    ]
    for step, size in enumerate((16, 24, 24, 32, 16)):
        images, labels = batch(16, seed=step, size=size)
        loss, _ = net.forward_backward(images, labels)
        expected = F.cross_entropy(torchs(images), labels)
        expected.backward()
        assert float(loss) == pytest.approx(expected.item(), rel=0.01)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert int(model.bn1.num_batches_tracked) == 5


@needs_float32
def test_weights_may_change_in_place_but_not_be_replaced():
    model, other = make_model("resnet20").to(memory_format=torch.channels_last), build_model("resnet20")
    net = FusedNet(model, "float32", 4)
    images, labels = batch(4)
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert error(net.logits(images), other.eval()(images)) < 1e-5
    model.layer1[0].bn1.weight.data = torch.ones(16)
    with pytest.raises(RuntimeError, match="has been replaced: build another FusedNet"):
        net.forward_backward(images, labels)


@needs_float32
def test_bad_arguments_are_refused():
    net = FusedNet(build_model("resnet20"), "float32", 4)
    images, labels = batch(4)
    for bad_images, bad_labels, message in (
        (images[:0], labels[:0], "0 images: it must be 1 to 4"),
        (images.repeat(2, 1, 1, 1), labels.repeat(2), "8 images: it must be 1 to 4"),
        (images.double(), labels, r"float64 \(4, 3, 32, 32\) on cpu: they must be float32"),
        (images[..., :16], labels, "images are"),
        (
            images[..., :8, :8],
            labels,
            r"\(4, 3, 8, 8\) on cpu: they must be float32 \(B, 3, S, S\) on cpu, S one of 16",
        ),
        (images, labels.int(), "labels are torch.int32"),
        (images, labels[:3], "labels are"),
        (images, labels + 10, "a label is none of the classes 0 to 9"),
        (images, labels - 10, "a label is none of the classes 0 to 9"),
    ):
        with pytest.raises(ValueError, match=message):
            net.forward_backward(bad_images, bad_labels)
    with pytest.raises(ValueError, match="capacity is 0"):
        FusedNet(build_model("resnet20"), "float32", 0)


def test_what_has_no_kernels_is_told():
    resnet20 = build_model("resnet20")
    assert why_unsupported(resnet20, CPU, "float32") is None
    assert why_unsupported(build_model("plain20"), CPU, "bfloat16") is None
    for model, device, precision, reason in (
        (build_model("resnet20", option="B"), CPU, "float32", "shortcut option B"),
        (build_model("resnet20", option="C"), CPU, "float32", "shortcut option C"),
        (nn.Linear(1, 1), CPU, "float32", "a Linear"),
        (resnet20, torch.device("cuda"), "float32", "device 'cuda'"),
        (resnet20, CPU, "float16", "precision 'float16'"),
    ):
        assert reason in why_unsupported(model, device, precision)
    with pytest.raises(KernelsUnavailable, match="shortcut option B"):
        FusedNet(build_model("resnet20", option="B"), "float32", 4)
