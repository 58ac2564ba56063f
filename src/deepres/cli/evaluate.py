"""`deepres evaluate`: the error of trained weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepres.cli.console import confusion_table, out, say
from deepres.cli.options import DATA_DIR, DEVICE, NET
from deepres.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@NET
@click.option(
    "--images",
    "folder",
    type=click.Path(path_type=Path),
    help="In place of the test set: a folder with a folder of image files for each class, named as the class.",
)
@DATA_DIR
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def evaluate(net: str, folder: Path | None, data_dir: Path | None, device: str, as_json: bool) -> None:
    """Evaluate weights of the zoo, a run directory, a Hub folder or a file on the 10,000 test images."""
    import torch

    from deepres.backends.device import resolve_device
    from deepres.data.cifar10 import CLASSES, load_cifar10
    from deepres.weights.evaluate import confusion_matrix, error_percent
    from deepres.zoo.catalogue import load_pretrained

    chosen = resolve_device(device)
    classifier = load_pretrained(net).to(chosen)
    classes = tuple(classifier.classes)
    if folder is None and classes != CLASSES:
        what = f"{len(classes)} classes" if len(classes) != len(CLASSES) else f"the classes {', '.join(classes)}"
        raise UserError(
            f"{net} distinguishes {what}, CIFAR-10 has {len(CLASSES)} ({', '.join(CLASSES)}): give --images FOLDER"
        )
    faults: dict[str, str] = {}
    if folder is not None:
        images, labels, faults = _read_folder(folder, classes)
    else:
        test = load_cifar10(data_dir).test
        images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    logits = classifier.predict_logits(images)
    error = error_percent(logits, labels)
    confusion = confusion_matrix(logits, labels).tolist()
    for name, fault in faults.items():
        say(f"deepres: error: {name}: {fault}")
    if as_json:
        content = {"test_error": error, "num_images": len(labels), "confusion": confusion}
        click.echo(json.dumps({**content, "unreadable": faults} if folder is not None else content))
    else:
        out.print(confusion_table(confusion, classes))
        kind = "test error" if folder is None else "error"
        out.print(f"{classifier.name}: {kind} {error:.2f}% over {len(labels):,} images", markup=False, soft_wrap=True)
    if faults:
        raise UserError(f"{len(faults)} of {len(labels) + len(faults):,} images could not be read and are not counted")


def _read_folder(folder: Path, classes: tuple[str, ...]) -> tuple["Tensor", "Tensor", dict[str, str]]:
    """Read a folder of class-named folders: images uint8 (N, 3, 32, 32), labels int64 (N,), what is unreadable."""
    import numpy as np
    import torch

    from deepres.data.images import find_images, read_images

    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not subfolders:
        raise UserError(f"{folder} holds no folders: it must hold one for each class, such as {folder / classes[0]}")
    for path in subfolders:
        if path.name not in classes:
            raise UserError(f"folder {path} is named after no class: the classes are {', '.join(classes)}")
    paths = {str(path): path for subfolder in subfolders for path in find_images(subfolder)}
    names, images, faults = read_images(paths.items())
    if not images:
        raise UserError(f"no image in {folder} can be read ({next(iter(faults))}: {next(iter(faults.values()))})")
    labels = [classes.index(Path(name).relative_to(folder).parts[0]) for name in names]
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), faults
