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
    def create(pretrained=False, **kwargs):
        from deepres.models import build_model
        from deepres.weights import PixelClassifier, load_pretrained
        from deepres.weights.foreign import get_normalization

        if pretrained:
            return load_pretrained(name, **kwargs)
        return PixelClassifier(build_model(name, **kwargs), get_normalization("cifar10"), name)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"""Return {name}, which takes pixels and gives logits.

    Args:
        pretrained: with the weights of deepres's zoo; else with fresh ones, normalised by CIFAR-10's statistics.
        kwargs: of `load_pretrained` (folder, url), or of `build_model` (option, num_classes).
    """
    return create


def _define():
    from deepres.models import MODELS

    globals().update({name: _entry_point(name) for name in MODELS})


_define()
