"""The zoo: weights that come with deepres, found by name, verified and loaded."""

import hashlib
import os
from pathlib import Path
from typing import Any

import platformdirs
import pooch
import requests
import torch

from deepres.errors import UserError, unknown_name
from deepres.models import build_model
from deepres.models.preact import PreActResNet, preact_depth
from deepres.recipes.named import RECIPES
from deepres.runs.directory import RunDir
from deepres.runs.finished import model_key
from deepres.weights.classifier import PixelClassifier
from deepres.weights.file import load_weights
from deepres.weights.own import load_own_weights, own_name, read_own_weights
from deepres.weights.read import SUFFIXES
from deepres.zoo.card import Card, read_card

PACKAGED = Path(__file__).parent / "weights"  # in a checkout all weights, in a wheel those of 20 layers
DOWNLOAD_TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds between two pieces


def zoo_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of the zoo: the argument, else the environment's DEEPRES_ZOO, else the package's own.

    Raises:
        UserError: there is no such folder.
    """
    path = Path(folder or os.environ.get("DEEPRES_ZOO") or PACKAGED)
    if not path.is_dir():
        raise UserError(f"no zoo in {path}: give a folder of weights and cards, or unset DEEPRES_ZOO")
    return path


def list_cards(folder: str | Path | None = None) -> list[Card]:
    """Return the cards of the zoo in the order of their nets, and for each net in that of `deepres recipes`."""
    recipes = list(RECIPES)

    def order(card: Card) -> tuple[Any, ...]:
        recipe = recipes.index(card.recipe) if card.recipe in recipes else len(recipes)
        return model_key(card.model), (card.option, card.split) != ("A", "50k"), recipe, card.name

    return sorted((read_card(path) for path in zoo_folder(folder).glob("*.json")), key=order)


def list_cards_if_any() -> list[Card]:
    """Return the cards of the zoo; none where there is no zoo, or a damaged one, for what works without."""
    try:
        return list_cards()
    except UserError:
        return []


def find_card(name: str, folder: str | Path | None = None) -> Card:
    """Return the card of an entry ("resnet20-fast"), or of a net's first entry ("resnet20"), see `list_cards`.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    cards = list_cards(folder)
    for card in cards:
        if name in (card.name, card.model):
            return card
    if not cards:
        raise UserError(f"no weights of {name!r}: the zoo in {zoo_folder(folder)} is empty")
    raise unknown_name("weights", name, dict.fromkeys(n for card in cards for n in (card.model, card.name)))


def find_weights(card: Card, folder: str | Path | None = None) -> Path | None:
    """Return the file of an entry's weights in the zoo, unverified, or in the user's cache; None if in neither."""
    path = zoo_folder(folder) / f"{card.name}.safetensors"
    if path.is_file():
        return path
    path = cache_path(card)
    return path if path.is_file() and file_sha256(path) == card.sha256 else None


def cache_path(card: Card) -> Path:
    """Return where a downloaded file is kept."""
    return platformdirs.user_cache_path("deepres") / "zoo" / f"{card.sha256[:16]}-{card.name}.safetensors"


def get_weights(card: Card, folder: str | Path | None = None, url: str | None = None) -> Path:
    """Return the file of an entry's weights, verified; downloaded to the user's cache where the zoo lacks it.

    Args:
        card: of the entry.
        folder: the zoo; see `zoo_folder`.
        url: the address, http(s), of the folder that holds `NAME.safetensors`; None is the environment's
            DEEPRES_ZOO_URL.

    Raises:
        UserError: the file is damaged, cannot be downloaded, or there is no address to download it from.
    """
    if path := find_weights(card, folder):
        if file_sha256(path) != card.sha256:
            raise UserError(f"{path} is damaged or not the card's: its sha256 is not {card.sha256}; install it again")
        return path
    base = url or os.environ.get("DEEPRES_ZOO_URL")
    if not base:
        raise UserError(
            f"{card.name}.safetensors is not installed (only nets of 20 layers are), and no address to download it "
            "from is known: set DEEPRES_ZOO_URL to the address of the folder that holds it, or DEEPRES_ZOO to a "
            "checkout's src/deepres/zoo/weights"
        )
    return download(f"{base.rstrip('/')}/{card.name}.safetensors", cache_path(card), card.sha256)


