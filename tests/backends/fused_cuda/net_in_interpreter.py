"""Whole nets of `deepres.backends.fused_cuda` against torch, in Triton's interpreter; `test_interpreter.py` runs them.

The nets have 8 layers, and images 8 to 24 rows, which fill no whole tiles: the interpreter is slow.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from exact_bfloat16 import exact_bfloat16  # noqa: F401 (a fixture)
from tape import UNORDERED, Tape
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from deepres.backends.fused.agreement import disagreement
from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused_cuda.launch import Launch
from deepres.backends.fused_cuda.net import FusedCudaNet
from deepres.backends.torch_backend import TorchBackend
from deepres.models import build_model

CPU = torch.device("cpu")


def make_model(name, shift=0.0):
    """A net whose batch normalizations do not all start alike."""
    generator = torch.Generator().manual_seed(1)
    model = build_model(name, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, shift, 0.2, generator=generator)
    return model


def batch(num_images, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_images, 3, size, size, generator=generator)
    return images, torch.randint(10, (num_images,), generator=generator)


def far_from_kinks(model, num_images, size, monkeypatch):
    """Images for which no ReLU's input is so near zero that rounding may put it on the other side."""
    smallest = []

    def relu(x):
        smallest[-1] = min(smallest[-1], float(x.abs().min()))
        return x.clamp_min(0)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "relu", relu)
        for seed in range(30):
            smallest.append(float("inf"))
            copy.deepcopy(model).double().train()(batch(num_images, size, seed)[0].double())
    return batch(num_images, size, smallest.index(max(smallest)))


def error(found, expected):
    return float((found.detach().double() - expected.detach().double()).norm() / expected.detach().double().norm())


def worst(found, expected):
    """The largest relative error of named tensors, and its name."""
    return max((error(one, other), name) for (name, one), (_, other) in zip(found, expected, strict=True))


@pytest.mark.parametrize(("name", "num_images", "size"), [("resnet8", 2, 16), ("plain8", 2, 16), ("resnet8", 1, 24)])
def test_gradients_statistics_and_logits_are_those_of_autograd(name, num_images, size, monkeypatch):
    model = make_model(name)
    images, labels = far_from_kinks(model, num_images, size, monkeypatch)
    exact = copy.deepcopy(model).double()
    logits = exact(images.double())
    F.cross_entropy(logits, labels).backward()
    net = FusedCudaNet(model, "float32", 2)
    loss, wrong = net.forward_backward(images, labels)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert int(wrong) == int((logits.argmax(1) != labels).sum())
    grads = ([(key, p.grad) for key, p in each.named_parameters()] for each in (model, exact))
    assert worst(*grads) < (1e-5, "")
    assert worst(model.named_buffers(), exact.named_buffers()) < (2e-6, "")
    more = torch.cat([images, images.flip(0), images])[:3]  # more than the capacity, and not a multiple of it
    assert error(net.logits(more), exact.eval()(more.double())) < 2e-6


def test_two_steps_are_those_of_plain_torch(monkeypatch):
    """By SGD, on labels that are distributions, and on fewer images than there is memory for."""
    model = make_model("resnet8")
    images, labels = far_from_kinks(model, 3, 8, monkeypatch)
    targets = 0.9 * F.one_hot(labels, 10) + 0.01
    models = model, copy.deepcopy(model)
    backends = FusedCudaNet(models[0], "float32", 5), TorchBackend(models[1], CPU, "float32", False, pytest.fail)
    losses = []
    for each, backend in zip(models, backends, strict=True):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.01, momentum=0.9)
        for _ in range(2):
            losses.append(backend.forward_backward(images, targets))
            optimizer.step()
            optimizer.zero_grad()
    for (loss, wrong), (own_loss, own_wrong) in zip(losses[:2], losses[2:], strict=True):
        assert loss.item() == pytest.approx(own_loss.item(), rel=1e-5)
        assert int(wrong) == int(own_wrong)
    assert worst(models[0].state_dict().items(), models[1].state_dict().items()) < (1e-5, "")
    assert int(models[0].bn1.num_batches_tracked) == 2


def test_steps_repeat_bit_for_bit_and_leave_gradients_where_they_were():
    """Whatever the capacity, and after other work."""
    images, labels = batch(2, 8)
    models = [make_model("resnet8") for _ in range(2)]
    net, larger = FusedCudaNet(models[0], "bfloat16", 2), FusedCudaNet(models[1], "bfloat16", 3)
    larger.forward_backward(*batch(3, 8, seed=1))
    models[1].load_state_dict(models[0].state_dict())

    first, _ = net.forward_backward(images, labels)
    grads = [parameter.grad for parameter in models[0].parameters()]
    copies = [grad.clone() for grad in grads]
    other, _ = larger.forward_backward(images, labels)
    assert torch.equal(first, other)
    for grad, parameter in zip(grads, models[1].parameters(), strict=True):
        assert torch.equal(grad, parameter.grad)
    for (key, one), (_, two) in zip(models[0].named_buffers(), models[1].named_buffers(), strict=True):
        assert torch.equal(one, two), key

    for parameter in models[0].parameters():
        parameter.grad = None
    again, _ = net.forward_backward(images, labels)
    assert torch.equal(first, again)  # batch statistics do not depend on running ones
    for grad, old, parameter in zip(grads, copies, models[0].parameters(), strict=True):
        assert parameter.grad is grad
        assert torch.equal(grad, old)


