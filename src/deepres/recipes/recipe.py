"""Training recipes: frozen dataclasses, made by named functions, with the source beside each number."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from types import MappingProxyType
from typing import Any

from deepres.errors import UserError, unknown_name
from deepres.recipes.checks import a_number, a_truth_value, a_whole_number, must_be
from deepres.recipes.parts import Adam as Adam
from deepres.recipes.parts import Chain as Chain
from deepres.recipes.parts import Cosine as Cosine
from deepres.recipes.parts import LookAhead as LookAhead
from deepres.recipes.parts import LowResolution as LowResolution
from deepres.recipes.parts import Muon as Muon
from deepres.recipes.parts import OneCycle as OneCycle
from deepres.recipes.parts import OtherOptimizer as OtherOptimizer
from deepres.recipes.parts import SlowStart as SlowStart
from deepres.recipes.parts import StepDecay as StepDecay

SPLITS: Mapping[str, int] = MappingProxyType({"50k": 50_000, "45k": 45_000})  # training images of CIFAR-10 in each
NORMALIZATIONS = ("pixel_mean", "channel")
PADDINGS = ("zeros", "reflection")
SMALL_IMAGES = ("resampled", "cropped")
FLIPS = ("random", "alternating", "none")

# What recipes had from the beginning, and recipe.json of every run holds.
FIRST_FIELDS = frozenset(
    (
        *("name", "batch_size", "normalization", "pad", "learning_rate", "schedule", "momentum", "nesterov"),
        *("weight_decay", "decay_norm_and_bias", "steps", "epochs", "padding", "flips", "low_resolutions", "muon"),
        *("slow_start", "split", "split_seed"),
    )
)


def held_out_name(split: str) -> str:
    """Return the set that is evaluated at each epoch: "test", or "val" with the 45k/5k split."""
    return "test" if split == "50k" else "val"


@dataclass(frozen=True)
class Recipe:
    """How a net is trained. Complete: with a model name and a seed it determines the run.

    Example:
        >>> from dataclasses import replace
        >>> import deepres
        >>> recipe = replace(deepres.get_recipe("paper"), name="short", steps=1000)
        >>> recipe.total_epochs(num_train=50_000)
        3
    """

    name: str
    batch_size: int
    """Images per mini-batch."""
    normalization: str
    """"pixel_mean" or "channel", see `deepres.data.augment.Normalization`."""
    pad: int
    """Pixels of padding on each side before the random crop."""
    learning_rate: float
    """The highest of the schedule."""
    schedule: StepDecay | OneCycle | Cosine
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
    """Which images are flipped left to right: "random", each with probability 1/2 every time; "alternating", half of
    them in the first epoch and the others in the next, and so on; or "none", as digits must not be flipped."""
    low_resolutions: tuple[LowResolution, ...] = ()
    """Parts of the training on smaller images, in order; the rest is on images as they are."""
    small_images: str = "resampled"
    """How `low_resolutions` makes images smaller: "resampled", so that they show the same, or "cropped" to the middle
    after the random crop: where `pad` is half of what is left out, any window of the image and nothing of the padding.
    The library Composer has both, in its progressive resizing."""
    muon: Muon | None = None
    """If set, how the convolutions are trained; `learning_rate`, `momentum` and `weight_decay` are of what neither
    this nor `norm_adam` trains."""
    slow_start: SlowStart | None = None
    norm_adam: Adam | None = None
    """If set, how batch normalization's scales and shifts are trained."""
    chain: Chain | None = None
    """If set, what is changed for nets with layers in series that no shortcut bridges, as in plain nets."""
    look_ahead: LookAhead | None = None
    optimizer: OtherOptimizer | None = None
    """If set, what trains the net in the place of SGD, Muon and Adam."""
    head_rate: float = 1.0
    """The last layer's learning rate relative to that of the others; above 1 for fine-tuning, where it starts anew."""
    clip_norm: float | None = None
    """If set, gradients are scaled down, all by one factor, to at most this norm. Pascanu, Mikolov, Bengio, "On the
    difficulty of training recurrent neural networks", 2013."""
    ema: float | None = None
    """If set, the decay per step of a running mean of the weights and statistics, which is evaluated beside the last
    ones. Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Tarvainen, Valpola, "Mean
    teachers are better role models", 2017."""
    label_smoothing: float = 0.0
    """The share of each label that is spread over all classes. Szegedy et al., "Rethinking the Inception architecture
    for computer vision", 2016, section 7."""
    cutout: int | None = None
    """If set, the side of a square, around a random point of each image, that is made zero: the mean. DeVries, Taylor,
    "Improved regularization of convolutional neural networks with Cutout", 2017."""
    mixup: float | None = None
    """If set, images and labels of a mini-batch are mixed in pairs by a share drawn from Beta(mixup, mixup). Zhang,
    Cisse, Dauphin, Lopez-Paz, "mixup: Beyond empirical risk minimization", 2018."""
    cutmix: float | None = None
    """If set, a rectangle of each image, of a share of its area drawn from Beta(cutmix, cutmix), is another image's,
    and so is that share of its label. Yun et al., "CutMix", 2019."""
    mixing_until: float = 1.0
    """The share of the training after which mixup and CutMix stop. He et al., "Data augmentation revisited", 2019, end
    on images that are not mixed."""
    augmentation: str | None = None
    """If set, FILE.py:NAME or module:NAME of a function of normalized, cropped and flipped images, float32
    (B, 3, H, W), labels, int64 (B,), and a torch.Generator, which returns images and labels: int64 (B,), or float32
    (B, num_classes) where each row is a distribution."""
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
        schedules = isinstance(self.schedule, StepDecay | OneCycle | Cosine)
        must_be(schedules, "schedule", self.schedule, "a StepDecay, a OneCycle or a Cosine")
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
            ("kind of small images", self.small_images, SMALL_IMAGES),
            ("kind of flips", self.flips, FLIPS),
        ):
            if name not in known:
                raise unknown_name(kind, name, known)
        for field, value, kind_of_value in (
            ("muon", self.muon, Muon),
            ("slow_start", self.slow_start, SlowStart),
            ("norm_adam", self.norm_adam, Adam),
            ("chain", self.chain, Chain),
            ("look_ahead", self.look_ahead, LookAhead),
            ("optimizer", self.optimizer, OtherOptimizer),
        ):
            must_be(value is None or isinstance(value, kind_of_value), field, value, f"a {kind_of_value.__name__}")
        self._check_ingredients()
        parts = all(isinstance(part, LowResolution) for part in self.low_resolutions)
        must_be(parts, "low_resolutions", self.low_resolutions, "a tuple of LowResolution")
        ends = [0.0, *(part.until for part in self.low_resolutions), 1.0]
        if ends != sorted(ends):
            raise UserError(f"recipe {self.name}: low resolutions must end one after another, before the last step")

    def _check_ingredients(self) -> None:
        a_number("head_rate", self.head_rate, above=0)
        a_number("label_smoothing", self.label_smoothing, at_least=0, below=1)
        if self.cutout is not None:
            a_whole_number("cutout", self.cutout, at_least=1)
        for name in ("clip_norm", "mixup", "cutmix"):
            if (value := getattr(self, name)) is not None:
                a_number(name, value, above=0)
        a_number("mixing_until", self.mixing_until, above=0, at_most=1)
        if self.ema is not None:
            a_number("ema", self.ema, at_least=0, below=1)
        if self.augmentation is not None:
            named = isinstance(self.augmentation, str) and ":" in self.augmentation
            must_be(named, "augmentation", self.augmentation, "FILE.py:NAME or module:NAME")
        if self.mixup is not None and self.cutmix is not None:
            raise UserError(f"recipe {self.name}: mixup and cutmix exclude each other: switch one off with =none")
        if self.mixing_until != 1 and self.mixup is None and self.cutmix is None:
            raise UserError(f"recipe {self.name}: mixing_until is when mixup or cutmix stops: set one of them too")
        if self.optimizer is not None and (self.muon is not None or self.norm_adam is not None):
            raise UserError(
                f"recipe {self.name}: Muon or Adam trains a part of the net: switch them off with muon=none and "
                f"norm_adam=none to train all of it by {self.optimizer.name}"
            )

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

    def for_images_of(self, rows: int) -> "Recipe":
        """Return the recipe for images of another size than 32 x 32: its low resolutions in proportion."""
        parts = tuple(replace(part, size=max(1, round(part.size * rows / 32))) for part in self.low_resolutions)
        return self if parts == self.low_resolutions else replace(self, low_resolutions=parts)

    def for_chain(self, length: int) -> "Recipe":
        """Return the recipe as it applies to a net with so many layers in series that no shortcut bridges."""
        if self.chain is None:
            return self
        if length <= 1:
            return replace(self, chain=None)
        if self.muon is None:
            return self
        rate = self.muon.learning_rate * self.chain.rate_factor(length)
        return replace(self, muon=replace(self.muon, learning_rate=rate))

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
        for field in dataclass_fields(self):
            if field.name not in FIRST_FIELDS and fields[field.name] == field.default:
                del fields[field.name]
        return fields
