import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepres.errors import UserError
from deepres.models.preact import PreActResNet, preact_depth


def second_implementation(state, depth, x):
    """Compute the logits from a state dict in evaluation mode, written down from the paper's appendix."""

    def norm(x, name):
        values = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values)

    kinds = {164: 3, 1001: 3}
    num_convs = kinds.get(depth, 2)
    per_stage = (depth - 2) // (3 * num_convs)
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for i in range(3 * per_stage):
        stride = 2 if i in (per_stage, 2 * per_stage) else 1
        active = F.relu(norm(x, f"blocks.{i}.norms.0"))
        first_of_stage = i % per_stage == 0
        shortcut = active if first_of_stage else x
        if f"blocks.{i}.shortcut.weight" in state:
            shortcut = F.conv2d(shortcut, state[f"blocks.{i}.shortcut.weight"], stride=stride)
        for k in range(num_convs):
            if k > 0:
                active = F.relu(norm(active, f"blocks.{i}.norms.{k}"))
            weight = state[f"blocks.{i}.convs.{k}.weight"]
            strided = k == (1 if num_convs == 3 else 0)
            active = F.conv2d(active, weight, stride=stride if strided else 1, padding=weight.shape[-1] // 2)
        x = active + shortcut
    x = F.relu(norm(x, "norm"))
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("depth", [8, 20, 164])
def test_it_computes_what_a_second_implementation_does(depth):
    torch.manual_seed(0)
    net = PreActResNet(depth).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = second_implementation(net.state_dict(), depth, images)
        assert torch.allclose(net.eval()(images), expected, rtol=1e-9)


@pytest.mark.parametrize(("depth", "millions"), [(110, 1.7), (164, 1.7), (1001, 10.2)])
def test_they_have_the_papers_parameters(depth, millions):
    """Table 4 of the paper."""
    with torch.device("meta"):
        net = PreActResNet(depth)
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert round(sum(p.numel() for layer in layers for p in layer.parameters()) / 1e6, 1) == millions
    weighted = [layer for layer in layers if not (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))]
    if depth == 110:
        assert len(weighted) == depth


def test_names():
    assert preact_depth("preresnet20") == 20
    assert preact_depth("preresnet1001") == 1001
    assert [preact_depth(name) for name in ("preresnet21", "resnet20", "preresnet", None)] == [None] * 4
    with pytest.raises(UserError, match="6n \\+ 2 layers, or 164, or 1001"):
        PreActResNet(21)
