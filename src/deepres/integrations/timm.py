"""The nets as timm's models: `import deepres.integrations.timm`, then `timm.create_model("deepres_resnet20")`.

They take what timm's transforms give for their `pretrained_cfg`: pixels between 0 and 1, mean 0 and deviation 1, since
the normalisation is inside, and with it the pixel mean that timm could not express.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.models._pretrained import PretrainedCfg
from torch import Tensor, nn

from deepres.errors import UserError, unknown_name
from deepres.inputs import IMAGE_SIZE
from deepres.models import MODELS, build_model, net_name
from deepres.models.resnet import WIDTHS
from deepres.weights.classifier import PixelClassifier
from deepres.zoo.catalogue import find_weights, list_cards_if_any, load_pretrained, with_head
from deepres.zoo.import_checkpoint import get_normalization

PREFIX = "deepres_"
COMMON = {
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


def _make_cfgs() -> dict[str, dict[str, Any]]:
    """Return a configuration for each net and, tagged "paper", "fast" and so on, for each of the zoo's weights."""
    cfgs: dict[str, dict[str, Any]] = {}
    for card in list_cards_if_any():
        path = find_weights(card)
        tag = card.name.removeprefix(f"{card.model}-")
        cfgs[f"{PREFIX}{card.model}.{tag}"] = {**COMMON, "file": str(path) if path else None}
    tagged = {name.partition(".")[0] for name in cfgs}
    return {**cfgs, **{f"{PREFIX}{name}": dict(COMMON) for name in MODELS if f"{PREFIX}{name}" not in tagged}}


default_cfgs = generate_default_cfgs(_make_cfgs())


