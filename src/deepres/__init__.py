"""deepres: "Deep Residual Learning for Image Recognition" on CIFAR-10, reproduced.

The names in `__all__` are the package's face; everything else may move or change from version to version.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from deepres._version import __version__ as __version__

if TYPE_CHECKING:
    from deepres.data.cifar10 import load_cifar10
    from deepres.data.datasets import ImageData, load_data
    from deepres.data.fetch import fetch_cifar10
    from deepres.errors import UserError
    from deepres.models import build_model
    from deepres.recipes.named import get_recipe
    from deepres.recipes.read import read_recipe
    from deepres.recipes.recipe import Recipe
    from deepres.runs.compare import compare
    from deepres.runs.finished import load_runs
    from deepres.runs.groups import group_runs
    from deepres.runs.statistics import summarize
    from deepres.training.config import RunConfig
    from deepres.training.from_python import train
    from deepres.weights.classifier import PixelClassifier
    from deepres.weights.file import load_weights, save_weights
    from deepres.zoo.catalogue import load_pretrained

__all__ = [
    "ImageData",
    "PixelClassifier",
    "Recipe",
    "RunConfig",
    "UserError",
    "build_model",
    "compare",
    "fetch_cifar10",
    "get_recipe",
    "group_runs",
    "load_cifar10",
    "load_data",
    "load_pretrained",
    "load_runs",
    "load_weights",
    "read_recipe",
    "save_weights",
    "summarize",
    "train",
]

HOMES = {
    "ImageData": "data.datasets",
    "PixelClassifier": "weights.classifier",
    "Recipe": "recipes.recipe",
    "RunConfig": "training.config",
    "UserError": "errors",
    "build_model": "models",
    "compare": "runs.compare",
    "fetch_cifar10": "data.fetch",
    "get_recipe": "recipes.named",
    "group_runs": "runs.groups",
    "load_cifar10": "data.cifar10",
    "load_data": "data.datasets",
    "load_pretrained": "zoo.catalogue",
    "load_runs": "runs.finished",
    "load_weights": "weights.file",
    "read_recipe": "recipes.read",
    "save_weights": "weights.file",
    "summarize": "runs.statistics",
    "train": "training.from_python",
}


def __getattr__(name: str) -> Any:
    """Import a name only when it is asked for, so that the command line starts quickly."""
    if name in HOMES:
        return getattr(import_module(f"deepres.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
