import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepres.errors import UserError
from deepres.models import MODELS, OPTIONS, build_model, count_parameters, make_name, net_name, parse_name
from deepres.models.blocks import Block, PadShortcut, ProjectionShortcut, build_shortcut

PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


def depth_of(name):
    return int(name.removeprefix("plain").removeprefix("resnet"))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randomize_batch_norm(model):
    """Give every batch normalisation its own scale, shift and statistics, as training does."""
    g = generator(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=g) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=g) * 0.1)
    return model


def counted_by_hand(depth):
    """Weights of 6n + 2 layers, and scale and shift of each convolution's batch normalisation."""
    n = (depth - 2) // 6
    convolutions = [(3, 16)]
    for before, width in ((16, 16), (16, 32), (32, 64)):
        convolutions += [(before, width)] + [(width, width)] * (2 * n - 1)
    return sum(9 * a * b + 2 * b for a, b in convolutions) + 64 * 10 + 10


def test_models_are_the_papers():
    assert list(MODELS) == [f"plain{d}" for d in (20, 32, 44, 56, 110)] + [
        f"resnet{d}" for d in (20, 32, 44, 56, 110, 1202)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name):
    depth = depth_of(name)
    assert count_parameters(build_model(name)) == PARAMETERS[depth] == counted_by_hand(depth)


@pytest.mark.parametrize("name", MODELS)
def test_depth_counts_the_weighted_layers(name):
    layers = [m for m in build_model(name).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth_of(name)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_plain_twin_has_the_same_tensors(depth):
    plain, residual = build_model(f"plain{depth}"), build_model(f"resnet{depth}")
    shapes = [{key: tensor.shape for key, tensor in m.state_dict().items()} for m in (plain, residual)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["plain20", "resnet20", "resnet32"])
def test_two_n_layers_on_each_feature_map_size(name):
    model = build_model(name).eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    n = (depth_of(name) - 2) // 6
    expected = [(16, 32, 32)] * (2 * n + 1) + [(32, 16, 16)] * (2 * n) + [(64, 8, 8)] * (2 * n)
    assert seen == expected


def forward_by_hand(model, x, num_blocks):
    """A second implementation of the option-A net, from the paper's text and the state dict alone."""
    state = model.state_dict()

    def conv_bn(x, conv, bn, stride):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        scale = state[f"{bn}.weight"] / torch.sqrt(var + 1e-5)
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{bn}.bias"][:, None, None]

    x = conv_bn(x, "conv1", "bn1", 1).clamp(min=0)
    for stage, block in itertools.product((1, 2, 3), range(num_blocks)):
        prefix = f"layer{stage}.{block}"
        stride = 2 if stage > 1 and block == 0 else 1
        y = conv_bn(x, f"{prefix}.conv1", f"{prefix}.bn1", stride).clamp(min=0)
        y = conv_bn(y, f"{prefix}.conv2", f"{prefix}.bn2", 1)
        if stride == 2:
            small = F.avg_pool2d(x, kernel_size=1, stride=2)
            x = torch.cat([small, torch.zeros_like(small)], dim=1)
        x = (y + x).clamp(min=0)
    return F.adaptive_avg_pool2d(x, 1).flatten(1) @ state["fc.weight"].T + state["fc.bias"]


@torch.no_grad()
def test_option_a_against_a_second_implementation():
    model = randomize_batch_norm(build_model("resnet20", generator=generator())).eval()
    x = torch.randn(4, 3, 32, 32, generator=generator(2))
    torch.testing.assert_close(model(x), forward_by_hand(model, x, num_blocks=3), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = torch.randn(2, 16, 7, 9, generator=generator())
    out = PadShortcut(16, 32, stride=2)(x)
    assert out.shape == (2, 32, 4, 5)
    for i, j in itertools.product(range(4), range(5)):
        assert torch.equal(out[:, :16, i, j], x[:, :, 2 * i, 2 * j])
    assert not out[:, 16:].any()


@torch.no_grad()
@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(16, 16, 1), (16, 32, 2)])
def test_zeroed_last_scale_leaves_the_shortcut(in_channels, out_channels, stride):
    shortcut = build_shortcut("A", in_channels, out_channels, stride)
    block = Block(in_channels, out_channels, stride, shortcut)
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, in_channels, 8, 8, generator=generator())  # not negative, as after a ReLU
    assert torch.equal(block(x), shortcut(x))


@torch.no_grad()
def test_residual_net_with_zeroed_last_scales_is_its_first_layer_subsampled():
    model = randomize_batch_norm(build_model("resnet56", generator=generator())).eval()
    for module in model.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.bn2.weight)
            nn.init.zeros_(module.bn2.bias)
    x = torch.randn(2, 3, 32, 32, generator=generator(3))
    first = F.relu(model.bn1(model.conv1(x)))[:, :, ::4, ::4].mean(dim=(2, 3))  # (2, 16)
    features = model.forward_features(x)
    torch.testing.assert_close(features[:, :16], first)
    assert not features[:, 16:].any()


