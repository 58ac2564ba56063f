"""No net but the standard one is computed by the kernels: whatever is changed, the loss is the changed net's own."""

import copy
import functools
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deepres.backends.build import build_backend
from deepres.backends.fused.standard import FORWARDS, source_digest, why_not_standard
from deepres.backends.torch_backend import TorchBackend
from deepres.errors import UserError
from deepres.models import ResNet, blocks, build_model
from deepres.models.blocks import Block, PadShortcut

CPU = torch.device("cpu")


def fresh(name="resnet20", **options):
    return build_model(name, generator=torch.Generator().manual_seed(1), **options)


def examples(num_images=8, size=32):
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(num_images, 3, 8, 8, generator=generator), size=size, mode="bilinear")
    return images, torch.randint(10, (num_images,), generator=generator)


class Subclass(ResNet):
    pass


class OwnBlock(Block):
    pass


class PreActivation(Block):
    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class Wrapper(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 0.5 * self.net(x)


def silu_forward(self, x):
    out = F.silu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    if self.shortcut is not None:
        out = out + self.shortcut(x)
    return F.silu(out)


def replaced(path, make):
    """A mutation that puts another module in the place of one."""

    def mutate(net):
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, make(net.get_submodule(path)))
        return net

    return mutate


def changed(path, **attributes):
    """A mutation that sets attributes of a module."""

    def mutate(net):
        for name, value in attributes.items():
            setattr(net.get_submodule(path), name, value)
        return net

    return mutate


def subclass(net):
    net.__class__ = Subclass
    return net


def own_block(net):
    net.layer2[1].__class__ = OwnBlock
    return net


def pre_activation(net):
    for stage in (net.layer1, net.layer2, net.layer3):
        for block in stage[1:]:
            block.__class__ = PreActivation
    return net


def own_forward_of_the_net(net):
    net.forward = lambda x: net.fc(net.forward_features(x).tanh())
    return net


def own_forward_of_a_block(net):
    net.layer3[2].forward = functools.partial(silu_forward, net.layer3[2])
    return net


def wider(net):
    """The same shapes outside, another width within a block."""
    block = net.layer1[1]
    block.conv1, block.bn1, block.conv2 = (
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.Conv2d(32, 16, 3, padding=1, bias=False),
    )
    return net


def shorter(net):
    del net.layer3[2]
    return net


def reordered(net):
    first, second, third = net.layer1
    net.layer1 = nn.Sequential()
    for name, block in (("1", second), ("0", first), ("2", third)):
        net.layer1.add_module(name, block)
    return net


def hooked(register):
    def mutate(net):
        register(net)
        return net

    return mutate


def frozen(net):
    net.layer1.requires_grad_(False)
    return net


def tied_parameter(net):
    net.layer1[0].conv2.weight = net.layer1[0].conv1.weight
    return net


def tied_block(net):
    net.layer1[2] = net.layer1[1]
    return net


def shared_memory(net):
    net.layer1[0].conv2.weight.data = net.layer1[0].conv1.weight.data
    return net


def without_norm(net):
    net.layer2[0].bn2 = nn.Identity()
    return net


def shortcut_around_one_block_less(net):
    net.layer1[1].shortcut = None
    return net


def strided_norm(net):
    net.bn1.weight.data = torch.ones(32)[::2]
    return net


def gradient_doubled(net):
    net.conv1.weight.register_hook(lambda grad: 2 * grad)
    return net


def gradient_doubled_after_accumulation(net):
    def double(weight):
        weight.grad.mul_(2)

    net.conv1.weight.register_post_accumulate_grad_hook(double)
    return net


def folded_norm(net):
    conv, norm = net.conv1, net.bn1
    net.conv1 = nn.Conv2d(3, 16, 3, padding=1)
    weights = fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    net.conv1.weight, net.conv1.bias = weights
    net.bn1 = nn.Identity()
    return net


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(net):
    parametrize.register_parametrization(net.layer2[0].conv1, "weight", Twice())
    return net


def weight_norm(net):
    parametrizations.weight_norm(net.layer2[0].conv2)
    return net


MUTATIONS = {
    "subclass": subclass,
    "wrapper": Wrapper,
    "own block": own_block,
    "pre-activation": pre_activation,
    "forward of the net": own_forward_of_the_net,
    "forward of a block": own_forward_of_a_block,
    "wider block": wider,
    "one block less": shorter,
    "order of blocks": reordered,
    "extra module": changed("layer1.0", dropout=nn.Identity()),
    "extra block": hooked(lambda net: net.layer3.append(Block(64, 64, 1, nn.Identity()))),
    "replaced head": replaced("fc", lambda fc: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))),
    "head without bias": replaced("fc", lambda fc: nn.Linear(64, 10, bias=False)),
    "convolution with bias": replaced("conv1", lambda conv: nn.Conv2d(3, 16, 3, padding=1)),
    "kernel size": replaced("layer1.0.conv1", lambda conv: nn.Conv2d(16, 16, 5, padding=2, bias=False)),
    "dilation": replaced("layer1.0.conv1", lambda conv: nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False)),
    "groups": replaced("layer1.0.conv1", lambda conv: nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)),
    "padding mode": replaced(
        "layer1.0.conv1", lambda conv: nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect", bias=False)
    ),
    "group norm": replaced("bn1", lambda norm: nn.GroupNorm(4, 16)),
    "no norm": without_norm,
    "folded norm": folded_norm,
    "norm without scale and shift": replaced("bn1", lambda norm: nn.BatchNorm2d(16, affine=False)),
    "norm without running statistics": replaced("bn1", lambda norm: nn.BatchNorm2d(16, track_running_stats=False)),
    "cumulative running statistics": changed("bn1", momentum=None),
    "norm in evaluation mode": hooked(lambda net: net.layer1[0].bn1.eval()),
    "no shortcut": shortcut_around_one_block_less,
    "another shortcut": replaced("layer2.0.shortcut", lambda shortcut: nn.Conv2d(16, 32, 1, stride=2, bias=False)),
    "forward hook": hooked(lambda net: net.layer2.register_forward_hook(lambda module, args, out: 2 * out)),
    "forward pre-hook": hooked(lambda net: net.fc.register_forward_pre_hook(lambda module, args: (args[0].relu(),))),
    "backward hook": hooked(
        lambda net: net.fc.register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
    ),
    "gradient hook": gradient_doubled,
    "accumulation hook": gradient_doubled_after_accumulation,
    "parametrization": parametrized,
    "weight norm": weight_norm,
    "frozen parameters": frozen,
    "tied parameter": tied_parameter,
    "tied block": tied_block,
    "shared memory": shared_memory,
    "strided parameter": strided_norm,
    "compiled in place": changed("", _compiled_call_impl=lambda x: torch.zeros(len(x), 10, requires_grad=True)),
}


