"""What the nets see: examples of each class, and how augmentation changes an image."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepres.data.cifar10 import CLASSES, Split
from deepres.report.style import house_style, new_figure

EXAMPLES = 10  # of each class
GAP = 4  # pixels between images


def draw_classes(split: Split, num_examples: int = EXAMPLES) -> Figure:
    """Draw the first examples of each class, in the order of the data set.

    Args:
        split: the images to choose from; a class with fewer examples gets a shorter row.
        num_examples: of each class.
    """
    size = split.images.shape[-1]
    rows = [strip(split.images[split.labels == label][:num_examples], num_examples) for label in range(len(CLASSES))]
    with house_style():
        figure = new_figure(1.3 + 0.72 * num_examples, 0.72 * len(CLASSES))
        axes = figure.add_subplot()
        axes.imshow(np.concatenate(rows), interpolation="nearest")
        axes.set_yticks([(size + GAP) * i + size / 2 - 0.5 for i in range(len(CLASSES))], CLASSES)
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
    return figure


def draw_rows(rows: Mapping[str, NDArray[np.float32] | NDArray[np.uint8]]) -> Figure:
    """Draw rows of images with a caption above each, such as images and what augmentation makes of them.

    Args:
        rows: caption -> images (N, 3, H, W): uint8, or float of any range, of which the lowest value is drawn as
            black and the highest as white.
    """
    longest = max(len(images) for images in rows.values())
    width_of_captions = max(map(len, rows)) / 12  # inches
    with house_style():
        figure = new_figure(max(1.0 * longest, width_of_captions), 1.25 * len(rows))
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, (caption, images) in zip(panels, rows.items(), strict=True):
            axes.imshow(strip(_to_bytes(images), longest), interpolation="nearest")
            axes.set_title(caption, fontsize=9.5, loc="left")
            axes.set_anchor("W")
            axes.set_axis_off()
    return figure


def _to_bytes(images: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images.astype(np.uint8)
    low, high = float(images.min()), float(images.max())
    return np.asarray((255 * (images - low) / max(high - low, 1e-6)).round(), np.uint8)


def strip(images: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Lay images side by side with white gaps: (N, 3, H, W) -> (H + gap, length * (W + gap), 3), N <= length."""
    _, channels, height, width = images.shape
    row = np.full((length, channels, height + GAP, width + GAP), 255, np.uint8)
    row[: len(images), :, :height, :width] = images
    return row.transpose(2, 0, 3, 1).reshape(height + GAP, length * (width + GAP), channels)
