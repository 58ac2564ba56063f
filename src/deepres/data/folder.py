"""Images of one's own: a folder of image files for each class, each image made as wide and high as the net takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepres.data.cifar10 import Split
from deepres.data.images import find_images, is_hidden, read_images
from deepres.data.splits import stratified_split
from deepres.errors import UserError
from deepres.inputs import IMAGE_SIZE

TEST_FRACTION = 0.2  # of the images of each class, where the folder is not divided into train and test
TEST_NAMES = ("test", "val", "valid", "validation")
MAX_CLASSES = 256


def load_folder(folder: Path, size: int = IMAGE_SIZE) -> tuple[Split, Split, tuple[str, ...]]:
    """Read images: to train on, to test on, and the names of their classes, which are the folders' in order.

    The folder holds either a folder for each class, of whose images a fifth are test images, the same at each call; or
    `train` and `test` (or `val`), which hold the same folders each. Images are made `size` pixels wide and high.

    Raises:
        UserError: there are no such folders, a class has too few images, or an image cannot be read.
    """
    names = [path.name for path in subfolders(folder)]
    test_name = next((name for name in TEST_NAMES if name in names), None)
    if "train" in names:
        if test_name is None:
            raise UserError(
                f"{folder} holds a folder train but no folder test: add one, or give the folders of classes"
            )
        classes = class_names(folder / "train")
        if (others := class_names(folder / test_name)) != classes:
            odd = sorted(set(classes) ^ set(others))[0]
            raise UserError(f"{folder}: train and {test_name} hold other classes ({odd} is in one of them only)")
        train, test = (read_classes(folder / part, classes, size) for part in ("train", test_name))
        return train, test, classes
    classes = class_names(folder)
    whole = read_classes(folder, classes, size)
    for label, name in enumerate(classes):
        if (count := int((whole.labels == label).sum())) < 3:
            raise UserError(f"{folder / name} holds {count} images: a class needs 3 or more, some of them to test on")
    train, test = (
        Split(whole.images[index], whole.labels[index]) for index in stratified_split(whole.labels, TEST_FRACTION, 0)
    )
    return train, test, classes


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError as error:
        raise UserError(f"cannot read folder {folder} ({error.strerror})") from None


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders of classes.

    Raises:
        UserError: there are fewer than two, or more than 256.
    """
    names = tuple(path.name for path in subfolders(folder))
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{folder} holds {len(names)} folders: it must hold a folder of images for each class, "
            f"2 to {MAX_CLASSES} of them"
        )
    return names


def read_classes(folder: Path, classes: Sequence[str], size: int = IMAGE_SIZE) -> Split:
    """Read the images of all classes, class by class, in the order of their paths.

    Raises:
        UserError: a file that looks like an image cannot be read, or a class has none.
    """
    images, labels = [], []
    for label, name in enumerate(classes):
        found = find_images(folder / name)
        _, read, faults = read_images(((str(path), path) for path in found.paths), size)
        if faults:
            path, fault = next(iter(faults.items()))
            more = f" (and {len(faults) - 1:,} more)" if len(faults) > 1 else ""
            raise UserError(f"{path}: {fault}{more}: delete it, or move it out of {folder}, to train without it")
        images += read
        labels += [label] * len(read)
    return Split(np.stack(images), np.array(labels, np.int64))
