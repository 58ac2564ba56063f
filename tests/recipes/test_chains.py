"""Settings that concern chains, in the records and the comparisons of nets that have none."""

from dataclasses import replace
from pathlib import Path

import pytest
from run_files import change_json, write_run

from deepres.models.resnet import ResNet
from deepres.recipes.chains import concerns_chains, has_shortcuts
from deepres.recipes.named import fast
from deepres.recipes.parts import Chain
from deepres.runs.differences import find_differences
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.image_sets import cifar10_record
from deepres.runs.schema import RunRecord
from deepres.training.config import RunConfig
from deepres.training.nets import Net, build_net
from deepres.training.start import chain_length

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
def test_and_its_recipe_is_the_same(name):
    net = build_net(name, option="A", seed=0, num_classes=10)
    assert CHAINS.for_chain(chain_length(net)) == NO_CHAINS


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
    plain, residual, other = runs
    assert [found.key for found in find_differences(plain, residual)] == ["model"]
    changed = [found.key for found in find_differences(plain, other)]
    assert "recipe.chain.gain" in changed
    assert all(map(concerns_chains, changed))


def test_groups_name_them_of_a_net_of_ones_own_and_not_of_a_residual_one(tmp_path):
    own = write_run(tmp_path / "own", "resnet20", CHAINS)
    change_json(RunDir(own).recipe, net={"source": None, "weights": None})
    write_run(tmp_path / "residual", "resnet8", CHAINS)
    labels = {group.model: group.label for group in group_runs(load_runs([tmp_path])[0])}
    assert labels["resnet8"] == "fast"
    assert "chain.full_rate_length 18" in labels["resnet20"]
