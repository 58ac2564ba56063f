"""Whether the zoo is what its cards say."""

from dataclasses import dataclass
from pathlib import Path

import torch

from deepres.data.cifar10 import Split
from deepres.models import count_parameters
from deepres.training.checkpoint import load_weights
from deepres.training.device import resolve_device
from deepres.training.evaluate import error_percent
from deepres.weights.card import Card
from deepres.weights.classifier import PixelClassifier
from deepres.weights.zoo import file_sha256


@dataclass(frozen=True)
class Verdict:
    """What was found of one entry, beside its card."""

    card: Card
    sha256: str
    num_parameters: int
    test_error: float
    """In percent, over all test images."""

    @property
    def differences(self) -> list[str]:
        """What is not as the card says; empty if all is."""
        card = self.card
        found = []
        if self.sha256 != card.sha256:
            found.append(f"sha256 is {self.sha256[:16]}..., the card says {card.sha256[:16]}...")
        if self.num_parameters != card.num_parameters:
            found.append(f"{self.num_parameters:,} parameters, the card says {card.num_parameters:,}")
        if self.test_error != card.test_error_last:
            found.append(f"test error {self.test_error:.2f}%, the card says {card.test_error_last:.2f}%")
        return found


def verify(card: Card, weights: Path, test: Split) -> Verdict:
    """Recompute what a card states of its weights file.

    Raises:
        UserError: the file is missing, or too damaged to be loaded.
    """
    checksum = file_sha256(weights)
    trained = load_weights(weights)
    classifier = PixelClassifier(trained.model, trained.normalization).to(resolve_device("auto"))
    logits = classifier.predict_logits(torch.from_numpy(test.images))
    return Verdict(
        card, checksum, count_parameters(trained.model), error_percent(logits, torch.from_numpy(test.labels))
    )
