"""A classifier that the Hugging Face Hub's client saves, loads and shares; needs `pip install 'deepres[hub]'`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from torch import nn

from deepres.data.augment import NORMALIZATIONS, Normalization
from deepres.errors import UserError, unknown_name
from deepres.inputs import IMAGE_SIZE
from deepres.models import ResNet, build_model, count_parameters, net_name
from deepres.weights.classifier import PixelClassifier
from deepres.weights.file import load_weights
from deepres.zoo.card import Card
from deepres.zoo.catalogue import find_weights, list_cards_if_any


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
        image_size: rows and columns of the images.
        name: what the weights are called.
        classes: the name of each logit; None is CIFAR-10's, or numbers where there are not ten.

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
        image_size: int = IMAGE_SIZE,
        name: str = "",
        classes: Sequence[str] | None = None,
    ) -> None:
        if normalization not in NORMALIZATIONS:
            raise unknown_name("normalization", normalization, NORMALIZATIONS)
        size = image_size if normalization == "pixel_mean" or image_size != IMAGE_SIZE else 1
        empty = Normalization(mean=torch.zeros(3, size, size), std=torch.ones(3, 1, 1))
        super().__init__(build_model(model, option=option, num_classes=num_classes), empty, name, classes)

    @classmethod
    def of(cls, classifier: PixelClassifier) -> Self:
        """Return a copy of any classifier that can be saved and shared.

        Raises:
            UserError: its net is none of the paper's, or has a head of its own.
        """
        net = classifier.net
        if not isinstance(net, ResNet) or not isinstance(net.fc, nn.Linear):
            raise UserError("a HubClassifier takes a net of the paper, whose last layer is linear, and no others")
        copy = cls(
            net_name(net),
            option=net.option,
            num_classes=net.fc.out_features,
            normalization="channel" if classifier.mean.numel() == 3 else "pixel_mean",
            image_size=classifier.image_size,
            name=classifier.name,
            classes=list(classifier.classes),
        )
        copy.load_state_dict(classifier.state_dict())
        return copy.train(classifier.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote, from a folder or the Hub; a file that lacks a weight raises an error."""
        loaded: Self = super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **kwargs})
        return loaded

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the README: the zoo's card where these are weights of the zoo, else what can be read off the model."""
        content = card.markdown() if (card := self._find_card()) else self._describe()
        usage = (
            "```python\nfrom deepres.integrations.huggingface import HubClassifier\n\n"
            'model = HubClassifier.from_pretrained("FOLDER or USER/NAME")  # takes pixels, gives logits\n```\n'
        )
        data = self._hub_mixin_info.model_card_data
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{content}\n{usage}")

    def _find_card(self) -> Card | None:
        """Return the card of the zoo's weights that these are, if they have not been trained further."""
        for card in list_cards_if_any():
            path = find_weights(card) if card.name == self.name else None
            if path is None:
                continue
            theirs = load_weights(path).classifier(card.name).state_dict()
            ours = self.state_dict()
            tensors = [key for key in theirs if key != "_extra_state"]
            if all(key in ours and torch.equal(theirs[key], ours[key].cpu()) for key in tensors):
                return card
        return None

    def _describe(self) -> str:
        """Return a card of what the model itself tells."""
        means, stds = (
            ", ".join(f"{value:.6f}" for value in tensor.mean(dim=(1, 2)).tolist()) for tensor in (self.mean, self.std)
        )
        net, size = self.net, self.image_size
        rows = {
            "net": f"{net_name(net)}, shortcut option {net.option}, {count_parameters(net):,} parameters",
            "input": f"pixels (N, 3, {size}, {size}), red, green, blue, divided by 255 and normalised",
            "normalisation": f"by channel the mean is {means}, std {stds}",
            "classes": ", ".join(self.classes),
            "test error": "not recorded: these are no weights of the zoo, whose cards state it",
        }
        table = "".join(f"| {key} | {value} |\n" for key, value in rows.items())
        return f"# {self.name or net_name(net)}\n\n| | |\n|---|---|\n{table}"
