"""CIFAR-100 on disk: the pickled files of ``cifar-100-python``, each read only if its md5 is the published one.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The sums are those that torchvision
publishes.
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import requests

from deepres.data.cifar10 import BadFileError, Split, resolve_data_dir
from deepres.errors import UserError

FOLDER = "cifar-100-python"
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
FILES = {  # name -> published md5
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds between two pieces


def load_cifar100(
    data_dir: str | Path | None = None, sums: Mapping[str, str] = FILES
) -> tuple[Split, Split, tuple[str, ...]]:
    """Return the 50,000 training images, the 10,000 test images and the names of the 100 fine classes.

    Args:
        data_dir: the folder that holds ``cifar-100-python``; see `deepres.data.cifar10.resolve_data_dir`.
        sums: the md5 of each file.

    Raises:
        UserError: there is no CIFAR-100, or a file of it is missing or altered.
    """
    root = resolve_data_dir(data_dir)
    folder = root / FOLDER
    if not folder.is_dir():
        raise UserError(f"there is no CIFAR-100 in {root}: run `deepres fetch --data cifar100`")
    content = {name: _read(folder / name, md5) for name, md5 in sums.items()}
    train, test = (decode(content[name]) for name in ("train", "test"))
    return train, test, tuple(name.decode() for name in content["meta"][b"fine_label_names"])


def decode(content: dict[bytes, Any]) -> Split:
    """Return the images and fine labels of an unpickled file."""
    images = np.ascontiguousarray(content[b"data"]).reshape(-1, 3, 32, 32)  # (N, 3, 32, 32)
    return Split(images=images, labels=np.array(content[b"fine_labels"], np.int64))


def _read(path: Path, md5: str) -> dict[bytes, Any]:
    """Unpickle a file; what has the published md5 is what the makers of the data set wrote, and safe."""
    again = f"delete {path.parent} and run `deepres fetch --data cifar100`"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadFileError(path, "is missing", again) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise BadFileError(path, "is altered (its md5 is not the published one)", again)
    made: dict[bytes, Any] = pickle.loads(content, encoding="bytes")
    return made


def fetch_cifar100(data_dir: str | Path | None = None) -> Path:
    """Make sure that CIFAR-100 is on disk: download the official archive of 169 MB if it is not; return its folder.

    Raises:
        UserError: the archive is out of reach or altered, or the folder cannot be written.
    """
    root = resolve_data_dir(data_dir)
    try:
        load_cifar100(root)
    except BadFileError:
        raise
    except UserError:
        _download(root)
        load_cifar100(root)
    return root / FOLDER


def _download(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        pooch.get_logger().setLevel("WARNING")
        pooch.retrieve(
            URL,
            known_hash=f"md5:{ARCHIVE_MD5}",
            fname=URL.rpartition("/")[2],
            path=root,
            processor=pooch.Untar(extract_dir="."),
            downloader=pooch.HTTPDownloader(timeout=TIMEOUT),
        )
    except requests.RequestException as error:
        reason = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
        raise UserError(
            f"{URL} is out of reach ({reason}): put the archive, or the folder {FOLDER}, into {root} by hand"
        ) from None
    except ValueError:  # pooch's, for a wrong checksum
        raise UserError(f"{URL} delivered something without the published md5: try again later") from None
    except OSError as error:
        raise UserError(f"{root} cannot be written ({error.strerror or error}): give another --data-dir") from None
