"""The card of a weights file: what it is, how it was made, how good it is. Nothing here needs torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deepres.errors import UserError
from deepres.files import read_json
from deepres.recipes.recipe import SPLITS
from deepres.runs.published import PUBLISHED

NUM_TEST = 10_000

USE = (
    "Study, teaching and comparison: a baseline for changes to the net or its training, and a check of other "
    "implementations. Not meant for decisions about anything outside of CIFAR-10."
)
DATA = (
    "CIFAR-10 (Krizhevsky, 2009) are photos found on the web by the names of things, labelled by people, with no "
    "record of who took them or where. To 3.3% of the test images there is a near duplicate among the training images "
    '(Barz, Denzler, "Do we train on test data?", 2020), so that errors on new images are higher.'
)
LIMITS = (
    "Ten classes of 32x32 images: a photo of anything else is put into one of them all the same, often with a high "
    "probability.",
    "Probabilities are the softmax's and were not calibrated.",
    "How the errors change with other cameras, places or resolutions, or under attack, was not measured.",
)


@dataclass(frozen=True)
class Card:
    """What there is to know of one weights file. Errors are in percent of the 10,000 test images, two decimals."""

    name: str
    """The weights file is `name`.safetensors: model and recipe, with what departs from their defaults."""
    model: str
    option: str
    """The kind of shortcut, "A", "B" or "C"."""
    num_parameters: int
    recipe: str
    split: str
    """The training images: "50k" or "45k"."""
    seed: int
    """The seed of the run that these weights are of: the one with the median error of the last epoch."""
    test_error_last: float
    """The test error of these weights, in percent, which are those of the last epoch."""
    test_error_mean: float
    """Over all `num_seeds` runs, their last epochs."""
    test_error_std: float | None
    """Sample standard deviation; None for a single run."""
    num_seeds: int
    runs: Sequence[Mapping[str, Any]]
    """Seed and last epoch's test error of each run, from the best to the worst."""
    normalization: Mapping[str, Any]
    """`kind` ("channel" or "pixel_mean") and, by channel, `mean` and `std` in units of pixels / 255; the file holds
    them in full, as tensors of these names."""
    classes: Sequence[str]
    epochs: float
    steps: int
    command: str
    """Trains this run again."""
    commits: Sequence[str]
    """The commit of this code at each start of the run; "-dirty" marks uncommitted changes."""
    environment: Mapping[str, Any]
    """Precision, backend, workers, device and versions."""
    sha256: str
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the content of the .json file."""
        return asdict(self)

    @property
    def mean_and_std(self) -> str:
        """The error over all seeds, such as "8.91 ± 0.12"."""
        spread = "" if self.test_error_std is None else f" ± {self.test_error_std:.2f}"
        return f"{self.test_error_mean:.2f}{spread}"

    def markdown(self) -> str:
        """Return the card for people to read."""
        published = PUBLISHED.get(self.model) if self.option == "A" else None
        paper = ""
        if published and published.paper is not None:
            paper = ", ".join(filter(None, (f"{published.paper:.2f}%", published.note)))
        runs = ", ".join(f"{run['test_error_last']:.2f} (seed {run['seed']})" for run in self.runs)
        kind = {"channel": "mean and deviation of each channel", "pixel_mean": "mean of each pixel, nothing divided"}
        values = [", ".join(f"{value:.6f}" for value in self.normalization[key]) for key in ("mean", "std")]
        over = "the average" if self.normalization["kind"] == "pixel_mean" else "the mean"
        rows = {
            "net": f"{self.model}, shortcut option {self.option}, {self.num_parameters:,} parameters",
            "test error, last epoch": f"**{self.test_error_last:.2f}%** (seed {self.seed})",
            "over seeds": f"{self.mean_and_std} (n = {self.num_seeds}): {runs}",
            "the paper": paper,
            "recipe": f"{self.recipe}, {self.steps:,} steps, {self.epochs:g} epochs of the {self.split} split",
            "trained by": f"`{self.command}`",
            "code": ", ".join(f"commit {commit}" for commit in self.commits) or "not recorded",
            "with": ", ".join(f"{key} {value}" for key, value in self.environment.items()),
            "input": "pixels (N, 3, 32, 32), red, green, blue, divided by 255 and normalised",
            "normalisation": f"{kind[self.normalization['kind']]}; by channel {over} is {values[0]}, std {values[1]}",
            "classes": ", ".join(self.classes),
            "file": f"{self.name}.safetensors, {self.num_bytes:,} bytes, sha256 `{self.sha256}`",
        }
        limits = "".join(f"- {limit}\n" for limit in LIMITS)
        table = "".join(f"| {key} | {value} |\n" for key, value in rows.items() if value)
        return (
            f"# {self.name}\n\n"
            "Of all runs with this net and recipe, these are the weights of the one whose last epoch has the median "
            "test error on CIFAR-10; no epoch and no seed was chosen for being the best.\n\n"
            f"| | |\n|---|---|\n{table}\n"
            "```python\n"
            "from deepres import load_pretrained\n\n"
            f'model = load_pretrained("{self.name}")  # takes pixels, gives logits; model.net is the bare net\n'
            "```\n\n"
            f"## Intended use\n\n{USE}\n\n"
            f"## Data\n\nTrained on the {SPLITS[self.split]:,} images of the {self.split} split and on nothing else, "
            f"tested on the {NUM_TEST:,} test images. {DATA}\n\n"
            f"## Limits\n\n{limits}"
        )


def read_card(path: Path) -> Card:
    """Read a card's .json file.

    Raises:
        UserError: it is missing, damaged, or lacks a field.
    """
    names = [field.name for field in fields(Card)]
    content = read_json(path, required=names)
    return Card(**{name: content[name] for name in names})


def same_card(path: Path, card: Card) -> bool:
    """Tell whether the file holds this card already."""
    try:
        return bool(read_json(path) == json.loads(json.dumps(card.to_json())))
    except UserError:
        return False
