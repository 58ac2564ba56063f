from dataclasses import FrozenInstanceError, replace

import pytest

from deepres.errors import UserError
from deepres.recipes.named import RECIPES, fast, get_recipe, one_cycle, paper
from deepres.recipes.recipe import Adam, Chain, LowResolution, Muon, OneCycle, Recipe, SlowStart, StepDecay


def test_paper_to_the_letter():
    assert paper() == Recipe(
        name="paper",
        steps=64_000,
        batch_size=128,
        normalization="pixel_mean",
        pad=4,
        learning_rate=0.1,
        schedule=StepDecay(milestones=(32_000, 48_000), factor=0.1),
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        slow_start=SlowStart(learning_rate=0.01, until_error=80.0, window=100, min_depth=110),
        split="50k",
    )


def test_names_lead_to_recipes_of_that_name():
    assert list(RECIPES) == ["paper", "fast", "faster", "best", "one-cycle", "finetune"]
    assert all(get_recipe(name).name == name for name in RECIPES)
    with pytest.raises(
        UserError,
        match="unknown recipe 'papr' \\(did you mean paper\\?\\): choose from paper, fast, faster, best, one-cycle, ",
    ):
        get_recipe("papr")


def test_recipes_are_frozen_and_checked():
    with pytest.raises(FrozenInstanceError):
        one_cycle().momentum = 0.5
    with pytest.raises(UserError, match="either in steps or in epochs"):
        replace(one_cycle(), steps=10)
    with pytest.raises(UserError, match="either in steps or in epochs"):
        replace(one_cycle(), epochs=None)
    with pytest.raises(UserError, match=r"unknown split '40k' .*: choose from 50k, 45k"):
        replace(one_cycle(), split="40k")
    with pytest.raises(UserError, match=r"unknown padding 'zero' \(did you mean zeros\?\)"):
        replace(one_cycle(), padding="zero")
    with pytest.raises(UserError, match="unknown kind of flips 'never': choose from random, alternating"):
        replace(one_cycle(), flips="never")


def test_compute_counts_small_images_by_their_pixels():
    assert paper().compute(50_000) == 64_000 * 128
    parts = (LowResolution(16, until=0.2), LowResolution(24, until=0.5))
    recipe = replace(one_cycle(), epochs=None, steps=1_000, batch_size=10, low_resolutions=parts)
    assert recipe.compute(50_000) == pytest.approx(10 * (200 / 4 + 300 * 9 / 16 + 500))
    assert [recipe.image_size(step, 1_000) for step in (0, 199, 200, 499, 500, 999)] == [16, 16, 24, 24, None, None]
    with pytest.raises(UserError, match="one after another"):
        replace(recipe, low_resolutions=parts[::-1])
    with pytest.raises(UserError, match="before the last step"):
        replace(recipe, low_resolutions=(LowResolution(16, until=1.1),))


@pytest.mark.parametrize(("name", "share"), [("fast", 10), ("faster", 16), ("best", 1)])
def test_fast_recipes_keep_to_their_share_of_the_papers_compute(name, share):
    recipe, limit = get_recipe(name), 64_000 * 128 / share
    assert limit * 0.999 < recipe.compute(50_000) <= limit
    tuned = {field: getattr(fast(), field) for field in ("steps", "pad", "muon", "norm_adam", "look_ahead")}
    assert replace(recipe, name="fast", **tuned) == fast()  # nothing else differs


def test_json_tells_recipes_apart():
    assert paper().to_json() == paper().to_json()
    assert paper().to_json() != replace(paper(), split="45k").to_json()
    assert paper().to_json()["schedule"] == {"kind": "StepDecay", "milestones": (32_000, 48_000), "factor": 0.1}


def test_what_recipes_did_not_always_have_is_in_json_only_where_it_is_used():
    recipe = replace(one_cycle(), muon=Muon(learning_rate=0.05, momentum=0.85))
    assert not {"norm_adam", "chain"} & set(recipe.to_json())
    assert recipe.to_json()["muon"] == {"learning_rate": 0.05, "momentum": 0.85}
    adam = Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10)
    content = replace(recipe, norm_adam=adam, chain=Chain(gain=7.39)).to_json()
    assert content["norm_adam"] == {"learning_rate": 0.01, "betas": (0.9, 0.99), "eps": 1e-10}
    assert content["chain"]["gain"] == 7.39


def test_a_chain_changes_the_rate_by_its_length():
    recipe = replace(one_cycle(), muon=Muon(learning_rate=0.05, momentum=0.85))
    chained = replace(recipe, chain=Chain(gain=7.39, full_rate_length=18))
    assert recipe.for_chain(54) == recipe
    assert chained.for_chain(1) == recipe
    found = chained.for_chain(54)
    assert found.muon == Muon(learning_rate=0.05 / 3, momentum=0.85)
    assert replace(found, muon=recipe.muon) == chained
    assert chained.for_chain(12) == chained


