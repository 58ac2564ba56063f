"""Settings that concern chains, in the records and the comparisons of nets that have none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepres.models.preact import PreActResNet
from deepres.models.resnet import ResNet
from deepres.recipes.chains import concerns_chains, has_shortcuts
from deepres.recipes.named import fast
from deepres.recipes.parts import Chain
from deepres.runs.differences import find_differences, settings_of
from deepres.runs.schema import RunRecord, cifar10_record
from deepres.training.config import RunConfig
from deepres.training.nets import Net, build_net
from deepres.training.start import chain_length, start_chain

CHAINS = replace(fast(), chain=Chain(gain=7.39, full_rate_length=18))
NO_CHAINS = replace(fast(), chain=None)


def record(net: Net, recipe=CHAINS) -> RunRecord:
    """Return the record of a run on CIFAR-10."""
    return RunConfig(net, recipe, precision="float32").record(cifar10_record("50k", 0))


@pytest.mark.parametrize("name", ["plain8", "plain8x2", "resnet8", "resnet8x2", "preresnet8"])
def test_the_name_tells_what_the_net_is(name):
    assert has_shortcuts(name) == (chain_length(build_net(name, option="A", seed=0, num_classes=10)) == 1)


def test_a_residual_net_is_trained_as_without_the_settings():
    assert record("resnet20") == record("resnet20", NO_CHAINS)
    assert record("plain20").recipe["chain"]["gain"] == 7.39


@pytest.mark.parametrize("name", ["resnet8", "preresnet8"])
def test_and_its_start_is_the_same(name):
    net, untouched = (build_net(name, option="A", seed=0, num_classes=10) for _ in range(2))
    assert isinstance(net, ResNet | PreActResNet)
    start_chain(Chain(gain=7.39, identity_share=0.5), net)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, untouched.state_dict()[key]), key


def resnet20(num_classes: int) -> ResNet:
    """A plain net of one's own with a misleading name."""
    return ResNet(20, residual=False, num_classes=num_classes)


def test_a_net_of_ones_own_keeps_them_whatever_its_name():
    own = record(resnet20)
    assert own.recipe["chain"]["gain"] == 7.39
    assert RunRecord.from_json(own.to_json(), Path("recipe.json")).to_json() == own.to_json()


def test_a_record_that_holds_them_reads_as_if_it_did_not():
    content = record("resnet20").to_json()
    content["recipe"] = CHAINS.to_json()
    assert RunRecord.from_json(content, Path("recipe.json")).to_json() == record("resnet20").to_json()


def test_a_comparison_with_a_residual_net_does_not_name_them():
    runs = (record("plain20"), record("resnet20"), record("plain20", NO_CHAINS))
    plain, residual, other = map(settings_of, runs)
    assert [found.key for found in find_differences(plain, residual)] == ["model"]
    changed = [found.key for found in find_differences(plain, other)]
    assert "recipe.chain.gain" in changed
    assert all(map(concerns_chains, changed))
