import json

import pytest
import torch
from command_line import assert_one_line_error
from tiny_cifar10 import TinyCifar10
from tiny_run import first_images

from deepres.data.augment import Normalization
from deepres.models import build_model
from deepres.report.responses import read_responses
from deepres.weights.file import save_weights
from deepres.weights.responses import layer_responses


@pytest.fixture
def run(run, monkeypatch, cifar10_dir, tmp_path_factory):
    """The command line, for which the first 100 training images are all that there are."""
    tiny = TinyCifar10.of(first_images(cifar10_dir, 100).train, 20)
    run.release = tiny.release
    monkeypatch.setenv("DEEPRES_DATA", str(tiny.write(tmp_path_factory.mktemp("data"))))
    return run


@pytest.fixture
def nets(tmp_path):
    """A run directory and a weights file."""
    normalization = Normalization(torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25))
    paths = [tmp_path / "run" / "model.safetensors", tmp_path / "plain.safetensors"]
    paths[0].parent.mkdir()
    models = [build_model("resnet20").eval(), build_model("plain20").eval()]
    for path, model in zip(paths, models, strict=True):
        save_weights(path, f"{'resnet' if model.residual else 'plain'}20", model, normalization)
    (paths[0].parent / "result.json").write_text("{}")
    return [paths[0].parent, paths[1]], models, normalization


def test_responses_are_measured_over_the_training_set(run, nets, tmp_path, cifar10_dir):
    paths, models, normalization = nets
    code, stdout, _ = run("responses", *paths, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert "resnet20: std of 19 layers" in stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"responses.json", "responses.csv", "figure7.png", "figure7.svg", "figure7.pdf"}
    plain, residual = read_responses(tmp_path / "out" / "responses.json")
    assert (plain.source, residual.source) == ("plain.safetensors", "run")
    assert json.loads((tmp_path / "out" / "responses.json").read_text())["num_images"] == 100
    images = torch.from_numpy(first_images(cifar10_dir, 100).train.images)
    for written, model in ((residual, models[0]), (plain, models[1])):
        expected = layer_responses(model, images, normalization)
        assert written.layers == tuple(expected)
        assert written.std == pytest.approx(list(expected.values()), rel=1e-4)


def test_responses_of_a_runs_file_are_the_runs(run, nets, tmp_path):
    folder = nets[0][0]
    assert run("responses", folder / "model.safetensors", "--out", tmp_path / "out", "--device", "cpu")[0] == 0
    assert [net.source for net in read_responses(tmp_path / "out" / "responses.json")] == ["run"]


def test_responses_of_an_unfinished_run_are_refused(run, nets, tmp_path):
    """Its weights are of an earlier end, by --max-steps."""
    folder = nets[0][0]
    (folder / "result.json").unlink()
    assert_one_line_error(run("responses", folder, "--out", tmp_path / "out"), str(folder), "has not finished")


def test_responses_to_images_of_another_size_are_refused(run, tmp_path):
    path = tmp_path / "large.safetensors"
    large = Normalization(torch.zeros(3, 64, 64), torch.ones(3, 1, 1))
    save_weights(path, "resnet8", build_model("resnet8").eval(), large)
    assert_one_line_error(run("responses", path, "--out", tmp_path / "out"), str(path), "images of 64x64 pixels")


def test_responses_of_nothing(run, tmp_path):
    assert_one_line_error(run("responses", tmp_path, "--out", tmp_path / "out"), str(tmp_path), "model.safetensors")
    assert_one_line_error(run("responses", tmp_path / "none", "--out", tmp_path / "out"), "no weights file")
    assert_one_line_error(run("responses", tmp_path), "--out")


def test_responses_are_not_measured_for_a_folder_that_cannot_be(run, nets, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", None)  # by which responses are measured
    (tmp_path / "file").touch()
    wrong = run("responses", nets[0][1], "--out", tmp_path / "file")
    assert_one_line_error(wrong, f"folder {tmp_path / 'file'} (File exists)", "another with --out")


def test_figures_of_data_and_nets(run, tmp_path):
    code, stdout, _ = run("figures", "--out", tmp_path / "out", "--models", "resnet20")
    assert code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = ("classes", "augmentation", "architecture")
    assert names == {f"{name}.{suffix}" for name in figures for suffix in ("png", "svg", "pdf")}
    assert str(tmp_path / "out" / "architecture.svg") in stdout
    assert_one_line_error(run("figures", "--out", tmp_path, "--models", "resnet21"), "unknown model 'resnet21'")
    wrong = run("figures", "--out", tmp_path, "--models", "plain20", "--option", "Z")
    assert_one_line_error(wrong, "unknown shortcut option 'Z'")
