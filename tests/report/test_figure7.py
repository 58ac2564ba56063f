import csv

import pytest

from deepres.errors import UserError
from deepres.report.responses import Responses, draw_figure7, read_responses, write_responses

NETS = [
    Responses("resnet20", "a", ("conv1", "layer1.0.conv1", "fc1"), (0.5, 2.0, 1.0)),
    Responses("plain20", "b", ("conv1", "layer1.0.conv1"), (3.0, 2.5)),
]


def test_round_trip_in_natural_order(tmp_path):
    write_responses(tmp_path, NETS, 50_000)
    assert read_responses(tmp_path / "responses.json") == NETS[::-1]
    with (tmp_path / "responses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert rows[1] == {"model": "resnet20", "source": "a", "layer": "2", "name": "layer1.0.conv1", "std": "2.0"}


def test_figure7_in_order_and_sorted():
    top, bottom = draw_figure7(NETS).get_axes()
    assert [list(line.get_ydata()) for line in top.get_lines()] == [[0.5, 2.0, 1.0], [3.0, 2.5]]
    assert [list(line.get_ydata()) for line in bottom.get_lines()] == [[2.0, 1.0, 0.5], [3.0, 2.5]]
    assert [line.get_linestyle() for line in top.get_lines()] == ["-", "--"]
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["ResNet-20 (a)", "plain-20 (b)"]


@pytest.mark.parametrize("content", ['{"nets": []}', '{"nets": [{"model": "resnet20"}]}', '{"nets": [1]}', "{}", "["])
def test_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "responses.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_responses(tmp_path / "responses.json")


def test_nets_of_one_name_are_told_apart():
    """As ResNet-20 by two recipes, or two seeds of it."""
    again = [*NETS, *NETS]
    lines = draw_figure7(again).get_axes()[0].get_lines()
    looks = {(line.get_linestyle(), line.get_marker(), line.get_markerfacecolor(), line.get_color()) for line in lines}
    assert len(looks) == len(again)
