"""torch.export: a graph of torch operators that `torch.export.load` reads without deepres."""

from collections.abc import Callable
from pathlib import Path

import torch

from deepres.export.formats import Images, Logits, example
from deepres.weights.classifier import PixelClassifier


def write(classifier: PixelClassifier, path: Path) -> None:
    """Write a .pt2 file: pixels, uint8 (batch, 3, 32, 32), to logits, float32 (batch, classes)."""
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(classifier, (example(classifier),), dynamic_shapes=shapes)
    torch.export.save(program, path)


def load(path: Path) -> Callable[[Images], Logits]:
    """Open the file with torch alone."""
    module = torch.export.load(path).module()

    def run(images: Images) -> Logits:
        with torch.inference_mode():
            logits: Logits = module(torch.from_numpy(images)).numpy()
        return logits

    return run
