import pytest

from deepres.models import build_model
from deepres.models.layout import read_layout
from deepres.report.architecture import MEANINGS, draw_architecture


@pytest.mark.parametrize("option", ["A", "C"])
def test_every_layer_is_written_and_every_shortcut_drawn(option):
    plain, residual = read_layout(build_model("plain20")), read_layout(build_model("resnet20", option=option))
    figure = draw_architecture([("plain", plain), ("residual", residual)])
    (axes,) = figure.get_axes()
    texts = [text.get_text() for text in axes.texts]
    for written, times in {"3x3 conv, 16": 14, "3x3 conv, 32, /2": 2, "3x3 conv, 64": 10, "fc, 10": 2}.items():
        assert texts.count(written) == times
    assert texts.count("output\nsize 8") == 2
    kinds = {shortcut.kind for shortcut in residual.shortcuts}
    assert {MEANINGS[kind] for kind in kinds} <= set(texts)
    layers = 7 + 6 + 6 + 2
    assert len(axes.patches) == 2 * (layers + layers) + 9  # boxes, an arrow to each, and the shortcuts


def test_no_text_overlaps_another():
    figure = draw_architecture([(name, read_layout(build_model(name))) for name in ("plain20", "resnet20")])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.get_axes()[0].texts]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    overlaps = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert overlaps == []
