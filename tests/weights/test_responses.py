import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.models import build_model
from deepres.weights import responses
from deepres.weights.responses import layer_responses


@pytest.fixture
def images():
    return torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained_looking(name):
    """A net whose batch normalisations have statistics and parameters of their own."""
    model = build_model(name, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", ["plain20", "resnet20"])
def test_against_a_forward_pass_written_out(images, name):
    model = trained_looking(name)
    normalization = Normalization.fit(images, "channel")
    found = layer_responses(model, images, normalization, batch_size=3)  # the last batch is short

    expected = {}
    with torch.no_grad():
        model.double()
        x = model.bn1(model.conv1(normalization(images).double()))
        expected["conv1"] = x.std(correction=0)
        x = F.relu(x)
        for stage in ("layer1", "layer2", "layer3"):
            for i, block in enumerate(getattr(model, stage)):
                out = block.bn1(block.conv1(x))
                expected[f"{stage}.{i}.conv1"] = out.std(correction=0)
                out = block.bn2(block.conv2(F.relu(out)))
                expected[f"{stage}.{i}.conv2"] = out.std(correction=0)
                x = F.relu(out if block.shortcut is None else out + block.shortcut(x))
    assert list(found) == list(expected)
    assert len(found) == 19
    assert list(found.values()) == pytest.approx([float(std) for std in expected.values()], rel=1e-5)
    assert all(not module._forward_hooks for module in model.modules())


def test_projections_are_no_3x3_layers(images):
    model = build_model("resnet20", option="B").eval()
    assert len(layer_responses(model, images, Normalization.fit(images, "channel"))) == 19


def test_a_layer_without_batch_normalisation_has_no_response(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten()).eval()
    with pytest.raises(UserError, match="layer 0 has no batch normalisation right behind it"):
        layer_responses(model, images, Normalization.fit(images, "channel"))


def test_moments_by_hand():
    moments = responses.Moments()
    moments.add(torch.tensor([[[[1.0, 2.0]]]]))
    moments.add(torch.tensor([[[[6.0]]]]))
    assert moments.std == pytest.approx((14 / 3) ** 0.5)  # mean 3