def test_a_chain_without_muon_keeps_its_rate():
    recipe = replace(paper(), chain=Chain(full_rate_length=18))
    assert recipe.for_chain(54) == recipe


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gain": 1.0}, "chain.gain is 1.0"),
        ({"identity_share": 2}, "chain.identity_share is 2"),
        ({"full_rate_length": 0}, "chain.full_rate_length is 0"),
    ],
)
def test_impossible_changes_of_chains_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Chain(**settings)


def test_time_left_counts_small_images_by_their_pixels():
    recipe = replace(paper(), low_resolutions=(LowResolution(size=16, until=0.5),))
    # Half of 100 steps on a quarter of the pixels: 10 such steps at 1,280 images/s take 1 s; 40 more take 4 s, and
    # the 50 on whole images 20 s.
    assert recipe.compute_between(40, 60, 100) == (10 / 4 + 10) * 128
    assert recipe.full_size_speed(10, 100, 1280.0) == 320
    assert recipe.seconds_left(10, 100, 100, 1280.0) == 24
    assert recipe.seconds_left(0, 60, 100, 1280.0) == 9
    assert paper().seconds_left(10, 100, 100, 1280.0) == 9


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": ""}, "name is '': it must be the recipe's name"),
        ({"batch_size": 0}, "batch_size is 0: it must be a whole number of at least 1"),
        ({"batch_size": 12.5}, "batch_size is 12.5"),
        ({"batch_size": True}, "batch_size is True"),
        ({"normalization": "chanel"}, "unknown normalization 'chanel' .did you mean channel"),
        ({"pad": -1}, "pad is -1"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1: it must be a number above 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1'"),
        ({"schedule": "cosine"}, "schedule is 'cosine': it must be a StepDecay, a OneCycle or a Cosine"),
        ({"momentum": 1.0}, "momentum is 1.0: it must be a number of at least 0 and below 1"),
        ({"momentum": 0.0}, "momentum is 0.0: it must be above 0 with nesterov"),
        ({"nesterov": "no"}, "nesterov is 'no': it must be true or false"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
        ({"decay_norm_and_bias": 1}, "decay_norm_and_bias is 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": float("inf")}, "epochs is inf"),
        ({"epochs": None, "steps": 0}, "steps is 0"),
        ({"epochs": None}, "give its length either in steps or in epochs"),
        ({"padding": "ones"}, "unknown padding 'ones'"),
        ({"flips": "never"}, "unknown kind of flips 'never'"),
        ({"low_resolutions": (16,)}, "low_resolutions is .16,.: it must be a tuple of LowResolution"),
        ({"muon": 0.1}, "muon is 0.1: it must be a Muon"),
        ({"slow_start": 0.1}, "slow_start is 0.1"),
        ({"split": "40k"}, "unknown split '40k'"),
        ({"split_seed": -1}, "split_seed is -1"),
    ],
)
def test_no_field_takes_what_cannot_be(changes, what):
    with pytest.raises(UserError, match=what):
        replace(one_cycle(), **changes)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: StepDecay((0,), 0.1), "schedule.milestones is 0"),
        (lambda: StepDecay((20, 10), 0.1), "schedule.milestones is .20, 10.: it must be in order"),
        (lambda: StepDecay((10,), -0.1), "schedule.factor is -0.1"),
        (lambda: OneCycle(warmup=1.5), "schedule.warmup is 1.5"),
        (lambda: Muon(learning_rate=0, momentum=0.9), "muon.learning_rate is 0"),
        (lambda: Muon(learning_rate=0.1, momentum=-1), "muon.momentum is -1"),
        (lambda: LowResolution(size=0, until=0.5), "low_resolutions.size is 0"),
        (lambda: LowResolution(size=16, until=-0.5), "low_resolutions.until is -0.5"),
        (lambda: SlowStart(-0.1, 80.0, 100, 110), "slow_start.learning_rate is -0.1"),
        (lambda: SlowStart(0.1, -1.0, 100, 110), "slow_start.until_error is -1.0"),
        (lambda: SlowStart(0.1, 80.0, 0, 110), "slow_start.window is 0"),
        (lambda: SlowStart(0.1, 80.0, 100, -1), "slow_start.min_depth is -1"),
    ],
)
def test_no_part_of_a_recipe_takes_what_cannot_be(make, what):
    with pytest.raises(UserError, match=what):
        make()
