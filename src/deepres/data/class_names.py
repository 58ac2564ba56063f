"""Which class a word means: folders of images are named in many ways."""

from collections.abc import Sequence

from deepres.errors import UserError

# Other words for CIFAR-10's classes: those of PyTorch's tutorial, and British spelling.
ALIASES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile", "auto": "automobile"}


def class_index(word: str, classes: Sequence[str]) -> int | None:
    """Return the index of the class that a word means, or None.

    Capitals, spaces at the ends and the plural's "s" do not matter; a number is the index itself, unless the classes
    are called by numbers.

    Args:
        word: such as "cat", "Cats", "plane" or "3".
        classes: their names, in the order of the logits.
    """
    names = [name.casefold() for name in classes]
    plain = word.strip().casefold()
    for candidate in (plain, plain.removesuffix("s"), ALIASES.get(plain), ALIASES.get(plain.removesuffix("s"))):
        if candidate in names:
            return names.index(candidate)
    return int(plain) if plain.isascii() and plain.isdigit() and int(plain) < len(classes) else None


def index_folders(names: Sequence[str], classes: Sequence[str], folder: object) -> dict[str, int]:
    """Return the class of each folder in `folder`, by its name.

    Raises:
        UserError: a folder is named after no class, or numbers and names are mixed.
    """
    found = {name: class_index(name, classes) for name in names}
    for name, index in found.items():
        if index is None:
            raise UserError(f"folder {folder}/{name} is named after no class: the classes are {', '.join(classes)}")
    numbers = [name for name in names if name.strip().isdigit() and name.strip() not in classes]
    if numbers and len(numbers) < len(names):
        raise UserError(f"folder {folder} holds folders named by numbers and by words: name all in one way")
    return {name: index for name, index in found.items() if index is not None}
