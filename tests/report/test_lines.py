from deepres.report.lines import draw_lines


def test_plain_nets_are_dashed_and_every_depth_has_its_color():
    points = ([1, 2, 3], [90.0, 80.0, 70.0])
    figure = draw_lines(
        {"plain20": points, "resnet20": points, "resnet56": points, "mine": points}, x="steps", y="%", limits=(0, 100)
    )
    (axes,) = figure.axes
    plain, shallow, deep, own = axes.lines
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-", "-", "-"]
    assert plain.get_color() == shallow.get_color() != deep.get_color() != own.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "plain-20",
        "ResNet-20",
        "ResNet-56",
        "mine",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()) == ("steps", "%", (0, 100))
    assert list(shallow.get_ydata()) == points[1]


def test_a_single_point_is_seen():
    few, many = draw_lines({"resnet20": ([1], [90.0]), "resnet56": ([1, 2], [90.0, 80.0])}, x="", y="").axes[0].lines
    assert few.get_marker() == "o"
    assert many.get_marker() == ""


def test_without_lines_there_is_an_empty_picture():
    (axes,) = draw_lines({}, x="", y="", log=True).axes
    assert axes.get_legend() is None
    assert axes.get_yscale() == "log"
