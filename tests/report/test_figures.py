import pytest
from matplotlib.colors import to_hex
from run_files import change_json, write_run

from deepres.report.curves import average, error_limit
from deepres.report.figures import (
    draw_error_against_compute,
    draw_error_against_depth,
    draw_figure6,
    paper_errors,
    split_families,
)
from deepres.report.style import DEPTHS
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs, read_run
from deepres.runs.groups import group_runs
from deepres.runs.statistics import summarize


@pytest.fixture
def groups(tmp_path):
    write_run(tmp_path / "a", "plain20", test_errors=(30.0, 12.0, 9.0))
    write_run(tmp_path / "b", "plain20", seed=1, test_errors=(20.0, 11.0, 10.0))
    write_run(tmp_path / "c", "plain56", test_errors=(60.0, 30.0, 13.0), flop=752_029_440)
    write_run(tmp_path / "d", "resnet20", test_errors=(15.0, 9.0, 8.0))
    return group_runs(load_runs([tmp_path])[0])


def lines(axes, style):
    return [line for line in axes.get_lines() if line.get_linestyle() == style]


def test_average_by_hand(groups):
    curve = average(groups[0])
    assert curve.steps.tolist() == [21333, 42666, 64000]
    assert curve.held_out.mean.tolist() == [25, 11.5, 9.5]
    assert (curve.held_out.low.tolist(), curve.held_out.high.tolist()) == ([20, 11, 9], [30, 12, 10])
    assert curve.train.mean.tolist() == pytest.approx([20, 10, 20 / 3])
    assert curve.held_out_name == "test"


def test_only_epochs_that_all_seeds_recorded_are_averaged(tmp_path, groups):
    run_dir = RunDir(tmp_path / "b")
    run_dir.write_metrics(run_dir.read_metrics()[1:])
    (group, *_) = group_runs(load_runs([tmp_path])[0])
    assert average(group).held_out.mean.tolist() == [11.5, 9.5]


def test_val_error_of_the_45k_split(tmp_path):
    write_run(tmp_path / "v", split="45k", test_errors=(9.0, 8.5))
    (group,) = group_runs(load_runs([tmp_path])[0])
    assert (average(group).held_out_name, average(group).held_out.mean.tolist()) == ("val", [9.0, 8.5])
    assert "bold: val error" in draw_figure6([group]).get_suptitle()


def test_figure6_has_the_papers_axes_and_both_errors(groups):
    figure = draw_figure6(groups)
    plain, residual = figure.get_axes()
    for axes in (plain, residual):
        assert axes.get_ylim() == (0, 20)
        assert axes.get_xlim() == (0, 1.01 * 64_000)
        assert axes.get_xlabel() == "iterations (1e4)"
        assert axes.xaxis.get_major_formatter()(20_000, 0) == "2"
    assert (plain.get_title(), residual.get_title()) == ("plain nets", "residual nets")
    assert len(lines(plain, "--")) == len(lines(plain, "-")) == 2
    test, train = lines(plain, "-")[0], lines(plain, "--")[0]
    assert test.get_ydata().tolist() == [25, 11.5, 9.5]
    assert train.get_ydata().tolist() == pytest.approx([20, 10, 20 / 3])
    assert test.get_linewidth() > train.get_linewidth()
    assert [to_hex(line.get_color()) for line in lines(plain, "-")] == [DEPTHS[20].color, DEPTHS[56].color]
    labels = [text.get_text() for text in plain.get_legend().get_texts()]
    assert labels == ["plain-20: 9.50% (2 seeds)", "plain-56: 13.00% (1 seed)"]
    assert lines(plain, ":") == []
    assert "Recipe paper: mini-batches of 128\n" in figure.get_suptitle()
    assert "running, over augmented images" in figure.get_suptitle()


def test_figure6_of_one_family_and_of_poor_runs(tmp_path):
    write_run(tmp_path / "a", "resnet20", "fast", test_errors=(89.0, 70.0))
    figure = draw_figure6(group_runs(load_runs([tmp_path])[0]))
    plain, residual = figure.get_axes()
    assert residual.get_ylim() == (0, 100)
    assert [text.get_text() for text in plain.texts] == ["no finished runs"]
    assert [line.get_xdata()[0] for line in lines(residual, ":")] == [1089, 4357]  # 20% and 80% of 5,446 steps
    small = "until step 1,089 on images of 16 x 16 pixels; until step 4,357 on images of 24 x 24 pixels"
    assert f"mini-batches of 256; {small}\n" in figure.get_suptitle()
    assert [tick for tick in residual.get_xticks() if tick <= 5446] == [0, 1000, 2000, 3000, 4000, 5000]
    assert [error_limit([limit]) for limit in (9.0, 19.5, 27.0, 50.0, 58.0)] == [20, 25, 30, 60, 100]


