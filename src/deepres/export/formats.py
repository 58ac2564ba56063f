"""The formats, and the check that every exported file must pass in its own runtime."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepres.errors import UserError, first_line, unknown_name
from deepres.files import check_parent
from deepres.inputs import as_images
from deepres.weights.classifier import PixelClassifier

MAX_DIFFERENCE = 1e-4  # of any logit
BATCHES = (1, 2, 7)  # sizes that must work besides that of all images: the batch is to be dynamic

Images = NDArray[np.uint8]  # (N, 3, S, S)
Logits = NDArray[np.float32]  # (N, num_classes)


@dataclass(frozen=True)
class Format:
    """How to write a file of this kind, and how its own runtime runs it.

    The module has `write(classifier, path)` and `load(path)`, which returns a function from images, uint8
    (N, 3, 32, 32), to logits, float32 (N, num_classes).
    """

    name: str
    """As `deepres export --format` and messages say it."""
    module: str
    suffix: str
    needs: tuple[str, ...] = ()
    """Packages that deepres does not need itself."""
    extra: str = ""
    """The extra of deepres that brings them."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Format("onnx", "deepres.export.onnx", ".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx"),
            Format("torch-export", "deepres.export.torch_export", ".pt2"),
            Format("tensorflow", "deepres.export.tensorflow", ".keras", ("tensorflow",), "tensorflow"),
        )
    }
)


def get_format(name: str) -> Format:
    """Return a format of `FORMATS` by name, if what it needs is installed.

    Raises:
        UserError: an unknown name, or a package is missing.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    check_installed(FORMATS[name])
    return FORMATS[name]


def check_installed(kind: Format) -> None:
    """Raise the error for a format that needs packages which are not installed."""
    if missing := [package for package in kind.needs if find_spec(package) is None]:
        raise UserError(
            f"format {kind.name} needs {', '.join(missing)}, not installed here: pip install 'deepres[{kind.extra}]'"
        )


def export_classifier(
    classifier: PixelClassifier, kind: Format, path: Path, images: Images, *, overwrite: bool = False
) -> float:
    """Write a classifier in another format, with its normalisation inside and any number of images at a time.

    The file takes uint8 pixels and gives logits, in float32. It is run in its own runtime before it appears under its
    name: on uint8 pixels, and on floats in [0, 1], which it must take as the classifier does or refuse. The classifier
    stays as it is, on its device and in its mode.

    Args:
        classifier: what to export.
        kind: the format, one of `FORMATS` or your own.
        path: the file; its suffix must be the format's.
        images: on which the file must agree with the classifier, uint8 (N, 3, S, S), S the classifier's `image_size`.
        overwrite: whether a file that is there already may be replaced.

    Returns:
        The largest difference of a logit.

    Raises:
        UserError: a wrong suffix, a missing package, an unwritable folder, a file that is there
            already, a net that the format cannot express, or a file whose logits differ by more than 1e-4 or whose
            predictions differ.
    """
    check_installed(kind)
    check_target(path, kind, overwrite=overwrite)
    pixels = as_images(images, classifier.image_size).numpy()
    module = import_module(kind.module)
    with torch.no_grad():  # a pruned weight is computed before each forward pass, here without a graph
        classifier.predict_logits(pixels[:1])
        copied = copy.deepcopy(classifier).eval().cpu().float()
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            module.write(copied, temporary)
            difference = compare(copied, module.load(temporary), pixels, kind.name)
            temporary.replace(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error})") from None
    except Exception as error:  # whatever an exporter raises at a layer that it does not know
        raise UserError(
            f"format {kind.name} cannot express this net ({type(error).__name__}: {first_line(error)})"
        ) from error
    return difference


def check_target(path: Path, kind: Format, *, overwrite: bool) -> None:
    """Raise the error for a file that must not be written, before the work that fills it."""
    if path.suffix != kind.suffix:
        raise UserError(f"{path} must end in {kind.suffix}, as files of format {kind.name} do")
    check_parent(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: name another file with --out, or replace it with --force")


def compare(
    classifier: PixelClassifier,
    run: Callable[[Any], Logits],
    images: Images,
    name: str,
    max_difference: float = MAX_DIFFERENCE,
) -> float:
    """Return the largest difference between the logits of an exported file and of the classifier.

    Raises:
        UserError: it is more than `max_difference`, or the predictions differ, or the file does not take batches of
            any size, or takes floats in [0, 1] for something else.
    """
    expected = classifier.predict_logits(images).numpy()  # (N, num_classes)
    actual = run(images)
    differences = [float(np.abs(run(images[:size]) - expected[:size]).max()) for size in BATCHES]
    difference = max(*differences, float(np.abs(actual - expected).max()))
    if not difference <= max_difference:  # nor if it is not a number
        raise UserError(f"the {name} file differs from the net by {difference:.1e} in a logit, and is not kept")
    if (changed := int((actual.argmax(axis=1) != expected.argmax(axis=1)).sum())) > 0:
        raise UserError(f"the {name} file predicts {changed} of {len(images):,} images otherwise, and is not kept")
    few = images[: max(BATCHES)]
    try:
        logits = run((few / 255).astype(np.float32))
    except Exception:  # each runtime has its own
        return difference  # floats raise an error
    if not np.abs(logits - expected[: len(few)]).max() <= max_difference:
        raise UserError(f"the {name} file takes floats in [0, 1] for something else, and is not kept")
    return difference


def example(classifier: PixelClassifier) -> torch.Tensor:
    """Return two black images on the classifier's device, from which tracing starts."""
    size = classifier.image_size
    return torch.zeros(2, 3, size, size, dtype=torch.uint8, device=classifier.mean.device)