def download(address: str, path: Path, sha256: str) -> Path:
    """Download a file, verify it, and only then put it into place."""
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(
            address,
            known_hash=f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT),
        )
    except requests.RequestException as error:
        reason = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
        raise UserError(f"could not download {address} ({reason}): fix DEEPRES_ZOO_URL, or try again later") from None
    except ValueError:  # pooch's, for a wrong checksum
        raise UserError(f"{address} has another sha256 than its card says: it is not used") from None
    return path


def file_sha256(path: Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_pretrained(name: str | Path, *, folder: str | Path | None = None, url: str | None = None) -> PixelClassifier:
    """Load weights into a module that takes pixels and gives logits, in evaluation mode.

    Args:
        name: an entry of the zoo such as "resnet20-fast"; or a net such as "resnet20": its entry by the recipe `paper`
            if there is one, else by the next recipe that `deepres recipes` lists; or weights of one's own: a run
            directory, a Hub folder, or a file that `load_weights` reads. A name of the zoo comes before a file or
            folder of the same name, for which "./resnet20" or a `Path` stands.
        folder: the zoo; None is the environment's DEEPRES_ZOO, else the one that is installed.
        url: where to download what is not installed, see `get_weights`.

    Raises:
        UserError: an unknown name, or a file that is damaged, of another kind, or not available.

    Example:
        >>> import deepres, torch
        >>> model = deepres.load_pretrained("resnet20")
        >>> model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([1, 10])
    """
    found = find_entry(name, folder)
    if isinstance(found, Path):
        return load_file(weights_file(found))
    return load_weights(get_weights(found, folder, url)).classifier(found.name)


def find_entry(name: str | Path, folder: str | Path | None = None) -> Card | Path:
    """Return what `load_pretrained` takes a name for: an entry of the zoo, or else a path.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(name, str | Path):
        raise UserError(f"expected the name of weights, a run directory or a file, but got {type(name).__name__}")
    if isinstance(name, Path) or _is_path(name):
        return Path(os.path.expanduser(name))  # noqa: PTH111  # never raises
    try:
        return find_card(name, folder)
    except UserError:
        if not name or not exists(Path(name)):  # "" would be this folder
            raise
        return Path(name)


def load_file(path: Path) -> PixelClassifier:
    """Load the weights of one of our nets from a file, see `load_weights`; of a pre-activation net too."""
    if (depth := preact_depth(own_name(path))) is None:
        return load_weights(path).classifier()
    weights = read_own_weights(path)
    with torch.random.fork_rng(devices=[]):
        return load_own_weights(weights, PreActResNet(depth, num_classes=len(weights.classes)), path)


def with_head(classifier: PixelClassifier, *, option: str, num_classes: int | None) -> PixelClassifier:
    """Return trained weights with a last layer for so many classes: a fresh one if they have another number.

    Raises:
        UserError: the weights are of another shortcut option, or the number is below 1.
    """
    if option != classifier.net.option:
        raise UserError(f"the weights of {classifier.name} have shortcut option {classifier.net.option}, not {option}")
    if num_classes is not None and num_classes != classifier.net.fc.out_features:
        fresh = build_model("resnet20", num_classes=num_classes).fc  # every net of the paper has the same one
        classifier.net.fc = fresh.to(classifier.mean.device)
    return classifier


def _is_path(name: str) -> bool:
    return "/" in name or os.sep in name or name in (".", "..") or Path(name).suffix in SUFFIXES


def weights_file(path: Path) -> Path:
    """Return the weights file of a finished run's directory or of a Hub folder; any other path is the file itself.

    Raises:
        UserError: a folder is neither, or its run has not finished.
    """
    if not exists(path) or not path.is_dir():
        return path
    run_dir = RunDir(path)
    if not (run_dir.weights.exists() and (run_dir.result.exists() or (path / "config.json").exists())):
        raise UserError(f"{path} holds no model.safetensors: it is no run directory, or its run has not finished")
    return run_dir.weights


def exists(path: Path) -> bool:
    """Tell whether there is such a file or folder, also of a path that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
