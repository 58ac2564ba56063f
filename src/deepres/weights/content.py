"""Reads the tensors of a file of any kind, without running code from it."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from deepres.errors import UserError, first_line

# Packages whose objects lie beside weights as plain data. Nothing of them is loaded: a stand-in takes their place.
FORMAT = "deepres-1"
PLAIN_DATA = (
    "numpy",
    "_codecs",
    "argparse",
    "types.SimpleNamespace",
    "collections",
    "datetime",
    "decimal",
    "fractions",
    "pathlib",
    "uuid",
    "omegaconf",
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
)


MAX_STAND_INS = 100


MAX_DEPTH = 50  # of mappings in mappings


State = dict[str, Tensor]


def flatten(content: object, prefix: str = "", within: tuple[int, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in a tree of mappings, lists and objects, with its dotted key."""
    if isinstance(content, Tensor):
        if not content.is_nested:  # it has no shape
            yield prefix.removesuffix("."), content
        return
    if id(content) in within or len(within) > MAX_DEPTH:
        return
    children: Iterable[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        children = content.items()
    elif isinstance(content, list | tuple):
        children = enumerate(content)
    elif isinstance(content, StandIn):
        children = vars(content).items()
    for key, child in children:
        yield from flatten(child, f"{prefix}{key}.", (*within, id(content)))


class StandIn:
    """Takes the place of an object of some package in a file: keeps its attributes and computes nothing."""

    def __new__(cls, *arguments: object) -> "StandIn":  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            vars(self).update({str(key): value for key, value in state.items()})


def read_content(path: Path) -> tuple[Any, dict[str, Any]]:
    """Read whatever a file holds: tensors and plain data, by torch or from safetensors, and never code.

    Returns:
        The content, and what a file of `save_weights` says about itself (else empty): `model`, `option`,
        `num_classes`, `classes`.

    Raises:
        UserError: the file is missing, damaged, something else than weights, or would run code.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file of weights in it")
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    if kind := other_kind(path, start):
        raise UserError(f"{path} is no readable checkpoint: it is {kind}")
    is_safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size
    if path.suffix == ".safetensors" or is_safetensors:
        return _read_safetensors(path)
    return _read_torch(path), {}


def other_kind(path: Path, start: bytes) -> str | None:
    """Tell by its first bytes what a file is that holds no weights in a form that is read here."""
    if not start:
        return "empty" if path.suffix != ".safetensors" else None
    text = start.lstrip().lower()
    signs = {
        b"version https://git-lfs": "a pointer of Git LFS: get the file itself with `git lfs pull`",
        b"<!doctype": "a web page: the download gave that in place of the file",
        b"<html": "a web page: the download gave that in place of the file",
        b"\x89hdf": "an HDF5 file, as Keras writes: weights of PyTorch are read here",
        b"\x89png": "an image: give it to `deepres predict`",
        b"\xff\xd8\xff": "an image: give it to `deepres predict`",
        b"\x1f\x8b": "compressed by gzip: unpack it first",
        b"rar!": "an archive: unpack it first",
        b"7z\xbc": "an archive: unpack it first",
        b"\x93numpy": "an array of NumPy, and not a state_dict",
    }
    if kind := next((kind for sign, kind in signs.items() if text.startswith(sign)), None):
        return kind
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if path.suffix == ".onnx":
        return "an ONNX file, which is a program without our names: name the weights that it was exported from"
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    return None


def _kind_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # torch's reader says what is wrong
    if any("/code/" in f"/{name}" for name in names) and any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript program: name the weights that it was exported from"
    if any("model.weights.h5" in name for name in names):
        return "a Keras model: name the weights that it was exported from"
    if any(name.endswith("archive_format") for name in names):
        return "a program of torch.export: name the weights that it was exported from"
    if names and all(name.endswith(".npy") for name in names):
        return "arrays of NumPy, such as a run's predictions.npz, and no weights"
    if not any(name.endswith("data.pkl") for name in names):
        return "a zip archive: unpack it first"
    return None


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever the reader raises at a file that was made to confuse it
        raise UserError(
            f"{path} is no readable checkpoint: no readable safetensors file ({first_line(error)})"
        ) from None
    if metadata.get("format") != FORMAT:
        return tensors, {}
    stated: dict[str, Any] = {key: metadata[key] for key in ("model", "option", "num_classes") if key in metadata}
    if missing := {"model", "option", "num_classes"} - stated.keys():
        raise UserError(
            f"{path} does not fit its net {metadata.get('model')}: its header lacks {sorted(missing)[0]!r}"
        )
    if "classes" in metadata:
        try:
            stated["classes"] = json.loads(metadata["classes"])
        except ValueError:
            raise UserError(f"{path} is damaged: its class names are no JSON") from None
    return tensors, stated


def _read_torch(path: Path) -> Any:
    stand_ins: list[tuple[type, str]] = []
    while True:
        try:
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():  # type: ignore[arg-type]
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            blocked = re.search(r"GLOBAL (\S+)", str(error))
            if blocked and _is_plain_data(blocked[1]) and len(stand_ins) < MAX_STAND_INS:
                stand_ins.append((type("StandIn", (StandIn,), {}), blocked[1]))
                continue
            raise UserError(f"{path} holds {_blocked(blocked[1] if blocked else None)}") from None
        except Exception as error:  # whatever the reader raises at a file of another kind
            raise UserError(f"{path} is no readable checkpoint ({first_line(error)})") from None


def _is_plain_data(name: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in PLAIN_DATA)


def _blocked(name: str | None) -> str:
    way_out = "and is not loaded: save its state_dict() alone, where you trust it"
    if name is None:
        return f"something that is no tensor or plain data, {way_out}"
    if re.search(r"torch\.nn\.|\.models?\.|[Nn]et", name):
        return f"a whole module, pickled ({name}), which loading it would run, {way_out}"
    return f"{name}, which loading it would run, {way_out}"


def kind_of(content: object) -> str:
    """Return what a file holds, in words for its reader."""
    if isinstance(content, Mapping) and not content:
        return "an empty dict"
    if isinstance(content, Mapping):
        return f"{type(content).__name__} of {', '.join(repr(key) for key in list(content)[:4])}"
    return type(content).__name__


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor has values that can be read one by one."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized)


def type_of(tensor: Tensor) -> str:
    """Return a tensor's type, in words."""
    return str(tensor.dtype) if is_plain(tensor) else f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
