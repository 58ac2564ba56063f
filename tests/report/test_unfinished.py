import pytest
from command_line import assert_one_line_error, run_cli
from run_files import change_json, write_run

from deepres.report.report import write_report
from deepres.report.unfinished import draw_unfinished
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs
from deepres.runs.unfinished import read_unfinished


def cut(path, steps, epochs):
    """Let a run have begun and taken some steps of its schedule."""
    run = RunDir(path)
    rows = run.read_metrics()[:epochs]
    rows[-1]["step"] = steps
    run.write_metrics(rows)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    cut(write_run(folder / "going", "resnet32", seed=3, finished=False), 32_000, 2)
    write_run(folder / "begun", "resnet44", finished=False)
    RunDir(folder / "begun").metrics.unlink()
    stopped = write_run(folder / "stopped", "plain20", test_errors=(40.0, 30.0))
    cut(stopped, 20_000, 1)
    change_json(RunDir(stopped).result, steps=20_000)
    damaged = write_run(folder / "damaged", "plain32")
    RunDir(damaged).environment.write_text("{}")
    return folder


def test_which_runs_are_unfinished(runs):
    found, others = read_unfinished(load_runs([runs])[1])
    assert [(run.path.name, run.step, run.total_steps, run.error) for run in found] == [
        ("going", 32_000, 64_000, 8.0),
        ("stopped", 20_000, 64_000, 40.0),
    ]
    assert [run.path.name for run in others] == ["begun", "damaged"]


def test_the_steps_of_a_schedule_in_epochs(tmp_path):
    write_run(tmp_path / "a", recipe="one-cycle", finished=False)
    ((run,), _) = read_unfinished(load_runs([tmp_path])[1])
    recipe = run.record.recipe
    assert run.total_steps == -(-recipe["epochs"] * 50_000 // recipe["batch_size"])


def test_the_figure_says_how_far_each_run_is(runs):
    figure = draw_unfinished(read_unfinished(load_runs([runs])[1])[0])
    (axes,) = figure.get_axes()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "ResNet-32, seed 3: 8.00% at 32,000 of 64,000 steps",
        "plain-20, seed 0: 40.00% at 20,000 of 64,000 steps",
    ]
    assert axes.get_xlim()[1] > 64_000
    assert [text.get_text() for text in axes.texts] == ["unfinished"]


def test_a_report_before_any_run_is_finished(runs, tmp_path, monkeypatch, capsys):
    report = "report", runs, "--out", tmp_path / "out"
    assert_one_line_error(run_cli(monkeypatch, capsys, *report), "--unfinished shows those that have begun")
    code, _, _ = run_cli(monkeypatch, capsys, *report, "--unfinished")
    assert code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no finished run yet" in page
    assert 'id="picture-unfinished-paper"' in page
    assert (tmp_path / "out" / "unfinished-paper.svg").is_file()


def test_they_are_in_no_table(runs, tmp_path):
    write_run(runs / "whole", "resnet20", test_errors=(9.0, 8.5))
    written, _ = write_report([runs], tmp_path / "one")
    with_them, _ = write_report([runs], tmp_path / "two", unfinished=True)
    extra = {path.name for path in with_them} - {path.name for path in written}
    assert extra == {f"unfinished-paper.{suffix}" for suffix in ("png", "svg", "pdf")}
    for suffix in ("md", "csv", "tex"):
        assert (tmp_path / "one" / f"table6.{suffix}").read_bytes() == (
            tmp_path / "two" / f"table6.{suffix}"
        ).read_bytes()
    pages = [(tmp_path / name / "report.html").read_text() for name in ("one", "two")]
    assert "Unfinished" not in pages[0]
    assert "going" not in pages[1].split('id="runs"')[1].split("Left out")[0]
