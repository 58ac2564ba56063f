"""The nets as timm's models: `import deepres.timm`, then `timm.create_model("deepres_resnet20")`.

They take what timm's transforms give for their `pretrained_cfg`: pixels between 0 and 1, mean 0 and deviation 1, since
the normalisation is inside, and with it the pixel mean that timm could not express.
"""

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from deepres.errors import UserError
from deepres.inputs import IMAGE_SIZE
from deepres.models import MODELS, build_model
from deepres.weights.classifier import PixelClassifier
from deepres.weights.foreign import get_normalization
from deepres.weights.zoo import load_pretrained

PREFIX = "deepres_"
# What timm.create_model passes on to every model.
TIMMS_OWN = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}

default_cfgs = generate_default_cfgs(
    {
        f"{PREFIX}{name}": {
            "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
            "fixed_input_size": True,
            "num_classes": 10,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "first_conv": "net.conv1",
            "classifier": "net.fc",
            "license": "mit",
        }
        for name in MODELS
    }
)


class TimmClassifier(PixelClassifier):
    """A `PixelClassifier` with what timm's scripts ask of a model.

    Pixels are not checked for their range: timm's augmentations leave it.
    """

    def __init__(self, classifier: PixelClassifier, pretrained_cfg: Any) -> None:
        super().__init__(classifier.net, classifier.normalization, classifier.name)
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.num_classes = classifier.net.fc.out_features
        self.num_features = self.head_hidden_size = classifier.net.fc.in_features

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise float pixels of any size."""
        return (pixels - self.mean) / self.std

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn pooled features (N, 64), as `forward_features` gives them, into logits, if it has a last layer."""
        return features if pre_logits else self.net.fc(features)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.net.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one; with 0 classes by none, so that the model gives features."""
        fresh: nn.Module = build_model("resnet20", num_classes=num_classes).fc if num_classes else nn.Identity()
        self.net.fc = fresh.to(self.mean.device)  # type: ignore[assignment]
        self.num_classes = num_classes


def _register(name: str) -> None:
    def create(
        pretrained: bool = False, num_classes: int = 10, option: str = "A", in_chans: int = 3, **kwargs: Any
    ) -> TimmClassifier:
        if in_chans != 3:
            raise UserError(f"in_chans={in_chans}: the nets of deepres take the 3 channels of CIFAR-10")
        for key in kwargs.keys() - TIMMS_OWN:
            if kwargs[key]:  # timm's scripts pass many as False, 0 or None
                raise UserError(f"{key}={kwargs[key]!r}: the nets of deepres have no such setting: leave it out")
        if pretrained:
            classifier = load_pretrained(name)
        else:
            net = build_model(name, option=option, num_classes=num_classes or 10)
            classifier = PixelClassifier(net, get_normalization("cifar10"))
        model = TimmClassifier(classifier, default_cfgs[f"{PREFIX}{name}"].default.to_dict())
        if model.num_classes != num_classes:
            model.reset_classifier(num_classes)
        return model

    create.__name__ = create.__qualname__ = f"{PREFIX}{name}"
    create.__doc__ = f"{name} of deepres; `pretrained=True` loads its weights from the zoo."
    registered: Callable[..., nn.Module] = register_model(create)
    globals()[create.__name__] = registered


for _name in MODELS:
    _register(_name)
