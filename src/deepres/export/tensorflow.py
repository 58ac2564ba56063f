"""TensorFlow: a Keras model of native layers, which trains further there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepres.errors import UserError
from deepres.export.formats import Images, Logits
from deepres.models import ResNet
from deepres.models.blocks import Block, PadShortcut, ProjectionShortcut
from deepres.weights.classifier import PixelClassifier

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on processors are no concern of the user's

import keras

LAST = "channels_last"  # TensorFlow's layout, and the only one in which its convolutions run on a CPU


def write(classifier: PixelClassifier, path: Path) -> None:
    """Write a .keras file: pixels, uint8 or float in [0, 1], (batch, S, S, 3), channels last, to logits."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"Keras runs on {keras.backend.backend()} here: set KERAS_BACKEND=tensorflow")
    build_keras(classifier).save(path)


def load(path: Path) -> Callable[[Images], Logits]:
    """Open the file with Keras alone."""
    model = keras.models.load_model(path)

    def run(images: Images) -> Logits:
        logits: Logits = model.predict(images.transpose(0, 2, 3, 1), batch_size=250, verbose=0)
        return logits

    return run


def build_keras(classifier: PixelClassifier) -> Any:
    """Build the same net from Keras layers, named as torch's modules are, and give each its weights."""
    net = classifier.net
    if not isinstance(net, ResNet) or not isinstance(net.fc, nn.Linear):
        raise UserError("format tensorflow takes the nets of deepres with a linear last layer, and no others")
    pixels = keras.Input((classifier.image_size, classifier.image_size, 3), dtype="float32", name="pixels")
    std = classifier.std.double()
    offset = -classifier.mean.double() / std
    x = keras.layers.Rescaling(_last(1 / (255 * std)), _last(offset), name="normalize")(_bytes(pixels))
    x = keras.layers.ReLU(name="relu1")(_conv_bn(x, net.conv1, net.bn1, "conv1", "bn1"))
    for name, module in net.named_modules():
        if isinstance(module, Block):
            x = _block(x, module, name.replace(".", "_"))
    x = keras.layers.GlobalAveragePooling2D(data_format=LAST, name="pool")(x)
    head = keras.layers.Dense(net.fc.out_features, name="fc")
    logits = head(x)
    head.set_weights([_numpy(net.fc.weight).T, _numpy(net.fc.bias)])
    return keras.Model(pixels, logits, name="".join(c if c.isalnum() else "_" for c in classifier.name) or "net")


def _bytes(pixels: Any) -> Any:
    """Bring images in [0, 1], which are those with fractions and nothing above 1, to between 0 and 255.

    Keras converts what it is given to one type, so that the values have to tell which of the two it was.
    """
    fractions = keras.ops.any(keras.ops.not_equal(pixels, keras.ops.floor(pixels)), axis=(1, 2, 3), keepdims=True)
    small = keras.ops.all(keras.ops.less_equal(pixels, 1.0), axis=(1, 2, 3), keepdims=True)
    return keras.ops.where(keras.ops.logical_and(fractions, small), pixels * 255.0, pixels)


def _block(x: Any, block: Block, name: str) -> Any:
    out = _conv_bn(x, block.conv1, block.bn1, f"{name}_conv1", f"{name}_bn1")
    out = keras.layers.ReLU(name=f"{name}_relu1")(out)
    out = _conv_bn(out, block.conv2, block.bn2, f"{name}_conv2", f"{name}_bn2")
    if block.shortcut is not None:
        out = keras.layers.Add(name=f"{name}_add")([out, _shortcut(x, block.shortcut, f"{name}_shortcut")])
    return keras.layers.ReLU(name=f"{name}_relu2")(out)


def _shortcut(x: Any, shortcut: nn.Module, name: str) -> Any:
    if isinstance(shortcut, ProjectionShortcut):
        conv, bn = shortcut[0], shortcut[1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        return _conv_bn(x, conv, bn, f"{name}_0", f"{name}_1")
    if not isinstance(shortcut, PadShortcut):
        return x
    # The average of one pixel at every second place: subsampling.
    pool = keras.layers.AveragePooling2D(1, strides=shortcut.stride, data_format=LAST, name=f"{name}_subsample")
    # With channels first, this layer pads the last two axes: ours are width, left as it is, and channels.
    padding = ((0, 0), (0, shortcut.extra_channels))
    pad = keras.layers.ZeroPadding2D(padding, data_format="channels_first", name=f"{name}_zeros")
    return pad(pool(x))


def _conv_bn(x: Any, conv: nn.Conv2d, bn: nn.BatchNorm2d, conv_name: str, bn_name: str) -> Any:
    size, stride = conv.kernel_size[0], conv.stride[0]
    padding = "same" if stride == 1 else "valid"
    if stride != 1 and size > 1:
        # torch pads one pixel on every side; "same" would pad only below and to the right where the stride is 2.
        x = keras.layers.ZeroPadding2D(1, data_format=LAST, name=f"{conv_name}_pad")(x)
    layer = keras.layers.Conv2D(
        conv.out_channels,
        size,
        strides=stride,
        padding=padding,
        use_bias=False,
        data_format=LAST,
        kernel_initializer="he_normal",
        name=conv_name,
    )
    # Keras's momentum is the share that stays, torch's the share that is new.
    norm = keras.layers.BatchNormalization(momentum=1 - (bn.momentum or 0), epsilon=bn.eps, name=bn_name)
    x = norm(layer(x))
    layer.set_weights([_numpy(conv.weight).transpose(2, 3, 1, 0)])  # (O, I, H, W) -> (H, W, I, O)
    running = [bn.running_mean, bn.running_var]
    norm.set_weights([_numpy(tensor) for tensor in (bn.weight, bn.bias, *running) if tensor is not None])
    return x


def _numpy(tensor: Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    array: np.ndarray[Any, np.dtype[Any]] = tensor.detach().cpu().numpy()
    return array


def _last(statistic: Tensor) -> Any:
    """Per channel (3, 1, 1) to a list of three, per pixel (3, H, W) to nested lists (H, W, 3)."""
    if statistic.numel() == len(statistic):
        return statistic.flatten().tolist()
    return torch.permute(statistic, (1, 2, 0)).tolist()