class TimmClassifier(PixelClassifier):
    """A `PixelClassifier` with what timm's scripts ask of a model.

    It takes uint8 pixels, and floats whose range is not checked, since timm's augmentations leave it.

    Args:
        classifier: whose net and normalisation become this one's.
        pretrained_cfg: timm's description of it.
        in_chans: channels of its pixels. One is taken for each of three; of other numbers, the first layer repeats
            its weights, as timm does it.
    """

    def __init__(self, classifier: PixelClassifier, pretrained_cfg: Any, in_chans: int = 3) -> None:
        super().__init__(classifier.net, classifier.normalization, classifier.name)
        self._classes = classifier._classes
        self.pretrained_cfg = self.default_cfg = pretrained_cfg
        self.num_classes = classifier.net.fc.out_features
        self.num_features = self.head_hidden_size = classifier.net.fc.in_features
        self.in_chans = in_chans
        self.feature_info = [
            {"num_chs": width, "reduction": 2**i, "module": f"net.layer{i + 1}"} for i, width in enumerate(WIDTHS)
        ]
        if in_chans not in (1, 3):
            conv = nn.Conv2d(in_chans, WIDTHS[0], 3, padding=1, bias=False)
            conv.weight = nn.Parameter(adapt_input_conv(in_chans, self.net.conv1.weight.detach()))
            self.net.conv1 = conv
            channels = [i % 3 for i in range(in_chans)]
            self.mean, self.std = self.mean[channels], self.std[channels]

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise pixels of any size, uint8 or float."""
        return normalize_any(pixels, self.mean, self.std, self.in_chans, next(self.net.parameters()))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn pooled features (N, 64), as `forward_features` gives them, into logits, if it has a last layer."""
        return features if pre_logits else self.net.fc(features)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the outputs of the stages (N, 16, H, W), (N, 32, H/2, W/2), (N, 64, H/4, W/4), as timm's models do.

        Args:
            x: pixels.
            indices: of the stages; None is all, a number that many of the last.
            norm: has no effect: there is no normalisation behind the last stage.
            stop_early: whether to leave out the stages behind the last one that is asked for.
            output_fmt: "NCHW", and no other.
            intermediates_only: whether to leave out the pooled features.

        Returns:
            The list of outputs or, without `intermediates_only`, the pooled features and that list.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt={output_fmt!r}: the nets of deepres give NCHW")
        taken, last = feature_take_indices(len(WIDTHS), indices)
        net, outputs = self.net, []
        x = net.bn1(net.conv1(self.normalize(x))).relu()
        for i, stage in enumerate((net.layer1, net.layer2, net.layer3)):
            if i > last and (stop_early or intermediates_only):
                break
            x = stage(x)
            if i in taken:
                outputs.append(x)
        return outputs if intermediates_only else (x.mean(dim=(2, 3)), outputs)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> Any:
        """Drop the stages behind the last one that is asked for, and the last layer; return the stages' indices."""
        taken, last = feature_take_indices(len(WIDTHS), indices)
        for i in range(last + 1, len(WIDTHS)):
            setattr(self.net, f"layer{i + 1}", nn.Sequential())
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.net.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one; with 0 classes by none, so that the model gives features."""
        _check_pool(global_pool)
        fresh: nn.Module = build_model("resnet20", num_classes=num_classes).fc if num_classes else nn.Identity()
        self.net.fc = fresh.to(self.mean.device)  # type: ignore[assignment]
        self.num_classes = num_classes


@torch.fx.wrap  # a leaf for tracers, which have no shapes to check
def normalize_any(pixels: Tensor, mean: Tensor, std: Tensor, in_chans: int, weight: Tensor) -> Tensor:
    """Normalise pixels (N, in_chans, H, W), uint8 or float of any range."""
    if pixels.ndim != 4 or pixels.shape[1] != in_chans:
        raise UserError(f"expected pixels of shape (N, {in_chans}, H, W), but got {tuple(pixels.shape)}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise UserError(f"expected pixels that are uint8 or float, but got {pixels.dtype}")
    if mean.shape[1:] != (1, 1) and mean.shape[1:] != pixels.shape[2:]:
        size = f"{mean.shape[1]}x{mean.shape[2]}"
        raise UserError(
            f"these weights have a mean for each of {size} pixels, but got images {tuple(pixels.shape[2:])}"
        )
    scaled = pixels.to(mean.dtype)
    if pixels.dtype == torch.uint8:
        scaled = scaled / 255
    return ((scaled - mean) / std).to(weight.dtype)  # of one channel, by broadcasting, three


def _check_pool(global_pool: str | None) -> None:
    if global_pool not in (None, "", "avg"):
        raise UserError(f"global_pool={global_pool!r}: the nets of deepres take the average, 'avg'")


def _find_cfg(name: str, pretrained_cfg: Any, overlay: Mapping[str, Any] | None) -> tuple[PretrainedCfg, str]:
    """Return timm's configuration and the weights that it asks for: a name of the zoo, or a file.

    Raises:
        UserError: an unknown tag or setting, or weights that lie elsewhere.
    """
    known = default_cfgs[f"{PREFIX}{name}"]
    weights, cfg = name, replace(known.default, file=None)
    if isinstance(pretrained_cfg, str) and pretrained_cfg:
        tags = [card.name.removeprefix(f"{name}-") for card in list_cards_if_any() if card.model == name]
        if pretrained_cfg not in tags:
            raise unknown_name(f"tag of {PREFIX}{name}", pretrained_cfg, tags)
        weights = f"{name}-{pretrained_cfg}"
        cfg = replace(cfg, tag=pretrained_cfg)
    changes: dict[str, Any] = {}
    if isinstance(pretrained_cfg, PretrainedCfg):
        changes = asdict(pretrained_cfg)
    elif isinstance(pretrained_cfg, Mapping):
        changes = dict(pretrained_cfg)
    changes |= overlay or {}
    try:
        cfg = replace(cfg, **changes)
    except TypeError:
        raise UserError(f"pretrained_cfg: timm knows no setting among {', '.join(map(str, changes))}") from None
    if elsewhere := [key for key in ("url", "hf_hub_id", "state_dict") if getattr(cfg, key)]:
        raise UserError(f"pretrained_cfg {elsewhere[0]}: deepres loads weights of its zoo by a tag, or from a `file`")
    if cfg.mean != (0, 0, 0) or cfg.std != (1, 1, 1):
        raise UserError("pretrained_cfg mean and std: the normalisation is inside the nets of deepres; leave them out")
    return cfg, str(cfg.file) if cfg.file else weights


def _register(name: str) -> None:
    def create(
        pretrained: bool = False,
        num_classes: int | None = None,
        option: str | None = None,
        in_chans: int = 3,
        features_only: bool = False,
        out_indices: int | Sequence[int] = (0, 1, 2),
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
        cache_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        _check_pool(kwargs.pop("global_pool", None))
        for key, value in {**kwargs, "cache_dir": cache_dir}.items():
            if value:  # timm's scripts pass many as False, 0 or None
                raise UserError(f"{key}={value!r}: the nets of deepres have no such setting: leave it out")
        cfg, weights = _find_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        if pretrained:
            classifier = load_pretrained(Path(weights) if cfg.file else weights)
            if net_name(classifier.net) != name:
                raise UserError(f"{weights} holds weights of {net_name(classifier.net)}, not of {name}")
            classifier = with_head(classifier, option=option or classifier.net.option, num_classes=num_classes or None)
        else:
            net = build_model(name, option=option or "A", num_classes=num_classes or 10)
            classifier = PixelClassifier(net, get_normalization("cifar10"))
        model = TimmClassifier(classifier, cfg.to_dict(), in_chans)
        if num_classes == 0:
            model.reset_classifier(0)
        return FeatureGetterNet(model, out_indices=out_indices) if features_only else model

    create.__name__ = create.__qualname__ = f"{PREFIX}{name}"
    create.__doc__ = f"{name} of deepres; `pretrained=True` loads its weights from the zoo."
    registered: Callable[..., nn.Module] = register_model(create)
    globals()[create.__name__] = registered


for _name in MODELS:
    _register(_name)
