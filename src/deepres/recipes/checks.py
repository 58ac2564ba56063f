"""Checks of a recipe's values: each raises an error that names the field, its value and what it must be."""

import math

from deepres.errors import UserError


def must_be(holds: bool, field: str, value: object, what: str) -> None:
    """Raise the error for a value of which a condition does not hold.

    Raises:
        UserError: so it is.
    """
    if not holds:
        raise UserError(f"recipe: {field} is {value!r}: it must be {what}")


def a_number(
    field: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Check that a value is a finite number between bounds."""
    bounds = {"above": above, "of at least": at_least, "below": below, "of at most": at_most}
    what = " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)
    holds = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if holds:
        assert isinstance(value, int | float)
        holds = (above is None or value > above) and (at_least is None or value >= at_least)
        holds = holds and (below is None or value < below) and (at_most is None or value <= at_most)
    must_be(holds, field, value, f"a number {what}".rstrip())


def a_whole_number(field: str, value: object, *, at_least: int) -> None:
    """Check that a value is a whole number, and not too low."""
    holds = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
    must_be(holds, field, value, f"a whole number of at least {at_least}")


def a_truth_value(field: str, value: object) -> None:
    """Check that a value is true or false."""
    must_be(isinstance(value, bool), field, value, "true or false")
