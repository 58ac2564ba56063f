import json
import sys

import numpy as np
import pytest
from command_line import assert_one_line_error, run_cli
from PIL import Image
from run_files import write_run

from deepres.runs.predictions import Predictions


@pytest.fixture
def compare(monkeypatch, capsys):
    return lambda *arguments: run_cli(monkeypatch, capsys, "compare", *arguments)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for model, errors in {"resnet20": (8.1, 8.3, 8.4), "plain20": (9.6, 10.0, 10.3), "plain32": (10.1,)}.items():
        for seed, error in enumerate(errors):
            wrong = np.arange(100) < round(error)
            answers = Predictions(np.zeros(100, np.uint8), wrong.astype(np.uint8), np.ones(100, np.float32))
            write_run(folder / f"{model}-{seed}", model, seed=seed, test_errors=(error,), predictions=answers)
    write_run(folder / "plain32-1", "plain32", seed=1, finished=False)
    return folder


def test_tables_fit_80_columns_and_end_with_a_verdict(compare, runs):
    code, stdout, stderr = compare("model=resnet20", "model=plain20", "model=plain32", "--runs", runs)
    assert code == 0
    assert stderr == f"deepres: left out {runs / 'plain32-1'}: not finished: epoch 3, step 64,000\n"
    assert max(map(len, stdout.splitlines())) <= 80
    lines = [" ".join(line.split()) for line in stdout.splitlines()]
    assert "A model=resnet20 3 8.27 ± 0.15 7.89 to 8.65 0,1,2" in lines
    assert "C model=plain32 1 10.10 0" in lines
    assert "B - A: differ in model resnet20 -> plain20" in lines
    assert any(line.startswith("Welch's t-test +1.70 +0.9") for line in lines)
    assert any(line.startswith("paired t-test, 3 seeds +1.70") for line in lines)
    assert "McNemar's test, 3 seeds +2.00 0.031" in lines
    assert "of 300 answers 0 are wrong by A alone, 6 by B alone" in lines
    assert any(line.startswith("B errs 1.70 points more than A, 95% interval 0.9") for line in lines)
    assert any(line.startswith("no test: C errs 1.83 points more than A, but C has one run") for line in lines)


def test_json_and_latex_say_the_same(compare, runs):
    pattern = str(runs / "resnet20-*"), str(runs / "plain20-*")
    code, stdout, _ = compare(*pattern, "--json")
    content = json.loads(stdout)
    assert code == 0
    assert [group["test_errors"] for group in content["groups"]] == [[8.1, 8.3, 8.4], [9.6, 10.0, 10.3]]
    (row,) = content["comparisons"]
    assert row["differences"] == {"model": ["resnet20", "plain20"]}
    assert row["mcnemar"]["seeds"] == [0, 1, 2]
    assert row["needed_seeds"] == 3
    assert row["significant"]
    latex = compare(*pattern, "--latex")[1]
    assert r"B - A & 3, 3 & +1.70 & " in latex
    assert latex.count("&") == 2 * 8
    assert f"% {row['verdict']}" in latex


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot(compare, runs, tmp_path, suffix):
    path = tmp_path / f"plot.{suffix}"
    assert compare("model=resnet20", "model=plain32", "--runs", runs, "--plot", path)[0] == 0
    if suffix == "png":
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert path.stat().st_size > 5000


def test_bad_input_is_one_line(compare, runs, tmp_path):
    two = "model=resnet20", "model=plain20", "--runs", runs
    assert_one_line_error(compare("model=resnet20", "--runs", runs), "name a second one")
    assert_one_line_error(compare(*two, "--differ", "recipe"), "A and B do not differ in recipe")
    assert_one_line_error(compare(*two, "--plot", tmp_path / "a.gif"), "let its name end in .png")
    assert_one_line_error(compare(*two, "--plot", tmp_path / "no" / "a.png"), "there is no folder")
    assert_one_line_error(compare(*two, "--json", "--latex"), "give one")
    assert_one_line_error(compare("recipe=paper", "model=plain20", "--runs", runs), "A (recipe=paper) mixes runs")
    assert_one_line_error(compare("model=vgg", *two[1:]), "model is plain20, plain32, resnet20 there")


def test_without_scipy(compare, monkeypatch):
    for name in ("compare", "power", "significance", "statistics"):
        monkeypatch.delitem(sys.modules, f"deepres.runs.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "scipy", None)
    assert_one_line_error(compare("a", "b"), "deepres compare needs scipy", "pip install 'deepres[report]'")
