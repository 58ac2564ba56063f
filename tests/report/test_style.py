from itertools import pairwise

import matplotlib
import pytest

from deepres.report.style import DEPTHS, house_style, new_figure, write_figure


def lightness(colour):
    """Of a colour in grey: CIE L*, 0 (black) to 100."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance


def test_depths_can_be_told_apart_in_grey():
    shades = [lightness(look.color) for look in DEPTHS.values()]
    assert all(one - other >= 7 for one, other in pairwise(shades))  # darker with depth
    assert len({look.marker for look in DEPTHS.values()}) == len(DEPTHS)


def draw():
    with house_style():
        figure = new_figure(2, 2)
        figure.add_subplot().plot([1, 2], [3, 4], label="a")
    return figure


def test_the_same_figure_is_the_same_file_and_settings_stay_as_they_were(tmp_path):
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"axes.grid": True, "lines.linewidth": 9}):  # of the user
        paths = write_figure(draw(), tmp_path, "one")
    assert dict(matplotlib.rcParams) == before
    assert [path.name for path in paths] == ["one.png", "one.svg", "one.pdf"]
    again = write_figure(draw(), tmp_path, "two")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    starts = [b"\x89PNG", b"<?xml", b"%PDF"]
    assert all(path.read_bytes().startswith(start) for path, start in zip(paths, starts, strict=True))


def test_a_failure_in_house_style_leaves_the_settings(monkeypatch):
    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError), house_style():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before
