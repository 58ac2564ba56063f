"""Any image file to the pixels that a net takes, 32x32 for those trained on CIFAR.

CIFAR-10's images were not cut out of larger ones: they are whole pictures made 32 pixels wide and high, whatever their
proportions. So here: the whole picture is squeezed to 32x32, nothing is cropped, by bicubic interpolation over all
pixels that fall into one (antialiased; without that, fine detail turns into patterns that no training image has).
Which filter CIFAR-10's makers used could not be looked up, so that this part is an assumption.
"""

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deepres.errors import UserError
from deepres.inputs import IMAGE_SIZE

SYSTEM_NAMES = ("__MACOSX", "Thumbs.db", "desktop.ini")
SHOWN_KINDS = 5


class ImageError(UserError):
    """An image file that cannot be used; the message says why, but not which."""


def read_image(source: Path | BinaryIO, size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Read an image file of any kind that Pillow knows, upright, on white where it is transparent.

    Args:
        source: the file.
        size: rows and columns to make it.

    Returns:
        uint8, (3, `size`, `size`), channels red, green, blue.

    Raises:
        ImageError: the file is missing, no image, damaged, animated, or so large that it may be a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # of odd metadata
            with Image.open(source) as image:
                # The first of an MPO, a camera's JPEG with a preview or depth map behind it, is the picture.
                if (num_frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
                    raise ImageError(f"it has {num_frames} frames or pages: save the one that is meant")
                picture = to_rgb(ImageOps.exif_transpose(image))
                small = squeeze(picture, size)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        pixels = Image.MAX_IMAGE_PIXELS or 0
        raise ImageError(f"it has more than {pixels:,} pixels and is not decoded: make it smaller") from None
    except UnidentifiedImageError:
        raise ImageError("it is no image that Pillow can read") from None
    except OSError as error:
        reason = error.strerror or f"it is damaged: {error}"
        raise ImageError(f"it cannot be read ({reason})") from None
    except Exception as error:  # whatever a decoder raises at a file that was made to confuse it
        raise ImageError(f"it cannot be read (it is damaged: {error or type(error).__name__})") from None
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))  # (3, size, size)


def squeeze(picture: Image.Image, size: int) -> Image.Image:
    """Make a picture `size` pixels wide and high.

    First the width, then the height: values are limited to 0 to 255 after each of the two, so that the order shows in
    pictures of high contrast, and left to itself Pillow takes one order up to version 12 and another from 13 on.
    """
    narrow = picture.resize((size, picture.height), Image.Resampling.BICUBIC)
    return narrow.resize((size, size), Image.Resampling.BICUBIC)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to 8 bits of red, green, blue, transparent parts to white.

    Raises:
        ImageError: the values have no known range.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"its values have no known range (Pillow mode {image.mode}): save it with 8 bits a channel")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class FoundImages:
    """The image files in a folder, and what else it holds."""

    paths: tuple[Path, ...]
    """Files, sorted by their names, the folders within the folder and links among them."""
    left_out: str
    """What was left out and why, in one line; empty where nothing was."""


def find_images(folder: Path) -> FoundImages:
    """Find the image files in a folder and in the folders within it.

    A file is an image if its name ends as images' names do, or if its first bytes are an image's. Links are followed,
    each folder is entered once. Hidden entries, whose names begin with a dot, are left out: editors and operating
    systems leave copies and notes there.

    Raises:
        UserError: there is no image, or the folder cannot be read.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found: list[Path] = []
    hidden: list[str] = []
    others: list[str] = []
    entered: set[Path] = set()

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read folder {error.filename} ({error.strerror})") from None

    for name, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = Path(name).resolve()
        if real in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add(real)
        hidden += [entry for entry in (*folders, *files) if is_hidden(entry)]
        folders[:] = sorted(entry for entry in folders if not is_hidden(entry))
        for entry in files:
            path = Path(name) / entry
            if is_hidden(entry):
                continue
            if path.exists() and not path.is_file():  # a pipe would be waited for, a device may have no end
                others.append("no regular file")
            elif path.suffix.lower() in suffixes or _is_image(path):
                found.append(path)
            else:
                others.append(path.suffix or entry)
    parts = []
    if others:
        kinds = ", ".join(sorted(set(others))[:SHOWN_KINDS]) + (", ..." if len(set(others)) > SHOWN_KINDS else "")
        parts.append(f"{len(others):,} that Pillow cannot read as images ({kinds})")
    if hidden:
        parts.append(f"{len(hidden):,} hidden")
    left_out = f"left out in {folder}: {' and '.join(parts)}" if parts else ""
    if not found:
        raise UserError(f"{folder} holds no image files{f' ({left_out})' if left_out else ''}")
    return FoundImages(tuple(sorted(found)), left_out)


def is_hidden(name: str) -> bool:
    """Tell whether an entry of a folder is none of the user's own: hidden, or left by an operating system."""
    return name.startswith(".") or name in SYSTEM_NAMES


def _is_image(path: Path) -> bool:
    """Tell whether a file begins as an image that Pillow knows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path):
                return True
    except Exception:  # whatever a decoder raises at a file of another kind
        return False


def read_images(
    sources: Iterable[tuple[str, Path | BinaryIO]], size: int = IMAGE_SIZE
) -> tuple[list[str], list[NDArray[np.uint8]], dict[str, str]]:
    """Read images one after the other; those that cannot be read do not stop the others.

    Args:
        sources: the name of each image and where it is.
        size: rows and columns to make them.

    Returns:
        The names and the images that could be read, and what is wrong with each of the others.
    """
    names: list[str] = []
    images: list[NDArray[np.uint8]] = []
    faults: dict[str, str] = {}
    for name, source in sources:
        try:
            images.append(read_image(source, size))
            names.append(name)
        except ImageError as error:
            faults[name] = str(error)
    return names, images, faults
