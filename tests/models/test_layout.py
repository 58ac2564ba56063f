import pytest
import torch

from deepres.models import MODELS, build_model
from deepres.models.layout import read_layout


def test_resnet20_is_figure_3_at_cifar_size():
    layout = read_layout(build_model("resnet20"))
    assert [str(layer) for layer in layout.layers] == [
        *["3x3 conv, 16"] * 7,
        *["3x3 conv, 32, /2", *["3x3 conv, 32"] * 5],
        *["3x3 conv, 64, /2", *["3x3 conv, 64"] * 5],
        "global average pool",
        "fc, 10",
    ]
    assert [layer.size for layer in layout.layers] == [*[32] * 7, *[16] * 6, *[8] * 6, 1, 1]
    spans = [(shortcut.first, shortcut.last) for shortcut in layout.shortcuts]
    assert spans == [(first, first + 1) for first in range(1, 19, 2)]
    kinds = [shortcut.kind for shortcut in layout.shortcuts]
    assert kinds == [*["identity"] * 3, "padded", *["identity"] * 2, "padded", *["identity"] * 2]


def test_plain_nets_have_the_same_layers_and_no_shortcuts():
    plain, residual = read_layout(build_model("plain20")), read_layout(build_model("resnet20"))
    assert plain.layers == residual.layers
    assert plain.shortcuts == ()


@pytest.mark.parametrize(("option", "projections"), [("B", 2), ("C", 9)])
def test_projections_are_beside_the_layers(option, projections):
    layout = read_layout(build_model("resnet20", option=option))
    assert layout.layers == read_layout(build_model("resnet20")).layers
    assert sum(shortcut.kind == "projection" for shortcut in layout.shortcuts) == projections


@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("1202")])
def test_every_weighted_layer_is_there_and_the_model_is_left_alone(name):
    model = build_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    layout = read_layout(model)
    assert sum(layer.kind != "pool" for layer in layout.layers) == model.depth
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
