import json
import re
import subprocess
import sys
from unittest.mock import ANY

import numpy as np
import pytest
from command_line import assert_one_line_error, run_cli
from run_files import write_run

from deepres.report.responses import Responses, write_responses
from deepres.runs.predictions import Predictions

# As `deepres` does; then says whether torch came along, which would make a report wait for it.
WITHOUT_TORCH = """
import sys
from deepres.cli.main import main
try:
    main()
finally:
    print("torch imported:", "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, whole_cifar10):
    """Runs of two nets on the real test set; of one net two seeds, one of another recipe, one not finished."""
    folder = tmp_path_factory.mktemp("runs")
    labels = whole_cifar10.test.labels.astype(np.uint8)
    for seed in range(2):
        predicted = labels.copy()
        predicted[: 800 + seed] = (labels[: 800 + seed] + 1) % 10
        probability = np.linspace(1, 0.2, len(labels), dtype=np.float32)
        predictions = Predictions(labels, predicted, probability)
        write_run(folder / f"a{seed}", seed=seed, test_errors=(30.0, 8.0 + 0.01 * seed), predictions=predictions)
    write_run(folder / "b", "plain20", test_errors=(40.0, 9.5), flop=None)
    write_run(folder / "c", "resnet20", seed=5, finished=False)
    write_responses(folder, [Responses("resnet20", "a0", ("conv1", "layer1.0.conv1"), (1.5, 0.5))], 50_000)
    return folder


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory, cifar10_dir):
    out = tmp_path_factory.mktemp("report") / "new"
    command = [sys.executable, "-c", WITHOUT_TORCH, "report", runs, "--out", out, "--data-dir", cifar10_dir]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done


def test_report_needs_no_torch(written):
    _, done = written
    assert "torch imported: False" in done.stdout


def test_every_figure_and_table_is_there_in_every_format(written):
    out, done = written
    figures = {"figure6-paper", "figure7", "error-depth-paper", "error-compute"}
    figures |= {"confusion-resnet20-paper", "calibration-paper", "wrong-paper"}
    expected = {f"{name}.{suffix}" for name in figures for suffix in ("png", "svg", "pdf")}
    assert {path.name for path in out.iterdir()} == expected | {"table6.md", "table6.csv", "table6.tex", "report.html"}
    assert f"{len(expected) + 4} files written to {out}" in done.stdout
    assert "not shown: answers on the test set: no predictions.npz in the runs of plain20 (paper)" in done.stderr
    assert "not shown: compute: the runs of plain20 recorded no operations" in done.stderr


def test_the_page_refers_to_nothing_outside_itself(written):
    page = (written[0] / "report.html").read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert re.findall(r'\b(?:src|href)="(?!data:image/png;base64,|#)[^"]*"', page) == []
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert (
        """content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">"""
        in page
    )
    assert page.count("<script") == page.count("</script>") == 2


