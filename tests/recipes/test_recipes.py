from dataclasses import FrozenInstanceError, replace

import pytest

from deepres.errors import UserError
from deepres.recipes.named import RECIPES, fast, get_recipe, one_cycle, paper
from deepres.recipes.recipe import Adam, LowResolution, Muon, Recipe, SlowStart, StepDecay


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
    assert list(RECIPES) == ["paper", "fast", "faster", "one-cycle"]
    assert all(get_recipe(name).name == name for name in RECIPES)
    with pytest.raises(
        UserError,
        match="unknown recipe 'papr' \\(did you mean paper\\?\\): choose from paper, fast, faster, one-cycle",
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


@pytest.mark.parametrize(("name", "share"), [("fast", 10), ("faster", 16)])
def test_fast_recipes_keep_to_their_share_of_the_papers_compute(name, share):
    recipe, limit = get_recipe(name), 64_000 * 128 / share
    assert limit * 0.999 < recipe.compute(50_000) <= limit
    assert replace(recipe, name="fast", steps=fast().steps) == fast()  # nothing else differs


def test_json_tells_recipes_apart():
    assert paper().to_json() == paper().to_json()
    assert paper().to_json() != replace(paper(), split="45k").to_json()
    assert paper().to_json()["schedule"] == {"kind": "StepDecay", "milestones": (32_000, 48_000), "factor": 0.1}


def test_what_recipes_did_not_always_have_is_in_json_only_where_it_is_used():
    recipe = replace(one_cycle(), muon=Muon(learning_rate=0.05, momentum=0.85))
    later = {"norm_adam", "chain_gain", "identity_share"}
    assert not later & set(recipe.to_json())
    assert recipe.to_json()["muon"] == {"learning_rate": 0.05, "momentum": 0.85}
    adam = Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10)
    used = replace(recipe, norm_adam=adam, chain_gain=7.39, identity_share=0.5)
    content = replace(used, muon=Muon(0.05, 0.85, full_rate_length=18)).to_json()
    assert content["norm_adam"] == {"learning_rate": 0.01, "betas": (0.9, 0.99), "eps": 1e-10}
    assert [content["chain_gain"], content["identity_share"]] == [7.39, 0.5]
    assert content["muon"]["full_rate_length"] == 18


def test_time_left_counts_small_images_by_their_pixels():
    recipe = replace(paper(), low_resolutions=(LowResolution(size=16, until=0.5),))
    # Half of 100 steps on a quarter of the pixels: 10 such steps at 1,280 images/s take 1 s; 40 more take 4 s, and
    # the 50 on whole images 20 s.
    assert recipe.compute_between(40, 60, 100) == (10 / 4 + 10) * 128
    assert recipe.full_size_speed(10, 100, 1280.0) == 320
    assert recipe.seconds_left(10, 100, 100, 1280.0) == 24
    assert recipe.seconds_left(0, 60, 100, 1280.0) == 9
    assert paper().seconds_left(10, 100, 100, 1280.0) == 9
