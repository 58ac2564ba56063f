"""A classifier that the Hugging Face Hub's client saves, loads and shares; needs `pip install 'deepres[hub]'`."""

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin

from deepres.data.augment import NORMALIZATIONS, Normalization
from deepres.errors import unknown_name
from deepres.inputs import IMAGE_SIZE
from deepres.models import build_model
from deepres.weights.classifier import PixelClassifier


class HubClassifier(
    PixelClassifier,
    PyTorchModelHubMixin,
    library_name="deepres",
    license="mit",
    pipeline_tag="image-classification",
    paper_url="https://arxiv.org/abs/1512.03385",
):
    """A `PixelClassifier` with `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Its arguments are what config.json holds; weights and normalisation are in model.safetensors.

    Args:
        model: a key of `MODELS`.
        option: the kind of shortcut.
        num_classes: the number of logits.
        normalization: "channel" or "pixel_mean", which gives the shape of `mean`.
        name: what the weights are called.

    Raises:
        UserError: an unknown name.

    Example:
        >>> HubClassifier.of(load_pretrained("resnet20")).save_pretrained("folder")
        >>> model = HubClassifier.from_pretrained("folder")
    """

    def __init__(
        self,
        model: str,
        *,
        option: str = "A",
        num_classes: int = 10,
        normalization: str = "channel",
        name: str = "",
    ) -> None:
        if normalization not in NORMALIZATIONS:
            raise unknown_name("normalization", normalization, NORMALIZATIONS)
        size = IMAGE_SIZE if normalization == "pixel_mean" else 1
        empty = Normalization(mean=torch.zeros(3, size, size), std=torch.ones(3, 1, 1))
        super().__init__(build_model(model, option=option, num_classes=num_classes), empty, name)

    @classmethod
    def of(cls, classifier: PixelClassifier) -> Self:
        """Return a copy of any classifier that can be saved and shared."""
        net = classifier.net
        copy = cls(
            f"{'resnet' if net.residual else 'plain'}{net.depth}",
            option=net.option,
            num_classes=net.fc.out_features,
            normalization="channel" if classifier.mean.numel() == 3 else "pixel_mean",
            name=classifier.name,
        )
        copy.load_state_dict(classifier.state_dict())
        return copy.train(classifier.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote, from a folder or the Hub; a file that lacks a weight is refused."""
        loaded: Self = super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **kwargs})
        return loaded