def test_ids_in_the_page_are_unique_and_references_lead_somewhere(written):
    page = (written[0] / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert len(references) > 100
    assert references <= set(ids)


def test_the_page_says_what_the_runs_say(written, runs):
    page = (written[0] / "report.html").read_text()
    text = re.sub(r"<script.*?</script>|<svg.*?</svg>|<[^>]*>", " ", page, flags=re.DOTALL)
    text = " ".join(text.split())
    assert "3 finished runs of 2 nets, recipe paper" in text
    assert "paper resnet20 8.00 ± 0.01 2 8.00 8.75 8.04 8.00 float32" in text
    assert "ResNet-20 is better than plain-20 paper too few seeds +1.50" in text
    assert "deepres grid --models plain32,plain44,plain56,resnet32,resnet44,resnet56,resnet110 --recipes paper" in text
    assert "paper resnet20 2 8.00 ± 0.01 " in text
    assert "airplane taken for" not in text.split("The most confident errors")[0]
    assert "AMD EPYC" in text
    assert f"{runs / 'c'} : not finished" in text
    assert "running one of each epoch over augmented images" in text


def test_the_page_holds_the_figures_that_are_written(written):
    out, _ = written
    page = (out / "report.html").read_text()
    shown = dict(re.findall(r'<div class="figure" id="picture-([^"]+)".*?(<svg.*?</svg>)', page, re.DOTALL))
    names = {path.stem for path in out.glob("*.svg")}
    assert set(shown) == names - {"wrong-paper"}  # its images stand in the page one by one
    for name, svg in shown.items():
        curves = re.findall(r'\bd="[^"]*"', (out / f"{name}.svg").read_text())
        assert len(curves) > 10
        assert re.findall(r'\bd="[^"]*"', svg) == curves


def test_figure_6_holds_the_values_for_the_pointer(written):
    page = (written[0] / "report.html").read_text()
    (content,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    plain, residual = json.loads(content)
    assert 0 < plain["left"] < plain["right"] < residual["left"] < residual["right"] <= 1
    assert residual["steps"] == 1.01 * 64_000
    assert residual["held_out"] == "test"
    (curve,) = residual["curves"]
    assert curve == {"name": "ResNet-20", "steps": [32_000, 64_000], "held_out": [30.0, 8.0], "train": ANY}
    assert len(curve["train"]) == 2
    assert [curve["name"] for curve in plain["curves"]] == ["plain-20"]


@pytest.fixture
def report(monkeypatch, capsys):
    return lambda *arguments: run_cli(monkeypatch, capsys, "report", *arguments)


def test_without_data_or_predictions_the_rest_is_written(report, tmp_path):
    write_run(tmp_path / "runs" / "a", flop=None)
    code, stdout, stderr = report(tmp_path / "runs", "--out", tmp_path / "out", "--data-dir", tmp_path)
    assert (code, stderr.count("not shown: ")) == (0, 4)
    assert "not shown: error against depth, recipe paper: resnet20 alone has finished runs" in stderr
    assert "`deepres responses RUN... --out" in stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'id="confusion' not in page
    assert 'id="compute' not in page
    assert 'id="depth' not in page
    assert str(tmp_path / "out" / "report.html") in stdout

    predictions = Predictions(np.array([1], np.uint8), np.array([2], np.uint8), np.array([1], np.float32))
    write_run(tmp_path / "runs" / "b", seed=1, predictions=predictions)
    code, _, stderr = report(tmp_path / "runs", "--out", tmp_path / "out", "--data-dir", tmp_path)
    assert code == 0
    assert f"not shown: wrong test images: there is no CIFAR-10 in {tmp_path}" in stderr


def test_damaged_answers_and_responses_cost_only_their_pictures(report, tmp_path):
    runs = tmp_path / "runs"
    (write_run(runs / "a") / "predictions.npz").write_bytes(b"PK")
    (runs / "responses.json").write_text("{")
    code, _, stderr = report(runs, "--out", tmp_path / "out")
    assert code == 0
    damaged = runs / "a" / "predictions.npz"
    assert f"not shown: answers of resnet20 (paper) on the test set: {damaged} is damaged" in stderr
    assert f"not shown: figure 7: {runs / 'responses.json'} is damaged" in stderr
    assert "ResNet-20" in (tmp_path / "out" / "report.html").read_text()


def test_nothing_to_report(report, tmp_path):
    write_run(tmp_path / "runs" / "a", finished=False)
    assert_one_line_error(report(tmp_path / "runs", "--out", tmp_path / "out"), "no finished run in", "runs")
    assert_one_line_error(report(tmp_path / "nowhere", "--out", tmp_path / "out"), "no folder", "nowhere")
    assert not (tmp_path / "out").exists()


def test_the_command_line_starts_without_any_extra():
    extras = ("jinja2", "matplotlib", "scipy", "ray", "huggingface_hub", "onnx", "tensorboard", "tensorflow", "timm")
    hide = f"import sys; sys.modules |= dict.fromkeys({extras})\nfrom deepres.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", hide, "recipes"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fast" in done.stdout


@pytest.mark.parametrize(
    ("command", "package"),
    [("report", "jinja2"), ("report", "matplotlib"), ("responses", "matplotlib"), ("figures", "matplotlib")],
)
def test_a_missing_extra_is_named(tmp_path, command, package):
    hide = f"import sys; sys.modules['{package}'] = None\nfrom deepres.cli.main import main\nmain()"
    dirs = [] if command == "figures" else [tmp_path]
    words = [sys.executable, "-c", hide, command, *dirs, "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    message = f"deepres {command} needs {package}: pip install 'deepres[report]'"
    assert_one_line_error((done.returncode, done.stdout, done.stderr), message)
    assert not (tmp_path / "out").exists()
