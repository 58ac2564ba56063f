import numpy as np

from deepres.data.cifar10 import CLASSES, Split
from deepres.report.dataset import GAP, draw_classes, draw_rows, strip
from deepres.report.style import house_style


def test_strip_by_hand():
    images = np.arange(2 * 3 * 2 * 2, dtype=np.uint8).reshape(2, 3, 2, 2)
    row = strip(images, 3)
    assert row.shape == (2 + GAP, 3 * (2 + GAP), 3)
    for i in range(2):
        place = row[:2, i * (2 + GAP) : i * (2 + GAP) + 2]
        assert np.array_equal(place, images[i].transpose(1, 2, 0))
    assert (row[2:] == 255).all()
    assert (row[:, 2 * (2 + GAP) :] == 255).all()


def test_examples_of_each_class_stand_in_its_row():
    labels = np.array([7, 1, 7, 0, 7])
    images = np.stack([np.full((3, 32, 32), 10 * i, np.uint8) for i in range(5)])
    (axes,) = draw_classes(Split(images, labels), 2).get_axes()
    picture = axes.images[0].get_array()
    pitch = 32 + GAP
    corners = [[int(picture[pitch * row, pitch * column, 0]) for column in range(2)] for row in (0, 1, 2, 7)]
    assert corners == [[30, 255], [10, 255], [255, 255], [0, 20]]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(CLASSES)


def test_rows_of_any_range_reach_from_black_to_white():
    bytes_, floats = np.full((2, 3, 4, 4), 9, np.uint8), np.linspace(-2, 3, 48, dtype=np.float32).reshape(1, 3, 4, 4)
    first, second = draw_rows({"bytes": bytes_, "floats": floats}).get_axes()
    assert first.images[0].get_array()[0, 0, 0] == 9
    drawn = second.images[0].get_array()[:4, :4]
    assert (drawn.min(), drawn.max()) == (0, 255)
    assert [axes.get_title(loc="left") for axes in (first, second)] == ["bytes", "floats"]


def test_a_caption_longer_than_its_row_is_not_cut_off():
    figure = draw_rows({"the mean of each pixel over all": np.zeros((1, 3, 32, 32), np.uint8)})
    with house_style():
        figure.canvas.draw()
    (axes,) = figure.get_axes()
    drawn = axes.get_tightbbox()  # its caption included
    assert drawn.x0 >= 0
    assert drawn.x1 <= figure.bbox.x1
