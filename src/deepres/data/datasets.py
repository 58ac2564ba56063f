"""The data sets that nets are trained on: CIFAR-10, CIFAR-100, a folder of images, or one of one's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deepres.data.cifar10 import Split, load_cifar10
from deepres.data.cifar100 import load_cifar100
from deepres.data.folder import MAX_CLASSES, load_folder
from deepres.data.release import OFFICIAL, Release
from deepres.errors import UserError
from deepres.inputs import IMAGE_SIZE, SIZES
from deepres.objects import is_object_name, load_object

NAMES = ("cifar10", "cifar100")


class Dataset(Protocol):
    """Images to train on and to test on."""

    @property
    def train(self) -> Split:
        """The training images; those held out as val are taken from them."""

    @property
    def test(self) -> Split:
        """The test images."""

    @property
    def name(self) -> str:
        """What the set is called in recipe.json, beside the digests of its images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""


@dataclass(frozen=True)
class ImageData:
    """A data set of one's own, for `deepres.train` or as what FILE:NAME gives.

    Example:
        >>> import deepres, numpy as np
        >>> from deepres.data.cifar10 import Split
        >>> split = Split(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 1]))
        >>> deepres.ImageData(split, split, name="two black images", classes=("black", "dark")).name
        'two black images'
    """

    train: Split
    test: Split
    name: str
    classes: tuple[str, ...]


def load_data(
    source: str | Path = "cifar10",
    data_dir: str | Path | None = None,
    *,
    image_size: int | None = None,
    release: Release = OFFICIAL,
) -> Dataset:
    """Load a data set.

    Args:
        source: "cifar10" or "cifar100"; a folder that holds a folder of images for each class, or `train` and `test`
            with such folders, see `deepres.data.folder`; or FILE.py:NAME or module:NAME, an `ImageData` or what makes
            one without arguments.
        data_dir: where CIFAR-10 and CIFAR-100 lie, see `deepres.data.cifar10.resolve_data_dir`.
        image_size: rows and columns to make the images of a folder, 8 to 512; None: 32, as CIFAR's.
        release: what the files of CIFAR-10 must be.

    Raises:
        UserError: there is no such data set, or something is wrong with it; the message says what.

    Example:
        >>> import deepres
        >>> deepres.load_data("cifar10").classes[0]
        'airplane'
    """
    path = Path(source)
    if image_size is not None and not is_folder(source):
        raise UserError(f"an image size goes with a folder of images, and {str(source)!r} is none: leave it out")
    if image_size is not None and image_size not in SIZES:
        raise UserError(f"an image size of {image_size}: it must be {SIZES[0]} to {SIZES[-1]} pixels")
    match source:
        case "cifar10":
            return load_cifar10(data_dir, release)
        case "cifar100":
            train, test, classes = load_cifar100(data_dir)
            return ImageData(train, test, "CIFAR-100", classes)
    if isinstance(source, str) and is_object_name(source) and not is_folder(source):
        made = load_object(source)
        return check_dataset(made() if callable(made) else made, source)
    if not is_folder(source):
        raise UserError(f"no data {str(source)!r}: give {', '.join(NAMES)}, a folder of images, or FILE.py:NAME")
    train, test, classes = load_folder(path, image_size or IMAGE_SIZE)
    return ImageData(train, test, label_of(path, image_size), classes)


def is_folder(source: str | Path) -> bool:
    """Tell whether a source of data is a folder of images."""
    return Path(source).is_dir() and source not in ("", *NAMES)


def label_of(source: str | Path, image_size: int | None = None) -> str:
    """Return what names of run directories say of a data set: "cifar10", the folder's or the object's name.

    A folder's is followed by the size of its images where this is not 32.
    """
    text = str(source)
    if text in NAMES:
        return text
    if is_object_name(text) and not Path(text).is_dir():
        return text.rpartition(":")[2]
    size = f"-{image_size}px" if image_size not in (None, IMAGE_SIZE) else ""
    return Path(text).resolve().name + size


def check_dataset(data: Any, source: str) -> Dataset:
    """Return a data set of one's own if it can be trained on.

    Raises:
        UserError: it cannot; the message names `source` and what is wrong.
    """
    if missing := [key for key in ("train", "test", "name", "classes") if not hasattr(data, key)]:
        raise UserError(f"{source} is a {type(data).__name__} without {missing[0]!r}: it must be a deepres.ImageData")
    classes = data.classes
    if isinstance(classes, str) or not 1 <= len(classes) <= MAX_CLASSES or len(set(classes)) != len(classes):
        raise UserError(f"{source}: classes must be 1 to {MAX_CLASSES} different names")
    sizes: set[int] = set()
    for part in ("train", "test"):
        split = getattr(data, part)
        images, labels = np.asarray(getattr(split, "images", None)), np.asarray(getattr(split, "labels", None))
        size = images.shape[-1] if images.ndim == 4 else 0
        if images.dtype != np.uint8 or images.shape[1:] != (3, size, size) or size not in SIZES or not len(images):
            raise UserError(
                f"{source}: {part}.images are {images.dtype} {images.shape}: they must be uint8 (N, 3, S, S), "
                f"N at least 1, S {SIZES[0]} to {SIZES[-1]}"
            )
        sizes.add(size)
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            found = f"{labels.dtype} {labels.shape}"
            raise UserError(f"{source}: {part}.labels are {found}: they must be int64 ({len(images)},)")
        if labels.min() < 0 or labels.max() >= len(classes):
            bounds = f"{labels.min()} to {labels.max()}"
            raise UserError(f"{source}: {part}.labels are {bounds}: they must be 0 to {len(classes) - 1}")
    if len(sizes) > 1:
        raise UserError(f"{source}: its training and test images are of other sizes: make them all of one size")
    made: Dataset = data
    return made
