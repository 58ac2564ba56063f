"""No net but the standard one is computed by the kernels: whatever is changed, the loss is the changed net's own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from changed_nets import MUTATIONS, NEITHER, examples, fresh, mutated

from deepres.backends.build import build_backend
from deepres.backends.fused.standard import why_not_standard
from deepres.backends.torch_backend import TorchBackend
from deepres.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", MUTATIONS)
def test_another_net_is_trained_as_what_it_is(name):
    net = mutated(name)
    images, labels = examples()
    own = mutated(name)  # no copy: those lack hooks
    own_loss = F.cross_entropy(own(images.contiguous(memory_format=torch.channels_last)), labels)
    own_loss.backward()
    notices = []
    backend = build_backend(
        "fused", net, CPU, "float32", 8, notices.append, examples=[(images, labels)], fall_back=True
    )
    assert isinstance(backend, TorchBackend)
    assert backend.name == "eager"
    (notice,) = notices
    assert notice.startswith("no fused kernels (")
    loss, _ = backend.forward_backward(images, labels)
    assert float(loss) == pytest.approx(own_loss.item(), rel=1e-4)
    for (key, p), q in zip(net.named_parameters(), own.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if q.grad is not None and float(q.grad.norm()) > 1e-4:
            assert float((p.grad - q.grad).norm() / q.grad.norm()) < 0.1, key
    with pytest.raises(UserError, match="the fused kernels do not work here"):
        build_backend("fused", mutated(name), CPU, "float32", 8, notices.append)


@pytest.mark.parametrize("name", NEITHER)
def test_nets_of_other_types_are_not_standard(name):
    assert why_not_standard(NEITHER[name](fresh())) is not None


@pytest.mark.parametrize(
    ("name", "options"),
    [("plain20", {}), ("resnet20", {}), ("resnet32", {"num_classes": 100}), ("resnet110", {}), ("plain110", {})],
)
def test_nets_as_they_are_built_are_standard(name, options):
    net = fresh(name, **options)
    assert why_not_standard(net) is None
    assert why_not_standard(net.eval()) is None
    assert why_not_standard(copy.deepcopy(net).to(memory_format=torch.channels_last)) is None


def test_what_changes_nothing_stays_standard():
    net = fresh()
    net.class_names = ["airplane"]
    net.bn1.eps, net.bn1.momentum = 1e-3, 0.2  # which the kernels are given
    net.layer1[0], net.layer1[1] = net.layer1[1], net.layer1[0]
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    assert why_not_standard(net) is None


def test_batch_normalisation_that_is_frozen_stays_so():
    net = fresh()
    net.layer1.eval()
    backend = build_backend("eager", net, CPU, "float32", 8, pytest.fail)
    images, labels = examples()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    backend.forward_backward(images, labels)
    backend.logits(images)
    backend.forward_backward(images, labels)
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith("layer1."), name
