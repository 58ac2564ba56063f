"""ONNX, run by ONNX Runtime."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

from deepres.export.formats import Images, Logits, example
from deepres.weights.classifier import PixelClassifier


def write(classifier: PixelClassifier, path: Path) -> None:
    """Write one file: input `pixels`, uint8 (batch, 3, 32, 32); output `logits`, float32 (batch, classes)."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own insides
        program = torch.onnx.export(
            classifier,
            (example(classifier),),
            input_names=["pixels"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["model"] = classifier.name
    program.model.metadata_props["classes"] = ",".join(classifier.classes)
    program.save(str(path), external_data=False)


def load(path: Path) -> Callable[[Images], Logits]:
    """Open the file in ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Images) -> Logits:
        logits: Logits = session.run(["logits"], {"pixels": images})[0]
        return logits

    return run
