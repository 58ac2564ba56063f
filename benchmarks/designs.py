"""Designs of experiments: which variants of a recipe to train so that the effect of each factor can be told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean


@dataclass(frozen=True)
class Design:
    """Variants of which each effect has half, so that each is estimated from all of them."""

    variants: tuple[str, ...]
    effects: Mapping[str, tuple[bool, ...]]
    """For each effect, which of the variants have it."""
    noise: tuple[str, ...]
    """Effects of nothing, or of what is taken to be nothing: their size is the standard error of the others."""


def half_factorial(factors: Sequence[str], variants: Sequence[str]) -> Design:
    """Cross four factors in 8 of their 16 combinations.

    A pair's effect is half of what one of its factors changes in the effect of the other; in a half of the factorial
    it is added to that of the two other factors, so that three such sums are all that can be said of interactions.
    Taken for noise, they make the standard error too large where there are interactions.
    """
    single = {factor: tuple(factor in variant.split("+") for variant in variants) for factor in factors}
    first, *others = factors
    pairs = {
        f"{first} x {other}": tuple(one == two for one, two in zip(single[first], single[other], strict=True))
        for other in others
    }
    return Design(tuple(variants), single | pairs, tuple(pairs))


def factorial(factors: Sequence[str], base: str) -> Design:
    """Cross three factors, each of them one of `FACTORS` or several joined by +; interactions are taken for noise."""
    numbers = range(1 << len(factors))
    with_factor = {name: tuple(bool(number >> i & 1) for number in numbers) for i, name in enumerate(factors)}
    single = {name.replace("+", ", "): has for name, has in with_factor.items()}
    first, second, third = single
    interactions = {
        " x ".join(names): tuple(
            sum(single[name][number] for name in names) % 2 == len(names) % 2 for number in numbers
        )
        for names in ((first, second), (first, third), (second, third), (first, second, third))
    }
    variants = ["+".join([base, *(name for name in factors if with_factor[name][number])]) for number in numbers]
    return Design(tuple(variants), single | interactions, tuple(interactions))


def screening(factors: Sequence[str], base: str = "none") -> Design:
    """Vary up to eleven factors in twelve variants; what is left over of the eleven columns stays empty.

    All of them start from a base, "none" or factors that every variant has.

    An interaction of two factors spreads over the columns of the others, a third of it in each.
    Plackett, Burman, "The design of optimum multifactorial experiments", 1946.
    """
    generator = "++-+++---+-"
    names = [*factors, *(f"empty {i + 1}" for i in range(len(generator) - len(factors)))]
    effects = {
        name: (*(generator[(column - row) % len(generator)] == "+" for row in range(len(generator))), False)
        for column, name in enumerate(names)
    }
    given = [] if base == "none" else [base]
    rows = [[name for name in factors if effects[name][row]] for row in range(12)]
    variants = ["+".join([*given, *names]) or base for names in rows]
    return Design(tuple(variants), effects, tuple(names[len(factors) :]))


DESIGNS: Mapping[str, Design] = {
    # With "chain" where the number of the other three is odd.
    "chains": half_factorial(
        ("shift", "identity", "adam", "chain"),
        (
            "none",
            "shift+identity+adam+chain",
            "shift+chain",
            "adam+chain",
            "identity+chain",
            "shift+identity",
            "shift+adam",
            "identity+adam",
        ),
    ),
    "ingredients": screening(("adam", "head", "shifts2", "smaller", "crops", "momentum", "higher", "warmup")),
    "second": screening(
        ("ahead", "smoothing", "longer16", "longer24", "shifts3", "cosine", "more_momentum", "faster_norms", "higher"),
        "second",
    ),
    # Against what hurt in that screening, with what helped.
    "after": half_factorial(
        ("shorter16", "shorter24", "lower", "fastest_norms"),
        [
            "+".join(["second", "ahead", "faster_norms", *names])
            for names in (
                (),
                ("shorter16", "shorter24", "lower", "fastest_norms"),
                ("shorter16", "fastest_norms"),
                ("shorter24", "fastest_norms"),
                ("lower", "fastest_norms"),
                ("shorter16", "shorter24"),
                ("shorter16", "lower"),
                ("shorter24", "lower"),
            )
        ],
    ),
    # What `faster` has beside its rate, and what longer trainings may need.
    "long": factorial(("ahead+fastest_norms", "lowest", "shifts4"), "second"),
}


def effects(design: Design, cells: Mapping[str, float]) -> dict[str, float]:
    """Return each effect on a value of each variant: the mean over the variants with it minus that of the others."""
    found = {}
    for name, has in design.effects.items():
        sides: dict[bool, list[float]] = {True: [], False: []}
        for variant, side in zip(design.variants, has, strict=True):
            sides[side].append(cells[variant])
        found[name] = mean(sides[True]) - mean(sides[False])
    return found
