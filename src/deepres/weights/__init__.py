"""Trained weights: the zoo, its cards, and the module that takes pixels."""

from typing import TYPE_CHECKING, Any

from deepres.weights.classifier import PixelClassifier

if TYPE_CHECKING:
    from deepres.weights.zoo import list_cards, load_pretrained

__all__ = ["PixelClassifier", "list_cards", "load_pretrained"]


def __getattr__(name: str) -> Any:
    """Import the zoo, and with it a client for downloads, only where it is asked for: training needs none."""
    if name in __all__:
        import deepres.weights.zoo

        return getattr(deepres.weights.zoo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
