"""TorchScript, for programs that read nothing newer, such as those in C++ with LibTorch."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from deepres.export.formats import Images, Logits
from deepres.weights.classifier import PixelClassifier


def write(classifier: PixelClassifier, path: Path) -> None:
    """Write a scripted module: pixels, uint8 or float in [0, 1], (batch, 3, 32, 32), to logits (batch, classes).

    Scripted and not traced, so that it looks at the type and range of its pixels as the classifier does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch prefers torch.export; whoever asks for this knows
        scripted = torch.jit.script(classifier)
        torch.jit.save(scripted, str(path))


def load(path: Path) -> Callable[[Images], Logits]:
    """Open the file with torch alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]

    def run(images: Images) -> Logits:
        with torch.inference_mode():
            logits: Logits = module(torch.from_numpy(images)).numpy()
        return logits

    return run
