"""An image with the places that speak for a class, as Grad-CAM finds them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from deepres.report.style import PAPER_GRAY, house_style, new_figure

HEAT = "inferno"


def draw_explanation(
    image: NDArray[np.uint8], maps: NDArray[np.float32], titles: Sequence[str], heading: str
) -> Figure:
    """Draw an image, and for each class the same image in grey under the map of what speaks for it.

    The maps share one scale, so that they can be compared: bright is where the most speaks for any of the classes.

    Args:
        image: (3, H, W), red, green, blue.
        maps: (n, h, w), zero or more.
        titles: n, above the maps.
        heading: above all.
    """
    height, width = image.shape[1:]
    top = max(float(maps.max()), 1e-12)
    grey = image.mean(axis=0)
    with house_style():
        figure = new_figure(2.3 * (1 + len(maps)), 2.9)
        panels = figure.subplots(1, 1 + len(maps), squeeze=False)[0]
        for axes in panels:
            axes.set_axis_off()
        panels[0].imshow(image.transpose(1, 2, 0), interpolation="nearest")
        panels[0].set_title("what the net sees", fontsize=10, color=PAPER_GRAY)
        for axes, one, title in zip(panels[1:], maps, titles, strict=True):
            fine = Image.fromarray(one.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            shown = axes.imshow(np.asarray(fine), cmap=HEAT, vmin=0, vmax=top, alpha=0.6, interpolation="nearest")
            axes.set_title(title, fontsize=10)
        bar = figure.colorbar(shown, ax=panels[1:].tolist(), fraction=0.04, pad=0.02, ticks=[0, top])
        bar.ax.set_yticklabels(["nothing", "most"], fontsize=8)
        bar.outline.set_visible(False)
        figure.suptitle(heading, fontsize=10)
    return figure
