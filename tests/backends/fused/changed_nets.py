"""Nets that are not the standard one, each changed in one way; and those that plain torch does not train either."""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deepres.models import ResNet, build_model
from deepres.models.blocks import Block


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
