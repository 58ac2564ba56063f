"""`deepres evaluate`: the error of trained weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepres.cli.console import confusion_table, metrics_line
from deepres.cli.options import DATA, DATA_DIR, DEVICE, NET, OWN_NET, PATH, chosen_release
from deepres.errors import UserError
from deepres.streams import out, say

if TYPE_CHECKING:
    from torch import Tensor

    from deepres.weights.classifier import PixelClassifier

MOST_SHOWN = 20  # classes of a confusion matrix on a terminal


@click.command()
@NET
@click.option(
    "--images",
    "folder",
    type=PATH,
    help="In place of the test set: a folder with a folder of image files for each class, named as the class; or a "
    "file .npy of pixels, uint8 (N, 3, 32, 32), channels first or last, with --labels; or a file .mat of SVHN.",
)
@click.option("--labels", "labels_file", type=PATH, help="A file .npy of labels, for --images.")
@OWN_NET
@DATA
@DATA_DIR
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def evaluate(
    net: str,
    folder: Path | None,
    labels_file: Path | None,
    own_net: str | None,
    data: str,
    data_dir: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Evaluate weights of the zoo, a run directory, a Hub folder or a file on the test images of a data set."""

    from deepres.backends.device import resolve_device
    from deepres.cli.pretrained import load_classifier
    from deepres.runs.metrics import metrics_of_logits
    from deepres.weights.evaluate import confusion_matrix, error_percent

    chosen = resolve_device(device)
    classifier = load_classifier(net, own_net).to(chosen)
    classes = tuple(classifier.classes)
    suffix = "" if folder is None else folder.suffix
    if (labels_file is not None) != (suffix == ".npy"):
        raise UserError("--labels FILE.npy goes with --images FILE.npy: give both, or a folder of images alone")
    if folder is not None and data != "cifar10":
        raise UserError("--images takes the place of --data: give one of them")
    faults: dict[str, str] = {}
    if labels_file is not None:
        assert folder is not None
        images, labels = _read_arrays(folder, labels_file, len(classes), classifier.image_size)
    elif folder is not None and suffix == ".mat":
        images, labels = _read_svhn(folder, len(classes), classifier.image_size)
    elif folder is not None:
        images, labels, faults = _read_folder(folder, classes, classifier.image_size)
    else:
        images, labels = _read_test_set(net, classifier, data, data_dir)
    logits = classifier.predict_logits(images)
    error = error_percent(logits, labels)
    confusion = confusion_matrix(logits, labels).tolist()
    metrics = metrics_of_logits(logits.numpy(), labels.numpy())
    for name, fault in faults.items():
        say(f"deepres: error: {name}: {fault}")
    if as_json:
        content = {"test_error": error, "num_images": len(labels), "confusion": confusion, **asdict(metrics)}
        click.echo(json.dumps({**content, "unreadable": faults} if folder is not None else content))
    else:
        if len(classes) <= MOST_SHOWN:
            out.print(confusion_table(confusion, classes))
        out.print(metrics_line(metrics), markup=False)
        kind = "test error" if folder is None else "error"
        out.print(f"{classifier.name}: {kind} {error:.2f}% over {len(labels):,} images", markup=False, soft_wrap=True)
    if faults:
        raise UserError(f"{len(faults)} of {len(labels) + len(faults):,} images could not be read and are not counted")


def _read_test_set(
    net: str, classifier: "PixelClassifier", data: str, data_dir: Path | None
) -> tuple["Tensor", "Tensor"]:
    """Return the test images and labels of a data set with the classifier's very classes."""
    import torch

    from deepres.data.cifar10 import CLASSES
    from deepres.data.datasets import load_data

    classes = tuple(classifier.classes)
    size = classifier.image_size if Path(data).is_dir() else None
    loaded = None
    if data != "cifar10" or classes == CLASSES:
        loaded = load_data(data, data_dir, image_size=size, release=chosen_release())
    others, name = (CLASSES, "CIFAR-10") if loaded is None else (loaded.classes, loaded.name)
    if loaded is None or classes != tuple(others):
        what = f"{len(classes)} classes" if len(classes) != len(others) else f"the classes {', '.join(classes)}"
        shown = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
        raise UserError(
            f"{net} distinguishes {what}, {name} has {len(others)} ({shown}): give --images FOLDER, or its own --data"
        )
    return torch.from_numpy(loaded.test.images), torch.from_numpy(loaded.test.labels)


def _read_arrays(images_file: Path, labels_file: Path, num_classes: int, size: int) -> tuple["Tensor", "Tensor"]:
    """Read images and labels as CIFAR-10.1 and CIFAR-10-C have them: uint8 (N, 3, size, size) and int64 (N,)."""
    import numpy as np
    import torch

    from deepres.inputs import as_images, check_labels

    arrays = []
    for path in (images_file, labels_file):
        try:
            arrays.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read as a file .npy ({error})") from None
    images, labels = arrays
    if images.ndim == 4 and images.shape[1:] == (size, size, 3):
        images = images.transpose(0, 3, 1, 2)
    pixels = as_images(images, size)
    return pixels, torch.from_numpy(check_labels(labels, len(pixels), num_classes))


def _read_svhn(path: Path, num_classes: int, size: int) -> tuple["Tensor", "Tensor"]:
    """Read the cropped digits of SVHN: images uint8 (N, 3, 32, 32) and labels int64 (N,), the digits themselves."""
    import torch

    from deepres.data.svhn import read_svhn
    from deepres.inputs import as_images, check_labels

    split = read_svhn(path)
    return as_images(split.images, size), torch.from_numpy(check_labels(split.labels, len(split.labels), num_classes))


def _read_folder(folder: Path, classes: tuple[str, ...], size: int) -> tuple["Tensor", "Tensor", dict[str, str]]:
    """Read a folder of class-named folders: images uint8 (N, 3, size, size), labels int64 (N,), what is unreadable."""
    import numpy as np
    import torch

    from deepres.data.class_names import index_folders
    from deepres.data.images import find_images, is_hidden, read_images

    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    if not subfolders:
        raise UserError(f"{folder} holds no folders: it must hold one for each class, such as {folder / classes[0]}")
    indices = index_folders([path.name for path in subfolders], classes, folder)
    if renamed := {name: classes[i] for name, i in indices.items() if name != classes[i]}:
        say(f"deepres: folders read as classes: {', '.join(f'{name} as {label}' for name, label in renamed.items())}")
    paths: dict[str, Path] = {}
    for subfolder in subfolders:
        found = find_images(subfolder)
        if found.left_out:
            say(f"deepres: {found.left_out}")
        paths |= {str(path): path for path in found.paths}
    names, images, faults = read_images(paths.items(), size)
    if not images:
        raise UserError(f"no image in {folder} can be read ({next(iter(faults))}: {next(iter(faults.values()))})")
    labels = [indices[Path(name).relative_to(folder).parts[0]] for name in names]
    return torch.from_numpy(np.stack(images)), torch.tensor(labels), faults
