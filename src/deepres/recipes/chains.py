"""The settings of recipes that concern chains, layers in series without shortcuts: residual nets are trained without.

They are left out of such nets' records, so that a record holds what its run was trained by, and of comparisons with
them.
"""

import re
from collections.abc import Mapping
from typing import Any

CHAIN = "chain"
"""The field of recipes that holds them."""


def has_shortcuts(model: str) -> bool:
    """Tell by its name whether a net of ours has a shortcut around each block, as residual nets do."""
    return re.fullmatch(r"(pre)?resnet\d+(x\d+)?", model) is not None


def settings_for(model: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Recipe.to_json` returned without what does not apply to a net of ours.

    Example:
        >>> recipe = {"name": "fast", "chain": {"full_rate_length": 18}}
        >>> settings_for("resnet20", recipe)
        {'name': 'fast'}
        >>> settings_for("plain20", recipe) == recipe
        True
    """
    return {key: value for key, value in recipe.items() if key != CHAIN or not has_shortcuts(model)}


def concerns_chains(setting: str) -> bool:
    """Tell of a run's setting, such as "recipe.chain.gain", whether it is one of those."""
    return setting == f"recipe.{CHAIN}" or setting.startswith(f"recipe.{CHAIN}.")
