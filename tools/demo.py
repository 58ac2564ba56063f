"""Write docs/demo/build, what the page docs/demo needs besides its own files: the nets, the runtime, test images.

The nets are files of `deepres export` with one more output: the evidence for each class in each part of the picture.
"""

import argparse
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from deepres.data.cifar10 import CLASSES, Split, load_cifar10
from deepres.data.fetch import npm_pack
from deepres.data.release import NpmPackage
from deepres.export import FORMATS, export_classifier
from deepres.models.resnet import parse_name
from deepres.recipes.named import RECIPES
from deepres.report.style import net_name
from deepres.runs.published import PUBLISHED
from deepres.zoo.card import Card
from deepres.zoo.catalogue import PACKAGED, list_cards, load_pretrained

BUILD = Path(__file__).parent.parent / "docs" / "demo" / "build"
NETS = ("resnet20", "plain56")
NUM_CHECKED = 1000  # test images on which an exported net must agree, as `deepres export` has it

RUNTIME = NpmPackage(
    "onnxruntime-web",
    "1.30.0",
    "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
)
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def build_demo(folder: Path = BUILD) -> Path:
    """Write what the page needs into a folder; what is there already, and still right, is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = choose_cards()
    index, test = folder / "demo.json", load_cifar10().test
    built = json.loads(index.read_text()) if index.exists() else {}
    if not all((folder.parent / name).is_file() for name in built.get("files", ())):
        built = {}
    if built.get("runtime") != RUNTIME.version:
        write_runtime(folder / "runtime")
    if built.get("sha256") != [card.sha256 for card in cards]:
        for card in cards:
            write_net(card, folder / f"{card.model}.onnx", test)
    content = {
        "runtime": RUNTIME.version,
        "sha256": [card.sha256 for card in cards],
        "classes": list(CLASSES),
        "nets": [describe(card) for card in cards],
        "examples": write_examples(folder, test),
    }
    page = [*sorted(folder.parent.iterdir()), *sorted(folder.rglob("*"))]
    files = [
        str(path.relative_to(folder.parent))
        for path in page
        if path.is_file() and path.name[0] != "." and path.name not in ("offline.js", index.name)
    ]
    files.append(str(index.relative_to(folder.parent)))
    index.write_text(json.dumps({**content, "files": files}, indent=1) + "\n")
    return folder


def choose_cards() -> list[Card]:
    """Return the nets' entries of the zoo, by the first recipe that all of them were trained by: they are compared."""
    cards = {(card.model, card.recipe): card for card in list_cards(PACKAGED)}
    return next(
        [cards[net, recipe] for net in NETS] for recipe in RECIPES if all((net, recipe) in cards for net in NETS)
    )


def write_runtime(folder: Path) -> None:
    """Bring ONNX Runtime for browsers from npm: this version, with the published checksum."""
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        archive = npm_pack(RUNTIME, Path(temporary))
        with tarfile.open(archive) as tar:
            for name in RUNTIME_FILES:
                content = tar.extractfile(f"package/dist/{name}")
                assert content is not None
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file)


def write_net(card: Card, path: Path, test: Split) -> None:
    """Export a net, checked as `deepres export` checks it, and add the output `evidence`."""
    classifier = load_pretrained(card.name)
    export_classifier(classifier, FORMATS["onnx"], path, test.images[:NUM_CHECKED], overwrite=True)
    model = onnx.load(path)
    add_evidence(model)
    onnx.save(model, path)


def add_evidence(model: onnx.ModelProto) -> None:
    """Add the output `evidence`, float32 (batch, classes, 8, 8), to a net whose file `deepres export` wrote.

    It is the last layer's weights applied to the maps before they are averaged: its mean over the map and the bias
    give the logit.
    """
    graph = model.graph
    made_by = {output: node for node in graph.node for output in node.output}
    linear = made_by["logits"]
    pooling = made_by[linear.input[0]]
    assert (linear.op_type, pooling.op_type) == ("Gemm", "ReduceMean")
    (weight,) = [tensor for tensor in graph.initializer if tensor.name == linear.input[1]]
    kernel = onnx.numpy_helper.to_array(weight)[:, :, None, None]  # (classes, 64, 1, 1)
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(kernel), "evidence.weight"))
    graph.node.append(onnx.helper.make_node("Conv", [pooling.input[0], "evidence.weight"], ["evidence"]))
    shape: list[str | int] = ["batch", len(kernel), 8, 8]
    graph.output.append(onnx.helper.make_tensor_value_info("evidence", onnx.TensorProto.FLOAT, shape))
    onnx.checker.check_model(model)


def describe(card: Card) -> dict[str, Any]:
    """Return what the page says of a net."""
    parts = parse_name(card.model)
    assert parts is not None
    residual, depth, _ = parts
    published = PUBLISHED[card.model].paper
    shortcuts = "with" if residual else "without"
    text = (
        f"{depth} layers {shortcuts} shortcuts, {card.num_parameters:,} parameters. Trained by the recipe "
        f"{card.recipe}, it is wrong on {card.test_error_last:.2f}% of the test images"
    )
    text += f" (in the paper: {published:.2f}%)." if published is not None else "."
    return {"name": card.model, "title": net_name(card.model), "text": text, "file": f"{card.model}.onnx"}


def write_examples(folder: Path, test: Split) -> list[dict[str, str]]:
    """Write the first test image of each class."""
    (folder / "examples").mkdir(exist_ok=True)
    examples = []
    for label, name in enumerate(CLASSES):
        image = test.images[int(np.argmax(test.labels == label))]
        path = folder / "examples" / f"{name}.png"
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
        examples.append({"label": name, "file": str(path.relative_to(folder))})
    return examples


def main() -> None:
    """Write the folder and say how to see the page."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--out", type=Path, default=BUILD, help="Default: docs/demo/build.")
    folder = build_demo(arguments.parse_args().out)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB; see it with `python -m http.server --directory {folder.parent}`")


if __name__ == "__main__":
    main()
