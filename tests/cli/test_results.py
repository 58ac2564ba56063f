import csv
import io
import json
import sys

import pytest
from command_line import assert_one_line_error, run_cli
from run_files import change_json, write_run

from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs


@pytest.fixture
def results(monkeypatch, capsys):
    return lambda *arguments: run_cli(monkeypatch, capsys, "results", *arguments)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for seed, error in enumerate((9.4, 9.6)):
        write_run(folder / f"a{seed}", "plain20", seed=seed, test_errors=(30.0, error - 0.25, error))
    for seed, error in enumerate((13.0, 14.0)):
        write_run(folder / f"b{seed}", "plain56", seed=seed, test_errors=(30.0, error))
    write_run(folder / "c", "resnet20", test_errors=(30.0, 8.5))
    write_run(folder / "d", "resnet20", seed=1, finished=False)
    write_run(folder / "e", "resnet20", recipe="fast", precision="bfloat16", test_errors=(8.0, 8.25))
    write_run(folder / "f", "resnet20", split="45k", test_errors=(9.0, 9.25))
    return folder


def test_tables_of_each_recipe_fit_80_columns(results, runs):
    code, stdout, stderr = results(runs)
    assert code == 0
    assert stderr.startswith(f"deepres: left out {runs / 'd'}: not finished")
    assert max(map(len, stdout.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in stdout.splitlines()]
    # n, mean, std, interval (t = 12.71 for one degree of freedom), median, best, best - last, paper, repo, difference
    assert "plain20 2 9.50 ± 0.14 8.23 to 10.77 9.50 9.25 -0.25 9.50 9.69 +0.00" in lines
    assert "resnet20 1 8.50 8.50 8.50 +0.00 8.75 8.04 -0.25" in lines
    assert (
        "resnet20 1 8.25 8.25 8.75 8.04 -0.50" in lines
    )  # in bfloat16, whose epochs were evaluated in two precisions
    assert "resnet20 1 9.25 9.25 9.25 8.75 8.04 +0.50" in lines  # with val
    assert [line for line in lines if line.startswith("Recipe ")] == [
        "Recipe paper in float32: test error in percent, last epoch",
        "Recipe fast in bfloat16: test error in percent, last epoch",
        "Recipe paper (split 45k) in float32: test error in percent, last epoch",
    ]
    (degradation,) = [line for line in lines if line.startswith("plain-56 is worse than plain-20 2, 2 +4.00")]
    assert 0 < float(degradation.split()[-1]) < 0.1
    assert any(line.startswith("ResNet-20 is better than plain-20 1, 2 +1.00 too few seeds") for line in lines)


def test_the_precisions_of_a_claim_cost_no_other_cell_its_room(results, tmp_path):
    for seed in range(2):
        write_run(
            tmp_path / f"plain{seed}", "plain20", seed=seed, precision="bfloat16", test_errors=(9.4 + seed / 10,)
        )
        write_run(tmp_path / f"resnet{seed}", "resnet20", seed=seed, test_errors=(8.5 + seed / 10,))
    stdout = results(tmp_path)[1]
    assert max(map(len, stdout.splitlines())) <= 80
    (claim,) = [line for line in stdout.splitlines() if line.startswith("ResNet-20 is better than plain-20")]
    assert "2, 2  +0.90 +0.60 to +1.20 " in claim
    assert "".join(stdout.split()).count("(float32") == 1


def test_json_csv_and_markdown_say_the_same(results, runs):
    content = json.loads(results(runs, "--format", "json")[1])
    assert len(content["runs"]) == 7
    assert [entry["path"] for entry in content["left_out"]] == [str(runs / "d")]
    assert content["statistics"][0]["mean"] == 9.5
    assert {claim["claim"] for claim in content["claims"]} >= {"plain-56 is worse than plain-20"}
    rows = list(csv.DictReader(io.StringIO(results(runs, "--format", "csv")[1])))
    assert [row["model"] for row in rows] == [row["model"] for row in content["statistics"]]
    assert [float(row["mean"]) for row in rows] == [row["mean"] for row in content["statistics"]]
    markdown = results(runs, "--format", "markdown")[1]
    assert "| plain20 | 2 | 9.50 ± 0.14 | 8.23 to 10.77 | 9.50 | 9.25 | -0.25 | 9.50 | 9.69 | +0.00 |" in markdown


def test_gathered_runs_are_light_run_directories(results, runs, tmp_path):
    out = tmp_path / "results"
    (runs / "c" / "model.safetensors").write_bytes(b"weights")
    (runs / "c" / "predictions.npz").write_bytes(b"logits")
    assert results(runs, "--out", out)[0] == 0
    names = [path.name for path in sorted((out / "runs").iterdir())]
    assert names == [
        "plain20-paper-seed0",
        "plain20-paper-seed1",
        "plain56-paper-seed0",
        "plain56-paper-seed1",
        "resnet20-fast-seed0",
        "resnet20-paper-seed0",
        "resnet20-paper-split45k-seed0",
    ]
    files = {path.name for path in (out / "runs" / "resnet20-paper-seed0").iterdir()}
    assert files == {"recipe.json", "environment.json", "metrics.jsonl", "result.json", "predictions.npz"}
    rows = list(csv.DictReader((out / "runs.csv").open()))
    assert [row["run"] for row in rows] == [run.path.name for run in load_runs([out])[0]]
    assert rows[0].keys() >= {"model", "recipe", "split", "seed", "precision", "device", "torch", "commit", "steps"}
    assert (rows[0]["test_error_last"], rows[0]["test_error_best"], rows[0]["best_epoch"]) == ("9.4", "9.15", "2")
    by_run = {row["run"]: row for row in rows}
    val = by_run["resnet20-paper-split45k-seed0"]
    assert (val["val_error_last"], val["val_error_best"], val["test_error_best"]) == ("9.25", "9.0", "")
    # Everything that takes DIR works on both alike.
    assert results(out)[1] == results(runs)[1]
    before = (out / "runs.csv").read_bytes()
    assert results(out, "--out", out)[0] == 0
    assert (out / "runs.csv").read_bytes() == before


def test_gathering_adds_and_replaces_but_never_mixes(results, tmp_path):
    out = tmp_path / "results"
    first = write_run(tmp_path / "first", test_errors=(9.0,))
    (first / "predictions.npz").write_bytes(b"logits of the first")
    assert results(first, "--out", out)[0] == 0
    # Another configuration takes another name; the first one stays.
    other = write_run(tmp_path / "other", precision="bfloat16", test_errors=(8.0,))
    assert results(other, "--out", out)[0] == 0
    names = sorted(path.name for path in (out / "runs").iterdir())
    assert names[0] == "resnet20-paper-seed0"
    assert names[1].startswith("resnet20-paper-seed0-")
    assert len((out / "runs.csv").read_text().splitlines()) == 3
    # The same one, trained again, replaces its earlier copy, and leaves nothing of it.
    again = write_run(tmp_path / "again", test_errors=(7.0,))
    for path in (again, other):
        assert results(path, "--out", out)[0] == 0
    assert sorted(path.name for path in (out / "runs").iterdir()) == names
    errors = {run.precision: run.test_error_last for run in load_runs([out])[0]}
    assert errors == {"float32": 7.0, "bfloat16": 8.0}
    assert not (out / "runs" / names[0] / "predictions.npz").exists()


def test_gathering_again_a_run_that_was_evaluated_seldom_changes_nothing(results, tmp_path):
    run_dir = RunDir(write_run(tmp_path / "runs" / "a"))
    every = {"set": "test", "every": 2, "precision": "float32"}
    change_json(run_dir.recipe, evaluation=every)
    for _ in range(3):
        assert results(tmp_path / "runs", "--out", tmp_path / "results")[0] == 0
    assert [path.name for path in (tmp_path / "results" / "runs").iterdir()] == ["resnet20-paper-seed0"]


def test_a_net_of_ones_own_that_is_called_as_the_papers_is_none_of_it(results, tmp_path):
    write_run(tmp_path / "ours", "resnet20")
    for i, others in enumerate(({"net": {"source": "0" * 16, "weights": None}}, {"start": {"weights": "mine"}})):
        change_json(RunDir(write_run(tmp_path / f"{i}", "resnet20")).recipe, **others)
    found = json.loads(results(tmp_path, "--format", "json")[1])
    assert [row["paper"] for row in found["statistics"]].count(8.75) == 1
    assert all(row["paper"] is None for row in found["statistics"] if row["recipe"] != "paper")
    own = [row["recipe"] for row in found["statistics"] if "net.source" in row["recipe"]]
    assert own
    assert not {claim["recipe"] for claim in found["claims"]} & set(own)


def test_one_line_errors(results, runs, tmp_path, monkeypatch):
    assert_one_line_error(results(tmp_path / "nowhere"), "no folder", "nowhere")
    (tmp_path / "empty").mkdir()
    assert_one_line_error(results(tmp_path / "empty"), f"no finished run in {tmp_path / 'empty'}")
    change_json(RunDir(runs / "c").result, steps="many")
    code, stdout, stderr = results(runs / "c")
    assert (code, stdout) == (2, "")
    assert "steps is 'many', no number" in stderr.splitlines()[0]
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.delitem(sys.modules, "deepres.runs.statistics", raising=False)
    assert_one_line_error(results(runs), "deepres results needs scipy: pip install 'deepres[report]'")
