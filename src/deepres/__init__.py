"""deepres: "Deep Residual Learning for Image Recognition" on CIFAR-10, reproduced."""

from typing import TYPE_CHECKING, Any

from deepres._version import __version__ as __version__

if TYPE_CHECKING:
    from deepres.zoo.catalogue import load_pretrained

__all__ = ["load_pretrained"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for, so that the command line starts quickly."""
    if name in __all__:
        import deepres.zoo.catalogue

        return getattr(deepres.zoo.catalogue, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
