"""The parts of a recipe that have settings of their own, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepres.recipes.checks import a_number, a_whole_number, must_be


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


class WarmedUp:
    """A schedule that begins with a linear warm-up."""

    warmup: float

    def __post_init__(self) -> None:
        a_number("schedule.warmup", self.warmup, at_least=0, at_most=1)

    @property
    def up(self) -> str:
        """The warm-up in words; empty where there is none."""
        return f"linear up for {self.warmup:.0%} of the steps, then " if self.warmup else ""


@dataclass(frozen=True)
class OneCycle(WarmedUp):
    """From zero linearly up to the learning rate, then linearly down to zero at the last step."""

    warmup: float
    """The share of all steps spent going up."""

    def __str__(self) -> str:
        return f"{self.up}linear to zero"


@dataclass(frozen=True)
class Cosine(WarmedUp):
    """From zero linearly up to the learning rate, then down to zero at the last step along half a cosine.

    Loshchilov, Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017, without restarts.
    """

    warmup: float = 0.0
    """The share of all steps spent going up."""

    def __str__(self) -> str:
        return f"{self.up}cosine to zero"


@dataclass(frozen=True)
class Muon:
    """The convolutions are trained by `deepres.training.muon.Muon`."""

    learning_rate: float
    """The highest of the schedule: the size of a step relative to the weights."""
    momentum: float

    def __post_init__(self) -> None:
        a_number("muon.learning_rate", self.learning_rate, above=0)
        a_number("muon.momentum", self.momentum, at_least=0, below=1)

    def __str__(self) -> str:
        return f"{self.learning_rate:g}, momentum {self.momentum:g}"


@dataclass(frozen=True)
class Adam:
    """Batch normalization's scales and shifts are trained by Adam, without decay, instead of SGD.

    Their gradients differ by orders of magnitude between the layers of a deep plain net, so that no single rate of SGD
    serves all. Jordan et al., "Muon", 2024, trains by Adam whatever is no matrix.
    """

    learning_rate: float
    """The highest of the schedule."""
    betas: tuple[float, float]
    """The decays per step of the running means of the gradient and of its square."""
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
class LookAhead:
    """Each gradient is taken ahead of the weights, along the running mean of their past changes.

    Yau et al., arXiv 2605.25395, 2026, "EMA-Nesterov". All parameters but the last linear layer's look ahead, see
    `deepres.training.look_ahead`. Evaluations meanwhile, and the weights of a run that is ended meanwhile, are those
    ahead.
    """

    reach: float
    """How many times the mean change of a step, where the schedule is highest; in proportion to it elsewhere."""
    decay: float = 0.99
    """What is kept of the mean at each step."""
    begin: float = 0.16
    """The share of all steps before which nothing looks ahead."""
    end: float = 0.77
    """The share of all steps after which nothing does."""

    def __post_init__(self) -> None:
        a_number("look_ahead.reach", self.reach, above=0)
        a_number("look_ahead.decay", self.decay, at_least=0, below=1)
        a_number("look_ahead.begin", self.begin, at_least=0, at_most=1)
        a_number("look_ahead.end", self.end, at_least=self.begin, at_most=1)

    def __str__(self) -> str:
        part = f"from {self.begin:.0%} to {self.end:.0%} of the steps"
        return f"{self.reach:g} mean changes, decay {self.decay:g}, {part}"


@dataclass(frozen=True)
class Chain:
    """What is changed for nets with a chain: layers in series that no shortcut bridges, depth - 2 in a plain net.

    Such a net is chaotic at its start, and steps of its layers add up; see `deepres.training.start`. Nets whose blocks
    all have shortcuts are trained as if this were not there.
    """

    gain: float | None = None
    """If set, batch normalization's shifts start at the value, the same in all, at which the chain multiplies the
    square of a small difference between two images by no more than this, see `deepres.training.start.initial_shift`.
    Qi, You, Wang, Ma, Malik, "Deep isometric learning for visual recognition", 2020, shift ReLU by 1 for that end."""
    identity_share: float | None = None
    """If set, the filters start as a sum of He's random ones and of the identity, which has this share of the squared
    norm. See `deepres.training.start`; Zagoruyko, Komodakis, "DiracNets", 2017."""
    full_rate_length: int | None = None
    """If set, Muon's rate is multiplied by min(1, full_rate_length / L) for a chain of L layers: all of them turn by
    one angle, and their effects on the output add up. Large, Liu, Huh, Bahng, Isola, Bernstein, "Scalable
    optimization in the modular norm", 2024: each of L modules in a row of equal mass gets 1/L of the rate."""

    def __post_init__(self) -> None:
        if self.gain is not None:
            a_number("chain.gain", self.gain, above=1)
        if self.identity_share is not None:
            a_number("chain.identity_share", self.identity_share, at_least=0, at_most=1)
        if self.full_rate_length is not None:
            a_whole_number("chain.full_rate_length", self.full_rate_length, at_least=1)

    def rate_factor(self, length: int) -> float:
        """Return the factor of Muon's rate for a chain of so many layers."""
        return min(1.0, (self.full_rate_length or length) / length)


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
class OtherOptimizer:
    """An optimizer of `torch.optim`, or of one's own, in the place of SGD, Muon and Adam.

    The recipe's `learning_rate` and `weight_decay` are given to it, `momentum` and `nesterov` are SGD's alone.
    """

    name: str
    """A class of `torch.optim`, such as "AdamW", or FILE.py:NAME or module:NAME of one that is called as those are."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of its own, such as `betas`."""

    def __post_init__(self) -> None:
        must_be(isinstance(self.name, str) and bool(self.name), "optimizer.name", self.name, "a class of torch.optim")
        fixed = {"lr": "learning_rate", "weight_decay": "weight_decay", "params": "nothing: they are the net's"}
        for key in self.arguments:
            must_be(key not in fixed, f"optimizer.arguments.{key}", self.arguments[key], f"given as {fixed.get(key)}")

    def __str__(self) -> str:
        return ", ".join([self.name, *(f"{key} {value}" for key, value in self.arguments.items())])
