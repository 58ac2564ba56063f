"""Training recipes: frozen dataclasses, made by named functions, with the source beside each number."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from deepres.errors import UserError, unknown_name
from deepres.recipes.checks import a_number, a_truth_value, a_whole_number, must_be

SPLITS: Mapping[str, int] = MappingProxyType({"50k": 50_000, "45k": 45_000})  # training images of CIFAR-10 in each
NORMALIZATIONS = ("pixel_mean", "channel")
PADDINGS = ("zeros", "reflection")
FLIPS = ("random", "alternating")


def held_out_name(split: str) -> str:
    """Return the set that is evaluated at each epoch: "test", or "val" with the 45k/5k split."""
    return "test" if split == "50k" else "val"


@dataclass(frozen=True)
class StepDecay:
    """A constant learning rate, multiplied by `factor` at each milestone."""

    milestones: tuple[int, ...]
    """Steps after which the rate drops: at 32,000, step 32,000 (counted from 0) is the first of the lower rate."""
    factor: float

    def __post_init__(self) -> None:
        for milestone in self.milestones:
            a_whole_number("schedule.milestones", milestone, at_least=1)
        must_be(list(self.milestones) == sorted(self.milestones), "schedule.milestones", self.milestones, "in order")
        a_number("schedule.factor", self.factor, above=0)

    def __str__(self) -> str:
        return f"x {self.factor:g} at {', '.join(f'{m:,}' for m in self.milestones)} steps"


@dataclass(frozen=True)
class OneCycle:
    """From zero linearly up to the learning rate, then linearly down to zero at the last step."""

    warmup: float
    """The share of all steps spent going up."""

    def __post_init__(self) -> None:
        a_number("schedule.warmup", self.warmup, at_least=0, at_most=1)

    def __str__(self) -> str:
        up = f"linear up for {self.warmup:.0%} of the steps, then " if self.warmup else ""
        return f"{up}linear to zero"


@dataclass(frozen=True)
class Muon:
    """The convolutions are trained by `deepres.training.optimizers.Muon`, all else by SGD."""

    learning_rate: float
    """The highest of the schedule: the size of a step relative to the weights."""
    momentum: float
    full_rate_length: int | None = None
    """If set, a net whose chain (see `deepres.training.start.chain_length`) is L layers long takes the rate times
    min(1, full_rate_length / L): all layers of a chain turn by one angle, and their effects on its output add up.
    Source: Large, Liu, Huh, Bahng, Isola, Bernstein, "Scalable optimization in the modular norm", 2024: each of L
    modules in a row of equal mass gets 1/L of the rate."""

    def rate(self, chain_length: int) -> float:
        """Return the highest learning rate for a net with a chain of so many layers."""
        return self.learning_rate * min(1.0, (self.full_rate_length or chain_length) / chain_length)

    def __post_init__(self) -> None:
        a_number("muon.learning_rate", self.learning_rate, above=0)
        a_number("muon.momentum", self.momentum, at_least=0, below=1)
        if self.full_rate_length is not None:
            a_whole_number("muon.full_rate_length", self.full_rate_length, at_least=1)

    def __str__(self) -> str:
        chains = f" x min(1, {self.full_rate_length} / chain length)" if self.full_rate_length else ""
        return f"{self.learning_rate:g}{chains}, momentum {self.momentum:g}"


@dataclass(frozen=True)
class Adam:
    """Batch normalization's scales and shifts are trained by Adam, without decay, instead of SGD.

    Their gradients differ by orders of magnitude between the layers of a deep plain net, so that no single rate of SGD
    serves all. Jordan et al., "Muon", 2024, trains by Adam whatever is no matrix.
    """

    learning_rate: float
    """The highest of the schedule."""
    betas: tuple[float, float]
    """Of the running means of the gradient and of its square."""
    eps: float

    def __post_init__(self) -> None:
        a_number("norm_adam.learning_rate", self.learning_rate, above=0)
        must_be(isinstance(self.betas, tuple) and len(self.betas) == 2, "norm_adam.betas", self.betas, "two numbers")
        for beta in self.betas:
            a_number("norm_adam.betas", beta, at_least=0, below=1)
        a_number("norm_adam.eps", self.eps, above=0)

    def __str__(self) -> str:
        return f"{self.learning_rate:g}, betas {self.betas[0]:g} and {self.betas[1]:g}"


@dataclass(frozen=True)
class LowResolution:
    """The first part of a training on images made smaller, which cost less in proportion to their pixels."""

    size: int
    """Rows and columns of an image."""
    until: float
    """The share of all steps after which the next part begins."""

    def __post_init__(self) -> None:
        a_whole_number("low_resolutions.size", self.size, at_least=1)
        a_number("low_resolutions.until", self.until, at_least=0)

    def __str__(self) -> str:
        return f"{self.size} x {self.size} until {self.until:.0%} of the steps"


@dataclass(frozen=True)
class SlowStart:
    """A low constant rate at the start of very deep nets, until the training error is below a bound."""

    learning_rate: float
    until_error: float
    """Training error in percent, over the last `window` mini-batches."""
    window: int
    """Mini-batches; at least so many steps are taken at the low rate."""
    min_depth: int
    """Nets with fewer weighted layers start at the full rate."""

    def __post_init__(self) -> None:
        a_number("slow_start.learning_rate", self.learning_rate, above=0)
        a_number("slow_start.until_error", self.until_error, at_least=0)
        a_whole_number("slow_start.window", self.window, at_least=1)
        a_whole_number("slow_start.min_depth", self.min_depth, at_least=0)

    def __str__(self) -> str:
        return (
            f"{self.learning_rate:g} until the training error of {self.window} mini-batches is below "
            f"{self.until_error:g}%, for depth {self.min_depth} and more"
        )


@dataclass(frozen=True)
class Recipe:
    """How a net is trained. Complete: with a model name and a seed it determines the run."""

    name: str
    batch_size: int
    """Images per mini-batch."""
    normalization: str
    """"pixel_mean" or "channel", see `deepres.data.augment.Normalization`."""
    pad: int
    """Pixels of padding on each side before the random crop."""
    learning_rate: float
    """The highest of the schedule."""
    schedule: StepDecay | OneCycle
    momentum: float
    nesterov: bool
    weight_decay: float
    """L2 penalty, added to the gradient."""
    decay_norm_and_bias: bool
    """Whether batch normalisation's scales and shifts and the biases decay too."""
    steps: int | None = None
    """The length in mini-batches; either this or `epochs`."""
    epochs: float | None = None
    """The length in passes over the training images."""
    padding: str = "zeros"
    """What is padded: "zeros", or the image's "reflection"."""
    flips: str = "random"
    """Which images are flipped left to right: "random", each with probability 1/2 every time, or "alternating",
    half of them in the first epoch and the others in the next, and so on."""
    low_resolutions: tuple[LowResolution, ...] = ()
    """Parts of the training on smaller images, in order; the rest is on images as they are."""
    muon: Muon | None = None
    """If set, how the convolutions are trained; `learning_rate`, `momentum` and `weight_decay` are of all else."""
    slow_start: SlowStart | None = None
    norm_adam: Adam | None = None
    """If set, how batch normalization's scales and shifts are trained."""
    chain_gain: float | None = None
    """If set, batch normalization's shifts in a chain of layers without shortcuts start at the value, the same in all,
    at which the chain multiplies the square of a small difference between two images by no more than this. See
    `deepres.training.start.initial_shift`; Qi, You, Wang, Ma, Malik, "Deep isometric learning for visual recognition",
    2020, shift ReLU by 1 for the same end."""
    identity_share: float | None = None
    """If set, the filters of a chain start as a sum of He's random ones and of the identity, which has this share of
    their squared norm. See `deepres.training.start`; Zagoruyko, Komodakis, "DiracNets", 2017."""
    split: str = "50k"
    """"50k": train on all training images, the test set is evaluated at every epoch. "45k": train on 45,000,
    evaluate the other 5,000 (val) at every epoch, and the test set once, at the end."""
    split_seed: int = 0
    """Fixes which 5,000 images are val."""

    def __post_init__(self) -> None:
        must_be(isinstance(self.name, str) and bool(self.name), "name", self.name, "the recipe's name")
        a_whole_number("batch_size", self.batch_size, at_least=1)
        a_whole_number("pad", self.pad, at_least=0)
        a_number("learning_rate", self.learning_rate, above=0)
        schedules = isinstance(self.schedule, StepDecay | OneCycle)
        must_be(schedules, "schedule", self.schedule, "a StepDecay or a OneCycle")
        a_number("momentum", self.momentum, at_least=0, below=1)
        a_truth_value("nesterov", self.nesterov)
        must_be(not self.nesterov or self.momentum > 0, "momentum", self.momentum, "above 0 with nesterov")
        a_number("weight_decay", self.weight_decay, at_least=0)
        a_truth_value("decay_norm_and_bias", self.decay_norm_and_bias)
        if (self.steps is None) == (self.epochs is None):
            raise UserError(f"recipe {self.name}: give its length either in steps or in epochs")
        if self.steps is not None:
            a_whole_number("steps", self.steps, at_least=1)
        if self.epochs is not None:
            a_number("epochs", self.epochs, above=0)
        a_whole_number("split_seed", self.split_seed, at_least=0)
        for kind, name, known in (
            ("split", self.split, SPLITS),
            ("normalization", self.normalization, NORMALIZATIONS),
            ("padding", self.padding, PADDINGS),
            ("kind of flips", self.flips, FLIPS),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        for field, value, kind_of_value in (
            ("muon", self.muon, Muon),
            ("slow_start", self.slow_start, SlowStart),
            ("norm_adam", self.norm_adam, Adam),
        ):
            must_be(value is None or isinstance(value, kind_of_value), field, value, f"a {kind_of_value.__name__}")
        if self.chain_gain is not None:
            a_number("chain_gain", self.chain_gain, above=1)
        if self.identity_share is not None:
            a_number("identity_share", self.identity_share, at_least=0, at_most=1)
        parts = all(isinstance(part, LowResolution) for part in self.low_resolutions)
        must_be(parts, "low_resolutions", self.low_resolutions, "a tuple of LowResolution")
        ends = [0.0, *(part.until for part in self.low_resolutions), 1.0]
        if ends != sorted(ends):
            raise UserError(f"recipe {self.name}: low resolutions must end one after another, before the last step")

    @property
    def held_out(self) -> str:
        """The set that is evaluated at each epoch: "test" or "val"."""
        return held_out_name(self.split)

    def total_steps(self, num_train: int) -> int:
        """Return the length in mini-batches for a training set of `num_train` images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return math.ceil(self.epochs * num_train / self.batch_size)

    def total_epochs(self, num_train: int) -> int:
        """Return the number of passes over the training images, the last one perhaps in part."""
        steps = self.total_steps(num_train)
        return (steps - 1) * self.batch_size // num_train + 1

    def parts(self, total_steps: int) -> list[tuple[int | None, int, int]]:
        """Return the parts of a training: rows of an image (None: as it is), first step, step after the last."""
        sizes: list[int | None] = [*(part.size for part in self.low_resolutions), None]
        ends = [*(round(part.until * total_steps) for part in self.low_resolutions), total_steps]
        return list(zip(sizes, [0, *ends[:-1]], ends, strict=True))

    @property
    def small_sizes(self) -> list[int]:
        """Rows of the images that it trains on before whole ones."""
        return [part.size for part in self.low_resolutions]

    def image_size(self, step: int, total_steps: int) -> int | None:
        """Return the rows and columns of the images of a step, counted from 0; None: as they are."""
        return next((size for size, _, end in self.parts(total_steps) if step < end), None)

    def compute(self, num_train: int, *, steps: int | None = None, size: int = 32) -> float:
        """Return the training's compute in images of full size: small ones count in proportion to their pixels.

        That is exact for the convolutions, which do all but 0.002% of the multiplications.

        Args:
            num_train: images of the training set.
            steps: of the first so many steps; None: of all.
            size: rows and columns of an image at full size.
        """
        total = self.total_steps(num_train)
        last = total if steps is None else steps
        pixels = sum((min(end, last) - min(begin, last)) * (low or size) ** 2 for low, begin, end in self.parts(total))
        return pixels * self.batch_size / size**2

    def compute_between(self, begin: int, end: int, total_steps: int) -> float:
        """Return what the steps from `begin` to `end` cost, see `compute`, in a schedule of `total_steps`."""
        schedule = replace(self, steps=total_steps, epochs=None)  # in steps: num_train does not matter
        return schedule.compute(num_train=1, steps=end) - schedule.compute(num_train=1, steps=begin)

    def full_size_speed(self, step: int, total_steps: int, images_per_second: float) -> float:
        """Return the speed in images of full size per second, small ones counted as `compute` counts them.

        Args:
            step: steps that were done; before the first, the speed is taken to be that step's.
            total_steps: of the whole schedule.
            images_per_second: mean speed so far, whatever the size of the images.
        """
        done = max(step, 1)
        return images_per_second * self.compute_between(0, done, total_steps) / (done * self.batch_size)

    def seconds_left(self, step: int, target: int, total_steps: int, images_per_second: float) -> float:
        """Estimate the time from one step to the step `target`; the other arguments are those of `full_size_speed`."""
        images = self.compute_between(step, target, total_steps)
        return images / self.full_size_speed(step, total_steps, images_per_second)

    def with_compute(self, images: float) -> "Recipe":
        """Return the recipe with as many steps as cost no more than `images` images of full size (see `compute`)."""
        long = replace(self, steps=1_000_000, epochs=None)
        steps = math.ceil(images / long.compute(num_train=1) * 1_000_000)  # in steps: num_train does not matter
        while (recipe := replace(long, steps=steps)).compute(num_train=1) > images:
            steps -= 1
        return recipe

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain data; two recipes are the same if and only if these are."""
        fields = asdict(self)
        fields["schedule"] = {"kind": type(self.schedule).__name__, **fields["schedule"]}
        # Fields that recipes did not have from the beginning are absent where they are off, so that the recipe.json of
        # an older run is still that of its recipe.
        for name in ("norm_adam", "chain_gain", "identity_share"):
            if fields[name] is None:
                del fields[name]
        if self.muon and self.muon.full_rate_length is None:
            del fields["muon"]["full_rate_length"]
        return fields
