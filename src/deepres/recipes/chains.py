"""The settings of recipes that concern chains, layers in series without shortcuts: residual nets are trained without.

They are left out of such nets' records, so that a record holds what its run was trained by, and of comparisons with
them.
"""

import re
from collections.abc import Mapping
from typing import Any

CHAIN_SETTINGS = frozenset({"recipe.chain_gain", "recipe.identity_share", "recipe.muon.full_rate_length"})
"""Their names in the settings of runs."""


def has_shortcuts(model: str) -> bool:
    """Tell by its name whether a net of ours has a shortcut around each block, as residual nets do."""
    return re.fullmatch(r"(pre)?resnet\d+(x\d+)?", model) is not None


def settings_for(model: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `Recipe.to_json` returned without what does not apply to a net of ours.

    Example:
        >>> recipe = {"name": "fast", "chain_gain": 7.39, "muon": {"momentum": 0.85, "full_rate_length": 18}}
        >>> settings_for("resnet20", recipe)
        {'name': 'fast', 'muon': {'momentum': 0.85}}
        >>> settings_for("plain20", recipe) == recipe
        True
    """
    return _without_chains(recipe, "recipe") if has_shortcuts(model) else dict(recipe)


def _without_chains(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        key: _without_chains(value, f"{name}.{key}") if isinstance(value, Mapping) else value
        for key, value in content.items()
        if f"{name}.{key}" not in CHAIN_SETTINGS
    }
