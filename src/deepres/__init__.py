"""deepres: "Deep Residual Learning for Image Recognition" on CIFAR-10, reproduced."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepres.weights import load_pretrained

__version__ = "0.1.0"
__all__ = ["load_pretrained"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that the command line starts quickly."""
    if name in __all__:
        import deepres.weights

        return getattr(deepres.weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
