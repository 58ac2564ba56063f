"""The named recipes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from deepres.errors import unknown_name
from deepres.recipes.recipe import (
    SPLITS,
    Adam,
    Chain,
    Cosine,
    LookAhead,
    LowResolution,
    Muon,
    OneCycle,
    Recipe,
    SlowStart,
    StepDecay,
)


def paper() -> Recipe:
    """He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    64,000 mini-batches of 128: 164 epochs of the 50,000 training images. Published: ResNet-20 8.75% test error,
    ResNet-56 6.97%. `deepres train resnet20 --recipe paper`, with `--split 45k` for the split that the schedule
    was determined on.
    """
    return Recipe(
        name="paper",
        steps=64_000,  # "terminate training at 64k iterations"
        batch_size=128,  # "a mini-batch size of 128 on two GPUs"
        normalization="pixel_mean",  # "with the per-pixel mean subtracted"
        pad=4,  # "4 pixels are padded on each side, and a 32x32 crop is randomly sampled"
        learning_rate=0.1,  # "we start with a learning rate of 0.1"
        schedule=StepDecay(milestones=(32_000, 48_000), factor=0.1),  # "divide it by 10 at 32k and 48k iterations"
        momentum=0.9,  # "momentum of 0.9"
        nesterov=False,
        weight_decay=0.0001,  # "a weight decay of 0.0001"
        decay_norm_and_bias=True,  # the paper exempts nothing
        # "we use 0.01 to warm up the training until the training error is below 80% (about 400 iterations), and
        # then go back to 0.1"; the window over which that error is taken is not stated.
        slow_start=SlowStart(learning_rate=0.01, until_error=80.0, window=100, min_depth=110),
    )


def one_cycle() -> Recipe:
    """One cycle of SGD in 30 epochs, just under a fifth of the paper's compute: the plain baseline of `fast`.

    `deepres train resnet20 --recipe one-cycle`
    """
    return Recipe(
        name="one-cycle",
        epochs=30,
        batch_size=128,  # as the paper
        normalization="channel",  # one mean and deviation per channel fits images of any size
        pad=4,  # as the paper
        # Smith, "Super-convergence", 2018: one cycle up to a high rate and down to zero replaces the steps.
        learning_rate=0.2,
        schedule=OneCycle(warmup=0.15),
        momentum=0.9,  # as the paper
        nesterov=True,
        weight_decay=0.0005,  # Zagoruyko, Komodakis, "Wide residual networks", 2016, section 3
        decay_norm_and_bias=True,
    )


def fast() -> Recipe:
    """A tenth of the paper's compute: Muon and Adam, smaller images first, for plain nets a start near the identity.

    docs/fast-recipe.md has the evidence.

    `deepres train resnet20 --recipe fast`
    """
    recipe = Recipe(
        name="fast",
        steps=1,  # set below
        batch_size=256,
        normalization="channel",  # one mean and deviation per channel fits images of any size
        # Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024: shifts of 2 pixels at most, reflection as
        # padding; section 3.6: alternating flips.
        pad=2,
        padding="reflection",
        flips="alternating",
        # Tan, Le, "EfficientNetV2", 2021: progressive learning.
        low_resolutions=(LowResolution(size=16, until=0.2), LowResolution(size=24, until=0.8)),
        muon=Muon(learning_rate=0.05, momentum=0.8),
        norm_adam=Adam(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10),
        chain=Chain(gain=7.39, identity_share=0.5, full_rate_length=9),  # gain: e²
        learning_rate=0.03,  # of what neither Muon nor Adam trains: the last layer
        schedule=OneCycle(warmup=0.05),
        momentum=0.9,  # as the paper
        nesterov=True,
        weight_decay=0.0001,  # as the paper
        decay_norm_and_bias=True,  # as the paper
    )
    return recipe.with_compute(paper().compute(SPLITS["50k"]) / 10)


def faster() -> Recipe:
    """A sixteenth of the paper's compute: `fast`, but that gradients are taken ahead of the weights, at other rates.

    docs/fast-recipe.md has the evidence.

    `deepres train resnet20 --recipe faster`
    """
    recipe = fast()
    assert recipe.muon is not None
    assert recipe.norm_adam is not None
    recipe = replace(
        recipe,
        name="faster",
        muon=replace(recipe.muon, learning_rate=0.04),
        norm_adam=replace(recipe.norm_adam, learning_rate=0.03),
        look_ahead=LookAhead(reach=0.6),  # Yau et al., 2026: 0.6 with Muon
    )
    return recipe.with_compute(paper().compute(SPLITS["50k"]) / 16)


def best() -> Recipe:
    """The paper's whole compute, spent on a low error: `fast`, ten times as long, with the paper's shifts of 4 pixels.

    docs/fast-recipe.md has the evidence.

    `deepres train resnet20 --recipe best`
    """
    recipe = replace(fast(), name="best", pad=4)
    return recipe.with_compute(paper().compute(SPLITS["50k"]))


def finetune() -> Recipe:
    """Twenty epochs at a low rate from trained weights, the new last layer at ten times that rate.

    `deepres finetune resnet20 FOLDER`
    """
    return Recipe(
        name="finetune",
        epochs=20,
        batch_size=64,
        normalization="channel",  # not used: the trained weights bring theirs
        pad=4,  # as the paper
        # A tenth of the rate of the first training: Girshick, Donahue, Darrell, Malik, "Rich feature hierarchies for
        # accurate object detection and semantic segmentation", 2014, section 2.3.
        learning_rate=0.01,
        schedule=Cosine(warmup=0.1),
        momentum=0.9,  # as the paper
        nesterov=True,
        weight_decay=0.0001,  # as the paper
        decay_norm_and_bias=True,  # as the paper
        head_rate=10.0,  # as in the fine-tuning example of Caffe, 2014
    )


RECIPES: Mapping[str, Callable[[], Recipe]] = MappingProxyType(
    {"paper": paper, "fast": fast, "faster": faster, "best": best, "one-cycle": one_cycle, "finetune": finetune}
)


def get_recipe(name: str) -> Recipe:
    """Make a recipe by name.

    Raises:
        UserError: an unknown name; the message lists the known ones.

    Example:
        >>> import deepres
        >>> deepres.get_recipe("paper").steps
        64000
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()
