import numpy as np
import pytest
import torch
from torch import nn

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.models import build_model
from deepres.weights.classifier import PixelClassifier
from deepres.weights.grad_cam import grad_cam

NORMALIZATION = Normalization(torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))


class Small(nn.Module):
    """Two feature maps, a square of them, pooled and weighted: gradients that depend on the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, stride=4, padding=1)
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc(self.conv(x).square().mean(dim=(2, 3)))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32), np.uint8)


def test_against_a_computation_by_hand(pixels):
    torch.manual_seed(0)
    net = Small()
    classifier = PixelClassifier(net, NORMALIZATION, classes=["a", "b", "c"])
    maps = grad_cam(classifier, pixels, [2, 0])
    with torch.no_grad():
        features = net.conv((torch.from_numpy(pixels) / 255 - 0.5) / 0.25)[0].double()  # (2, 8, 8)
    for found, index in zip(maps, (2, 0), strict=True):
        # d logit / d feature = weight x 2 feature / 64; its mean over the 64 places weighs the map.
        weights = net.fc.weight[index].detach().double() * 2 * features.sum(dim=(1, 2)) / 64 / 64
        expected = (weights[:, None, None] * features).sum(dim=0).clamp(min=0)
        assert torch.allclose(found.double(), expected, atol=1e-6)
    assert maps.shape == (2, 8, 8)
    assert maps.max() > 0


@pytest.mark.parametrize("name", ["resnet20", "plain20", "resnet20x2"])
def test_of_our_nets_it_is_the_last_layers_weights_upon_the_features(pixels, name):
    net = build_model(name, generator=torch.Generator().manual_seed(0)).eval()
    classifier = PixelClassifier(net, NORMALIZATION)
    kept = []
    hook = net.layer3.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        logits = classifier(torch.from_numpy(pixels))[0]
    hook.remove()
    for index, found in enumerate(grad_cam(classifier, pixels, range(10))):
        parts = (net.fc.weight[index, :, None, None] * kept[0][0]).sum(dim=0).detach() / 64
        assert torch.allclose(found, parts.clamp(min=0), atol=1e-5)
        assert float(parts.sum() + net.fc.bias[index].detach()) == pytest.approx(float(logits[index]), abs=1e-3)


def test_the_net_is_left_as_it_was(pixels):
    classifier = PixelClassifier(build_model("resnet20"), NORMALIZATION).train()
    before = {key: value.clone() for key, value in classifier.net.state_dict().items()}
    grad_cam(classifier, pixels, [0])
    assert classifier.training
    assert all(torch.equal(before[key], value) for key, value in classifier.net.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not any(module._forward_hooks for module in classifier.modules())


def test_what_cannot_be_explained_is_an_error(pixels):
    classifier = PixelClassifier(build_model("resnet20"), NORMALIZATION)
    with pytest.raises(UserError, match="explains one image, but got 2"):
        grad_cam(classifier, np.concatenate([pixels, pixels]), [0])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(UserError, match="no layer with more than one place"):
        grad_cam(PixelClassifier(flat, NORMALIZATION, classes=list("abcd")), pixels, [0])
