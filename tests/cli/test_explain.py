import numpy as np
import pytest
from command_line import assert_one_line_error, run_cli
from PIL import Image

from deepres.report.explanation import draw_explanation


@pytest.fixture
def explain(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save("noise.png")
    return lambda *arguments: run_cli(monkeypatch, capsys, "explain", *arguments)


def test_a_picture_of_the_most_probable_classes(explain, tmp_path):
    code, stdout, stderr = explain("noise.png")
    assert (code, stderr) == (0, "")
    lines = stdout.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "picture noise-explained.png"
    chances = [float(line.split()[1].rstrip("%")) for line in lines[:3]]
    assert chances == sorted(chances, reverse=True)
    assert Image.open(tmp_path / "noise-explained.png").width > 1000


def test_classes_by_name_and_other_formats(explain, tmp_path):
    code, stdout, _ = explain("noise.png", "--class", "truck", "--class", "cat", "-o", "out.svg")
    assert code == 0
    assert [line.split()[0] for line in stdout.splitlines()] == ["truck", "cat", "picture"]
    assert b"<svg" in (tmp_path / "out.svg").read_bytes()


def test_bad_input_is_one_line(explain):
    assert_one_line_error(explain("missing.png"), "missing.png: it cannot be read (No such file")
    assert_one_line_error(explain("noise.png", "--class", "cow"), "knows no class 'cow': its classes are airplane")
    assert_one_line_error(explain("noise.png", "-o", "out.gif"), "let its name end in .png")
    assert_one_line_error(explain("noise.png", "-o", "noise.png"), "noise.png is the image itself")
    assert_one_line_error(explain("noise.png", "-o", "no/out.png"), "there is no folder no")
    assert_one_line_error(explain("noise.png", "--model", "vgg"), "vgg")


def test_maps_share_one_scale():
    maps = np.stack([np.eye(8, dtype=np.float32), np.full((8, 8), 0.25, np.float32)])
    figure = draw_explanation(np.full((3, 32, 32), 128, np.uint8), maps, ["a", "b"], "both")
    panels = [axes for axes in figure.get_axes() if axes.images]
    assert [axes.get_title() for axes in panels[:3]] == ["what the net sees", "a", "b"]
    assert [axes.images[1].get_clim() for axes in panels[1:3]] == [(0, 1), (0, 1)]
    assert np.allclose(panels[2].images[1].get_array(), 0.25)
