"""For `torch.hub`: `torch.hub.load(".", "resnet20", source="local", pretrained=True)`.

Every net of the paper is an entry point, by its name. It gives a module that takes pixels, uint8 or float in [0, 1],
(N, 3, 32, 32), and gives logits; the bare net is its attribute `net`.
"""

import sys as _sys
from pathlib import Path as _Path

dependencies = ["torch", "numpy", "safetensors", "pooch", "platformdirs", "requests", "filelock"]

if (_source := str(_Path(__file__).parent / "src")) not in _sys.path:
    _sys.path.insert(0, _source)  # the code beside this file, installed or not


def _entry_point(name):
    def create(pretrained=False, progress=True, *, option="A", num_classes=None, folder=None, url=None):
        from deepres.models import build_model
        from deepres.weights.classifier import PixelClassifier
        from deepres.zoo.catalogue import load_pretrained, with_head
        from deepres.zoo.import_checkpoint import get_normalization

        if pretrained:
            classifier = load_pretrained(name, folder=folder, url=url)
            return with_head(classifier, option=option, num_classes=num_classes)
        if folder is not None or url is not None:
            raise ValueError("folder and url say where weights are: give pretrained=True with them")
        net = build_model(name, option=option, num_classes=10 if num_classes is None else num_classes)
        return PixelClassifier(net, get_normalization("cifar10"), name)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""Return {name}, which takes pixels and gives logits.

    Args:
        pretrained: with the weights of deepres's zoo; else with fresh ones, normalised by CIFAR-10's statistics.
        progress: taken as all entry points of torch.hub take it; no progress is shown, since the files are small.
        option: the kind of shortcut; with pretrained it must be that of the weights.
        num_classes: with pretrained and another number than 10, the last layer is a fresh one.
        folder: of `load_pretrained`.
        url: of `load_pretrained`.
    """
    return create


def _define():
    from deepres.models import MODELS

    globals().update({name: _entry_point(name) for name in MODELS})


_define()
