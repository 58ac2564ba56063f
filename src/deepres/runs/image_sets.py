"""Which images a run trained on and was evaluated on: the part "data" of recipe.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepres.errors import UserError
from deepres.runs.content import Content, check_numbers


@dataclass(frozen=True)
class ImageSet:
    """Which images a run trained on, or was evaluated on."""

    images: int
    """How many."""
    digest: str | None
    """The digest of pixels and labels, see `deepres.data.splits.digest_of`; None in runs of which it is not known."""


@dataclass(frozen=True)
class DataRecord:
    """The data of a run."""

    name: str
    fraction: float
    """The share of the training images that is trained on."""
    train: ImageSet
    val: ImageSet | None
    """None where all training images are trained on."""
    test: ImageSet

    @classmethod
    def from_json(cls, content: Content, path: Path) -> "DataRecord":
        """Read the part "data" of recipe.json."""
        check_numbers(content, ("fraction",), path)
        try:
            train, val, test = (
                None if content[key] is None else ImageSet(**content[key]) for key in ("train", "val", "test")
            )
        except (KeyError, TypeError):
            raise UserError(f"{path} is damaged (data)") from None
        if train is None or test is None:
            raise UserError(f"{path} is damaged (data)")
        return cls(str(content.get("name")), content["fraction"], train, val, test)


CIFAR10_TEST = ImageSet(10_000, "2c33b053d1cd726a")
CIFAR10_TRAIN: Mapping[str, tuple[ImageSet, ImageSet | None]] = {  # split -> train and val, with split_seed 0
    "50k": (ImageSet(50_000, "973ef2abb5897efc"), None),
    "45k": (ImageSet(45_000, "275a23a905b11a8c"), ImageSet(5_000, "e8d3d47403a0b354")),
}


def cifar10_record(split: str, split_seed: int) -> DataRecord:
    """Return the record of the whole CIFAR-10, split as a recipe says."""
    train, val = CIFAR10_TRAIN[split]
    if val is not None and split_seed != 0:
        train, val = ImageSet(train.images, None), ImageSet(val.images, None)
    return DataRecord("CIFAR-10", 1.0, train, val, CIFAR10_TEST)