def mutated(name):
    torch.manual_seed(0)  # for the modules that a mutation puts in
    return MUTATIONS[name](fresh())


NEITHER = {  # what plain torch does not train on float32 images either, or which is another net of the paper
    "float64": nn.Module.double,
    "bfloat16": nn.Module.bfloat16,
    "one parameter of float64": hooked(
        lambda net: setattr(net.fc, "bias", nn.Parameter(net.fc.bias.detach().double()))
    ),
    "meta": lambda net: net.to("meta"),
    "unequal heads": hooked(lambda net: setattr(net.fc, "bias", nn.Parameter(torch.zeros(11)))),
    "no conv1": hooked(lambda net: delattr(net, "conv1")),
    "no stage": hooked(lambda net: delattr(net, "layer1")),
    "no module at all": lambda net: nn.Linear(1, 1),
    "option B": lambda net: fresh(option="B"),
    "option C": lambda net: fresh(option="C"),
}


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


def test_the_kernels_were_written_for_these_sources():
    """Whoever changes a forward pass changes the kernels too, or leaves its digest alone and trains without them."""
    assert {f"{owner.__name__}.{name}": source_digest(getattr(owner, name)) for owner, name in FORWARDS} == {
        f"{owner.__name__}.{name}": digest for (owner, name), digest in FORWARDS.items()
    }


EDITS = [
    ("return F.relu(out)", "return F.silu(out)"),
    ("out = F.relu(self.bn1(self.conv1(x)))", "out = F.gelu(self.bn1(self.conv1(x)))"),
    ("out = self.bn2(self.conv2(out))", "out = self.conv2(self.bn2(out))"),
    ("out = out + self.shortcut(x)", "out = out + 0.5 * self.shortcut(x)"),
    ("x = x[:, :, :: self.stride, :: self.stride]", "x = F.avg_pool2d(x, self.stride)"),
    ("padding=1, bias=False)\n        self.bn2", "padding=2, dilation=2, bias=False)\n        self.bn2"),
]


@pytest.mark.parametrize(("old", "new"), EDITS)
def test_an_edited_source_is_another_net(old, new, tmp_path, monkeypatch):
    source = Path(blocks.__file__).read_text()
    assert source.count(old) == 1
    edited = tmp_path / "edited_blocks.py"
    edited.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("edited_blocks", edited)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for owner in (Block, PadShortcut):
        for name in ("__init__", "forward"):
            monkeypatch.setattr(owner, name, function_of(owner, vars(module)[owner.__name__], name))
    assert why_not_standard(build_model("resnet20")) is not None


def function_of(owner, edited, name):
    """An edited method, whose `super()` is that of the class into which it is put."""
    if name == "forward":
        return edited.forward
    code = vars(edited)[name]
    cell = type((lambda: owner).__closure__[0])(owner)
    return type(code)(code.__code__, code.__globals__, name, code.__defaults__, (cell,))


def test_comments_docstrings_and_layout_are_no_change(tmp_path):
    def one(x):
        return x + 1

    def other(x):
        """With words."""
        return (
            x  # and a comment
            + 1
        )

    other.__name__ = "one"
    assert source_digest(one) is not None
    assert source_digest(other) != source_digest(one)  # another name
    renamed = tmp_path / "renamed.py"
    renamed.write_text(
        'def one(x):\n    """With words."""\n    return (\n        x  # and a comment\n        + 1\n    )\n'
    )
    spec = importlib.util.spec_from_file_location("renamed", renamed)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert source_digest(module.one) == source_digest(one)


def test_what_has_no_source_has_no_digest():
    space = {}
    exec("def forward(self, x): return x", space)
    assert source_digest(space["forward"]) is None
    assert source_digest(functools.partial(print)) is None
    assert source_digest(functools.wraps(Block.forward)(lambda self, x: x)) is None


def test_a_decorated_forward_is_another_one(monkeypatch):
    original = Block.forward

    @functools.wraps(original)
    def doubled(self, x):
        return 2 * original(self, x)

    monkeypatch.setattr(Block, "forward", doubled)
    assert why_not_standard(build_model("resnet20")) == (
        "Block.forward is not the one that the kernels were written for"
    )


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
