"""The formats, and the check that every exported file must pass in its own runtime."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from deepres.errors import UserError, unknown_name
from deepres.rundir import check_parent
from deepres.weights.classifier import PixelClassifier

MAX_DIFFERENCE = 1e-4  # of any logit
BATCHES = (1, 2, 7)  # sizes that must work besides that of all images: the batch is to be dynamic

Images = NDArray[np.uint8]  # (N, 3, 32, 32)
Logits = NDArray[np.float32]  # (N, num_classes)


@dataclass(frozen=True)
class Format:
    """How to write a file of this kind, and how its own runtime runs it.

    The module has `write(classifier, path)` and `load(path)`, which returns a function from images, uint8
    (N, 3, 32, 32), to logits, float32 (N, num_classes).
    """

    module: str
    suffix: str
    needs: tuple[str, ...] = ()
    """Packages that deepres does not need itself."""
    extra: str = ""
    """The extra of deepres that brings them."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "onnx": Format("deepres.export.onnx", ".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx"),
        "torch-export": Format("deepres.export.torch_export", ".pt2"),
        "torchscript": Format("deepres.export.torchscript", ".pt"),
        "tensorflow": Format("deepres.export.tensorflow", ".keras", ("tensorflow",), "tensorflow"),
    }
)


def get_format(name: str) -> Format:
    """Return a format by name, if what it needs is installed.

    Raises:
        UserError: an unknown name, or a package is missing.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    kind = FORMATS[name]
    if missing := [package for package in kind.needs if find_spec(package) is None]:
        raise UserError(
            f"format {name} needs {', '.join(missing)}, not installed here: pip install 'deepres[{kind.extra}]'"
        )
    return kind


def export_classifier(classifier: PixelClassifier, name: str, path: Path, images: Images) -> float:
    """Write a classifier in another format, with its normalisation inside and any number of images at a time.

    The file takes uint8 pixels and gives logits. It is run in its own runtime before it appears under its name.

    Args:
        classifier: what to export.
        name: a key of `FORMATS`.
        path: the file; its suffix must be the format's.
        images: on which the file must agree with the classifier.

    Returns:
        The largest difference of a logit.

    Raises:
        UserError: an unknown format, a wrong suffix, a missing package, an unwritable folder, or a file whose logits
            differ by more than 1e-4 or whose predictions differ.
    """
    kind = get_format(name)
    if path.suffix != kind.suffix:
        raise UserError(f"{path} must end in {kind.suffix}, as files of format {name} do")
    check_parent(path)
    module = import_module(kind.module)
    classifier = classifier.eval().cpu()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        module.write(classifier, temporary)
        difference = compare(classifier, module.load(temporary), images, name)
        temporary.replace(path)
    return difference


def compare(classifier: PixelClassifier, run: Callable[[Images], Logits], images: Images, name: str) -> float:
    """Return the largest difference between the logits of an exported file and of the classifier.

    Raises:
        UserError: it is more than 1e-4, or the predictions differ, or the file does not take batches of any size.
    """
    expected = classifier.predict_logits(torch.from_numpy(images)).numpy()  # (N, num_classes)
    actual = run(images)
    small = max(float(np.abs(run(images[:size]) - expected[:size]).max()) for size in BATCHES)
    difference = max(small, float(np.abs(actual - expected).max()))
    if not difference <= MAX_DIFFERENCE:  # nor if it is not a number
        raise UserError(f"the {name} file differs from the net by {difference:.1e} in a logit, and is not kept")
    if (changed := int((actual.argmax(axis=1) != expected.argmax(axis=1)).sum())) > 0:
        raise UserError(f"the {name} file predicts {changed} of {len(images):,} images otherwise, and is not kept")
    return difference


def example(classifier: PixelClassifier) -> torch.Tensor:
    """Return two black images on the classifier's device, from which tracing starts."""
    return torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=classifier.mean.device)