def test_a_recorded_step_is_replayed_on_other_images_and_weights(monkeypatch):
    """As a CUDA graph does: torch's operations and the kernels once more, on the same memory, and nobody looks."""
    model = make_model("resnet8")
    plain = copy.deepcopy(model)
    net, plain_net = (FusedCudaNet(each, "bfloat16", 2) for each in (model, plain))
    images, labels = (tensor.clone() for tensor in batch(2, 8))
    net.forward_backward(images, labels)

    tape, launch = Tape(), Launch.__call__

    def record(self):
        with _disable_current_modes():  # by which the interpreter works
            launch(self)
        tape.calls.append((launch, (self,), {}, None))

    with monkeypatch.context() as patch, tape:
        patch.setattr(Launch, "__call__", record)
        loss, wrong = net.forward_backward(images, labels)

    assert not {getattr(function, "overloadpacket", function).__name__ for function, *_ in tape.calls} & set(UNORDERED)

    others = batch(2, 8, seed=1)
    with torch.no_grad():
        images.copy_(others[0])
        labels.copy_(others[1])
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            one.mul_(1.1)
            other.copy_(one)
        for one, other in zip(model.buffers(), plain.buffers(), strict=True):
            other.copy_(one)
    tape.replay()
    plain_loss, plain_wrong = plain_net.forward_backward(*others)
    assert torch.equal(loss, plain_loss)
    assert torch.equal(wrong, plain_wrong)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["resnet8", "plain8"])
def test_the_comparison_at_the_start_of_a_run_finds_them_equal(name):
    examples = [batch(2, 8), batch(1, 12)]
    assert disagreement(make_model(name), "bfloat16", examples, FusedCudaNet) is None


@pytest.mark.parametrize("name", ["resnet8", "plain8"])
def test_bfloat16_costs_no_more_than_in_plain_torch(name):
    """Against float64: one rounding to 8 significant bits is an error of 2**-9.4 on average, and 2**-8 at most.

    Every other channel is so far above zero, and the others so far below, that rounding turns no ReLU.
    """
    model = make_model(name, shift=6.0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias[1::2].neg_()
    images, labels = batch(2, 12)
    exact, plain = copy.deepcopy(model).double(), copy.deepcopy(model)
    expected_loss = F.cross_entropy(exact(images.double()), labels)
    expected_loss.backward()
    net = FusedCudaNet(model, "bfloat16", 2)
    loss, _ = net.forward_backward(images, labels)
    TorchBackend(plain, CPU, "bfloat16", False, pytest.fail).forward_backward(images, labels)
    gradient, own, expected = (
        torch.cat([p.grad.flatten() for p in each.parameters()]) for each in (model, plain, exact)
    )
    assert 2**-12 < error(gradient, expected) < 1.5 * error(own, expected)
    assert error(gradient, expected) < 2**-8
    assert loss.item() == pytest.approx(expected_loss.item(), rel=2**-8)
    assert worst(model.named_buffers(), exact.named_buffers()) < (2**-7, "")  # means nearly cancel
    assert error(net.logits(images), exact.eval()(images.double())) < 2**-7


def test_what_it_does_not_compute_is_an_error():
    model = make_model("resnet8")
    with pytest.raises(KernelsUnavailable, match="no kernels for shortcut option B"):
        FusedCudaNet(build_model("resnet8", option="B"), "float32", 2)
    with pytest.raises(ValueError, match="capacity is 0: it must be at least 1"):
        FusedCudaNet(model, "float32", 0)
    net = FusedCudaNet(model, "float32", 2)
    with pytest.raises(ValueError, match="3 images: it must be 1 to 2"):
        net.forward_backward(*batch(3, 16))
    with pytest.raises(ValueError, match=r"labels are torch.float64 \(2, 10\): they must be int64 \(2,\) or float32"):
        net.forward_backward(batch(2, 16)[0], torch.zeros(2, 10).double())
    for images in (torch.zeros(2, 3, 16, 12), torch.zeros(2, 1, 16, 16), torch.zeros(2, 3, 18, 18)):
        with pytest.raises(ValueError, match=r"they must be float32 \(B, 3, S, S\) on cpu, S a multiple of 4"):
            net.logits(images)
    assert net.logits(torch.zeros(0, 3, 16, 16)).shape == (0, 10)
    model.bn1.running_mean.data = torch.zeros(16)
    with pytest.raises(RuntimeError, match="has been replaced: build another FusedCudaNet"):
        net.logits(torch.zeros(2, 3, 16, 16))
