"""Fine-tuning: a run begins with trained weights, all but the last layer's."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.training.nets import state_digest
from deepres.training.optimizers import head_parameters
from deepres.weights.classifier import PixelClassifier


@dataclass(frozen=True)
class TrainedStart:
    """Trained weights with the normalisation that they expect."""

    name: str
    """What they are called."""
    state: dict[str, Tensor] = field(repr=False)
    normalization: Normalization = field(repr=False)

    @classmethod
    def of(cls, classifier: PixelClassifier) -> "TrainedStart":
        """Take a classifier's weights."""
        return cls(classifier.name, dict(classifier.net.state_dict()), classifier.normalization)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that depend on all weights."""
        return state_digest(self.state)

    def record(self) -> dict[str, Any]:
        """Return what recipe.json holds of it."""
        return {"start": {"weights": self.name, "digest": self.digest}}

    @torch.no_grad()
    def copy_into(self, model: nn.Module) -> None:
        """Replace a net's initial weights, all but those of its last layer.

        Raises:
            UserError: the net is of another kind than the one whose weights these are.
        """
        fresh = {id(parameter) for parameter in head_parameters(model)}
        for key, tensor in model.state_dict(keep_vars=True).items():
            if id(tensor) in fresh:
                continue
            if key not in self.state or self.state[key].shape != tensor.shape:
                raise UserError(
                    f"weights {self.name} are of another net: {key!r} is missing there or of another shape"
                )
            tensor.copy_(self.state[key])
