"""The settings of recipes that concern chains, layers in series without shortcuts: residual nets are trained without.

They are left out of such nets' records, so that a record holds what its run was trained by, and of comparisons with
them: see `RunRecord.applies`.
"""

import re


def has_shortcuts(model: str) -> bool:
    """Tell by its name whether a net of ours has a shortcut around each block, as residual nets do."""
    return re.fullmatch(r"(pre)?resnet\d+(x\d+)?", model) is not None


def concerns_chains(setting: str) -> bool:
    """Tell of a run's setting, such as "recipe.chain.gain", whether it is one of those."""
    return f"{setting}.".startswith("recipe.chain.")