@torch.no_grad()
def test_shortcuts_are_the_only_difference_to_the_plain_net():
    plain = build_model("plain20", generator=generator()).eval()
    residual = build_model("resnet20", generator=generator()).eval()
    x = torch.randn(2, 3, 32, 32, generator=generator(4))
    assert not torch.allclose(plain(x), residual(x))
    for module in residual.modules():
        if isinstance(module, Block):
            module.shortcut = None
    assert torch.equal(plain(x), residual(x))


@pytest.mark.parametrize(
    ("option", "projections"),
    [("A", []), ("B", [(16, 32, 2), (32, 64, 2)]), ("C", [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2)],
)
def test_where_projections_stand(option, projections):
    model = build_model("resnet20", option=option)
    found = [m[0] for m in model.modules() if isinstance(m, ProjectionShortcut)]
    assert all(conv.kernel_size == (1, 1) and conv.bias is None for conv in found)
    shapes = [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in found]
    if option == "C":
        projections = [*projections, (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    assert shapes == projections
    extra = sum(a * b + 2 * b for a, b, _ in projections)
    assert count_parameters(model) == PARAMETERS[20] + extra


@torch.no_grad()
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("size", [(32, 32), (33, 17), (8, 8), (1, 1), (64, 96)])
def test_any_input_size_and_number_of_classes(option, size):
    model = build_model("resnet20", option=option, num_classes=7).eval()
    assert model(torch.zeros(2, 3, *size)).shape == (2, 7)
    assert model.forward_features(torch.zeros(2, 3, *size)).shape == (2, 64)


def test_he_initialisation():
    model = build_model("resnet56", generator=generator())
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            expected = (2 / fan_in) ** 0.5
            # Five standard errors of the estimate.
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / (2 * module.weight.numel()) ** 0.5)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()


def test_initial_weights_depend_on_the_generator_alone():
    first, again, other = (build_model("resnet20", generator=generator(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_convolutions_have_no_bias():
    assert all(m.bias is None for m in build_model("resnet20").modules() if isinstance(m, nn.Conv2d))


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model 'resnet18' \(did you mean .*\?\): .* plain20, .* resnet1202"):
        build_model("resnet18")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"option": "D"}, "unknown shortcut option 'D': choose from A, B, C"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_illegal_arguments(kwargs, message):
    with pytest.raises(UserError, match=message):
        build_model("resnet20", **kwargs)


def test_illegal_depth_and_plain_option():
    from deepres.models import ResNet

    for depth in (21, 2, 1208, -4, 20.0, True):
        with pytest.raises(UserError, match=rf"depth is {depth!r}: a net has 6n \+ 2 layers, such as 20"):
            ResNet(depth)
    for width in (0, 17, 1.5, True):
        with pytest.raises(UserError, match=rf"width is {width!r}: it must be a whole number from 1 to 16"):
            ResNet(20, width=width)
    with pytest.raises(UserError, match="plain net has no shortcuts"):
        build_model("plain20", option="B")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet20", (True, 20, 1)),
        ("plain8", (False, 8, 1)),
        ("resnet26", (True, 26, 1)),
        ("resnet20x2", (True, 20, 2)),
        ("plain1202x16", (False, 1202, 16)),
    ],
)
def test_names_say_kind_depth_and_width(name, parts):
    assert parse_name(name) == parts
    assert make_name(*parts) == name


def test_shapes_alone_need_nothing_of_torchs_compiler(monkeypatch):
    """It takes a second to import, which whoever reads weights would wait for."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    with torch.device("meta"):
        model = build_model("resnet20")
    assert model.fc.weight.is_meta
    assert count_parameters(model) == PARAMETERS[20]


NO_NETS = (
    "resnet resnet21 resnet2 resnet020 resnet20x1 resnet20x0 resnet20x17 resnet20x resnet1208 ResNet20 20 plain-20"
)


@pytest.mark.parametrize("name", [*NO_NETS.split(), "resnet20 ", "", None, 20])
def test_names_of_no_net(name):
    assert parse_name(name) is None
    with pytest.raises(UserError, match=r"unknown model .*, or another net of 6n \+ 2 layers"):
        build_model(name)


@torch.no_grad()
@pytest.mark.parametrize(("name", "depth", "width"), [("resnet8", 8, 1), ("plain26", 26, 1), ("resnet14x3", 14, 3)])
def test_other_depths_and_widths(name, depth, width):
    model = build_model(name, generator=generator())
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    assert {m.out_channels for m in layers if isinstance(m, nn.Conv2d)} == {16 * width, 32 * width, 64 * width}
    assert net_name(model) == name
    x = torch.randn(2, 3, 32, 32, generator=generator(1))
    randomize_batch_norm(model).eval()
    if name.startswith("resnet"):
        expected = forward_by_hand(model, x, num_blocks=(depth - 2) // 6)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
