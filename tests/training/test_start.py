import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepres.models import build_model
from deepres.recipes.parts import Chain
from deepres.training.start import (
    chain_length,
    initial_shift,
    layer_gain,
    mix_with_identity,
    norm_parameters,
    start_chain,
)

CHAIN_START = Chain(gain=7.39, identity_share=0.5)


def fresh(name):
    return build_model(name, generator=torch.Generator().manual_seed(0))


def test_chains_are_the_layers_that_no_shortcut_bridges():
    lengths = {name: chain_length(build_model(name)) for name in ("plain20", "plain56", "resnet20", "resnet56")}
    assert lengths == {"plain20": 18, "plain56": 54, "resnet20": 1, "resnet56": 1}
    assert chain_length(nn.Conv2d(1, 1, 1)) == 1


def test_layer_gain_is_what_a_wide_random_layer_does_to_a_small_difference():
    """Two nearly equal inputs through random weights, batch normalization over 4,096 images, and ReLU."""
    assert layer_gain(0.0) == pytest.approx(math.pi / (math.pi - 1))
    generator = torch.Generator().manual_seed(0)
    for shift in (0.0, 1.0, 2.0):
        inputs = torch.randn(4096, 512, generator=generator)
        nudge = 1e-2 * torch.randn(4096, 512, generator=generator)
        weights = torch.randn(512, 512, generator=generator) / 512**0.5
        clean, nudged = inputs @ weights, (inputs + nudge) @ weights
        mean, std = clean.mean(0), clean.std(0)
        outputs, moved = (F.relu((x - mean) / std + shift) for x in (clean, nudged))
        # Against the spread over images, which is what the next layer's batch normalization makes 1.
        gain = (moved - outputs).square().mean() / outputs.var(0).mean() / 1e-4
        assert layer_gain(shift) == pytest.approx(gain.item(), rel=0.02)


def test_the_initial_shift_gives_a_chain_the_gain_asked_for():
    assert initial_shift(1, 7.39) == 0.0  # less already
    for length in (18, 30, 54, 108):
        shift = initial_shift(length, 7.39)
        assert layer_gain(shift) ** length == pytest.approx(7.39, rel=1e-6)
    assert initial_shift(18, 7.39) == pytest.approx(1.014, abs=1e-3)
    assert initial_shift(54, 7.39) == pytest.approx(1.649, abs=1e-3)


@pytest.mark.parametrize(("outs", "ins"), [(16, 16), (32, 16)])
def test_the_identity_gets_its_share_of_a_bank(outs, ins):
    bank = torch.randn(outs, ins, 3, 3, generator=torch.Generator().manual_seed(0))
    random = bank / bank.norm()
    mixed = bank.clone()
    mix_with_identity(mixed, 0.36)
    identity = (mixed / outs**0.5 - 0.8 * random) / 0.6  # a unit vector
    x = torch.randn(2, ins, 8, 8, generator=torch.Generator().manual_seed(1))
    passed = F.conv2d(x, identity * outs**0.5, padding=1)
    torch.testing.assert_close(passed, x.repeat(1, outs // ins, 1, 1), rtol=1e-4, atol=1e-4)


def test_a_chain_starts_shifted_and_near_the_identity_in_place():
    model, usual = fresh("plain20"), fresh("plain20")
    addresses = [p.data_ptr() for p in model.parameters()]
    start_chain(CHAIN_START, model, 18)
    assert [p.data_ptr() for p in model.parameters()] == addresses  # kernels hold them
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    shifts = {round(value, 3) for norm in norms[:-1] for value in norm.bias.tolist()}
    assert shifts == {round(initial_shift(18, 7.39), 3)}
    assert norms[-1].bias.tolist() == [0.0] * 64  # its output is pooled
    assert all(bool((norm.weight == 1).all()) for norm in norms)
    same = {
        name for (name, p), q in zip(model.named_parameters(), usual.parameters(), strict=True) if torch.equal(p, q)
    }
    assert {"conv1.weight", "fc.weight", "fc.bias", "layer3.2.bn2.bias"} <= same  # the image has three channels
    assert not any(name.endswith(("conv1.weight", "conv2.weight")) for name in same - {"conv1.weight"})
    bank = usual.layer1[0].conv2.weight.detach().clone()
    mix_with_identity(bank, 0.5)
    assert torch.equal(model.layer1[0].conv2.weight, bank)


def test_nothing_changes_without_being_asked():
    model, usual = fresh("plain20"), fresh("plain20")
    start_chain(Chain(), model, 18)
    assert all(map(torch.equal, model.state_dict().values(), usual.state_dict().values()))


def test_norm_parameters_are_all_scales_and_shifts_and_nothing_else():
    model = build_model("resnet20")
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(p)] for p in norm_parameters(model)]
    assert len(found) == len(set(found)) == 2 * 19
    assert all("bn" in name for name in found)
