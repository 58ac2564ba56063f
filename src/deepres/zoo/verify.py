"""Whether the zoo is what its cards say."""

from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.backends.device import resolve_device
from deepres.data.cifar10 import Split
from deepres.errors import UserError
from deepres.models import count_parameters
from deepres.weights.evaluate import error_percent, percent
from deepres.weights.file import load_weights
from deepres.zoo.card import Card
from deepres.zoo.catalogue import file_sha256

# Logits are rounded otherwise on other hardware, and a few images lie on the border of two classes.
TOLERANCE = 3  # images


@dataclass(frozen=True)
class Verdict:
    """What was found of one entry."""

    card: Card
    test_error: float | None
    """The test error measured now, in percent; None if the file could not be loaded."""
    differences: tuple[str, ...]
    """What is not as the card says; empty if all is."""
    num_images: int
    """How many test images there were."""

    def __str__(self) -> str:
        """Say it in a few words."""
        if self.differences:
            return "; ".join(self.differences)
        exact = self.test_error == self.card.test_error_last
        return "as stated" if exact else f"as stated, {tolerance(self.num_images)}"


def same_error(error: float, stated: float, num_images: int) -> bool:
    """Tell whether two errors in percent of so many images are the same but for what hardware may change."""
    return abs(error - stated) <= percent(TOLERANCE, num_images) + 1e-9


def tolerance(num_images: int) -> str:
    """Say how far two errors may differ."""
    return f"to within {TOLERANCE} images of {num_images:,}"


def verify(card: Card, weights: Path, test: Split) -> Verdict:
    """Recompute what a card states of its weights file: checksum, number of parameters, test error to a tolerance."""
    differences = []
    if (checksum := file_sha256(weights)) != card.sha256:
        differences.append(f"sha256 is {checksum[:12]}..., not {card.sha256[:12]}...")
    try:
        trained = load_weights(weights)
    except UserError as fault:
        return Verdict(card, None, (*differences, str(fault)), len(test.labels))
    if (num_parameters := count_parameters(trained.model)) != card.num_parameters:
        differences.append(f"{num_parameters:,} parameters, not {card.num_parameters:,}")
    classifier = trained.classifier(card.name).to(resolve_device("auto"))
    logits = classifier.predict_logits(test.images)
    error = error_percent(logits, torch.from_numpy(test.labels))
    if not same_error(error, card.test_error_last, len(test.labels)):
        differences.append(f"test error {error:.2f}%, not {card.test_error_last:.2f}%")
    return Verdict(card, error, tuple(differences), len(test.labels))