def test_other_families_get_a_panel_of_their_own():
    assert split_families(["resnet20"]) == ["plain", "resnet"]
    assert split_families(["preresnet110", "plain20"]) == ["plain", "resnet", "preresnet"]


def test_error_against_depth_beside_the_papers(groups):
    (axes,) = draw_error_against_depth([summarize(group) for group in groups]).get_axes()
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert drawn["plain, mean of the seeds"] == [[20, 9.5], [56, 13]]
    assert drawn["ResNet, mean of the seeds"] == [[20, 8]]
    assert drawn["plain, the paper"] == [[20, 9.5], [32, 10], [44, 12], [56, 13.5]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["20", "32", "44", "56"]


def test_the_papers_errors_beside_a_recipe(tmp_path, groups):
    deep = group_runs([read_run(write_run(tmp_path / "deep", "resnet110"))])
    assert paper_errors("resnet", [summarize(group) for group in deep])[110] == 6.61  # a mean is held against the mean
    path = write_run(tmp_path / "other", "resnet56")
    change_json(path / "recipe.json", option="B")
    (group,) = group_runs([read_run(path)])
    assert paper_errors("resnet", [summarize(group)]) == {}  # its shortcuts are option A


def test_error_against_compute(groups):
    (axes,) = draw_error_against_compute([summarize(group) for group in groups]).get_axes()
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    resnet20, plain56 = 242_421_504 * 64_000 * 128, 752_029_440 * 64_000 * 128
    assert drawn["ResNet, paper"] == [[resnet20, 8]]
    assert drawn["plain, the paper"] == [[resnet20, 9.5], [plain56, 13.5]]
    assert axes.get_xscale() == "log"


def test_one_net_by_two_recipes_is_told_apart_by_its_markers_alone(tmp_path):
    write_run(tmp_path / "a", recipe="paper")
    write_run(tmp_path / "b", recipe="faster")
    summaries = [summarize(group) for group in group_runs(load_runs([tmp_path])[0])]
    (axes,) = draw_error_against_compute(summaries).get_axes()
    ours = [line for line in axes.get_lines() if line.get_label() in ("ResNet, paper", "ResNet, faster")]
    assert len(ours) == 2
    assert len({line.get_fillstyle() for line in ours}) == 2


def test_nets_of_one_compute_have_one_label_outside_of_both(tmp_path):
    for model, others in (("resnet20", (8.0, 8.5)), ("plain20", (9.0, 9.5))):
        for precision, error in zip(("float32", "bfloat16"), others, strict=True):
            write_run(tmp_path / f"{model}-{precision}", model, precision=precision, test_errors=(30.0, error))
    summaries = [summarize(group) for group in group_runs(load_runs([tmp_path])[0])]
    (axes,) = draw_error_against_compute(summaries).get_axes()
    assert sorted((text.get_text(), text.xy[1]) for text in axes.texts) == [("20", 8.0), ("20", 9.5)]


def test_wider_nets_are_not_drawn_as_the_papers(tmp_path):
    write_run(tmp_path / "a", "resnet20", test_errors=(30.0, 8.0))
    write_run(tmp_path / "b", "resnet56", test_errors=(30.0, 7.0), flop=752_029_440)
    write_run(tmp_path / "c", "resnet20x2", test_errors=(30.0, 6.0), flop=960_000_000)
    groups = group_runs(load_runs([tmp_path])[0])
    summaries = [summarize(group) for group in groups]
    _, residual = draw_figure6(groups).get_axes()
    labels = [text.get_text() for text in residual.get_legend().get_texts()]
    assert labels == [f"ResNet-{net}% (1 seed)" for net in ("20: 8.00", "20x2: 6.00", "56: 7.00")]
    assert len({line.get_color() for line in lines(residual, "-")}) == 3
    (axes,) = draw_error_against_depth(summaries).get_axes()
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert drawn["ResNet, mean of the seeds"] == [[20, 8], [56, 7]]
    assert drawn["ResNet x2, mean of the seeds"] == [[20, 6]]
    (axes,) = draw_error_against_compute(summaries).get_axes()
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
    assert (drawn["ResNet, paper"], drawn["ResNet x2, paper"]) == ([8, 7], [6])
    assert {"20", "56", "20x2"} <= {text.get_text() for text in axes.texts}


def test_compute_leaves_out_runs_that_did_not_record_it(tmp_path):
    write_run(tmp_path / "old", flop=None)
    summaries = [summarize(group) for group in group_runs(load_runs([tmp_path])[0])]
    assert draw_error_against_compute(summaries).get_axes()[0].get_lines() == []
