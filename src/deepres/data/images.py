"""Any image file to the 32x32 pixels that the nets take.

CIFAR-10's images were not cut out of larger ones: they are whole pictures made 32 pixels wide and high, whatever their
proportions. So here: the whole picture is squeezed to 32x32, nothing is cropped, by bicubic interpolation over all
pixels that fall into one (antialiased; without that, fine detail turns into patterns that no training image has).
Which filter CIFAR-10's makers used could not be looked up, so that this part is an assumption.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from deepres.errors import UserError

SIZE = (32, 32)


class ImageError(UserError):
    """An image file that cannot be used; the message says why, but not which."""


def read_image(source: Path | BinaryIO) -> NDArray[np.uint8]:
    """Read an image file of any kind that Pillow knows, upright, on white where it is transparent.

    Returns:
        uint8, (3, 32, 32), channels red, green, blue.

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
                small = picture.resize(SIZE, Image.Resampling.BICUBIC)
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
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1))  # (3, 32, 32)


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


def find_images(folder: Path) -> list[Path]:
    """List the image files in a folder and in the folders within it, by name of suffix, sorted.

    Raises:
        UserError: there is none.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise UserError(f"{folder} holds no image files")
    return found


def read_images(
    sources: Iterable[tuple[str, Path | BinaryIO]],
) -> tuple[list[str], list[NDArray[np.uint8]], dict[str, str]]:
    """Read images one after the other; those that cannot be read do not stop the others.

    Args:
        sources: the name of each image and where it is.

    Returns:
        The names and the images that could be read, and what is wrong with each of the others.
    """
    names: list[str] = []
    images: list[NDArray[np.uint8]] = []
    faults: dict[str, str] = {}
    for name, source in sources:
        try:
            images.append(read_image(source))
            names.append(name)
        except ImageError as error:
            faults[name] = str(error)
    return names, images, faults
