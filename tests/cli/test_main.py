"""What users type, and what they get: results on standard output, one line for every error."""

import errno
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from command_line import assert_one_line_error, run_cli
from safetensors.torch import load_file, save_file
from tiny_run import DATA, TINY, run_command

import deepres
from deepres.models import MODELS
from deepres.recipes.named import RECIPES
from deepres.runs.directory import RunDir


@pytest.fixture
def run(run, monkeypatch, cifar10_dir):
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    return run


@pytest.fixture(scope="module", params=["auto", "eager"])
def finished(request, tmp_path_factory, cifar10_dir):
    path = tmp_path_factory.mktemp("finished")
    arguments = ("train", "resnet20", *TINY, "--run-dir", path, "--backend", request.param)
    return path, run_command(*arguments, data_dir=cifar10_dir)


def test_version_help_and_installed_command(run):
    assert run("--version")[1].strip() == f"deepres {deepres.__version__}"
    code, stdout, _ = run("--help")
    assert code == 0
    commands = ["fetch", "models", "recipes", "train", "evaluate", "predict", "verify", "export", "import", "zoo"]
    for command in commands:
        assert command in stdout
    installed = Path(sys.executable).with_name("deepres")
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"deepres {deepres.__version__}"


def test_no_command_is_the_help(run):
    code, stdout, stderr = run()
    assert code == 2
    assert "Commands:" in stdout + stderr
    assert "error:" not in stdout + stderr


def test_models_lists_every_net_with_its_parameters(run):
    code, stdout, _ = run("models")
    assert code == 0
    assert all(name in stdout for name in MODELS)
    for number in ("269,722", "464,154", "658,586", "853,018", "1,727,962", "19,421,274", "8.75", "6.97"):
        assert number in stdout


def test_recipes_lists_every_recipe_with_its_numbers(run):
    code, stdout, _ = run("recipes")
    assert code == 0
    assert all(name in stdout for name in RECIPES)
    for value in ("64,000", "0.0001", "pixel_mean", "32,000", "48,000", "0.0005"):
        assert value in stdout


def test_bench_tells_how_long_it_will_take(run):
    code, stdout, _ = run("bench", "resnet8", "plain8", "--recipe", "fast", "--seconds", "0.2", "--device", "cpu")
    assert code == 0
    for heading in ("net", "backend", "images/s", "fast, hours:min:s"):
        assert heading in stdout
    rows = [line for line in stdout.splitlines() if "resnet8" in line or "plain8" in line]
    assert len(rows) == 2
    assert all(re.search(r"\d+:\d\d", row) for row in rows)


def test_train_ends_with_the_errors_beside_the_published_ones(finished):
    path, done = finished
    result = json.loads(RunDir(path).result.read_text())
    for number in (result["test_error_last"], result["test_error_best"], 8.75, 8.00, 8.04):
        assert f"{number:.2f}" in done.stdout
    assert f"run directory {path}, curve {path / 'curve.png'}" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 4
    assert "images/s" in lines[0]
    assert "left" in lines[0]


def test_training_again_says_that_it_is_finished(finished, run):
    path, done = finished
    code, stdout, stderr = run("train", "resnet20", *TINY, "--run-dir", path)
    assert code == 0
    assert f"the run in {path} is finished: nothing to do" in stderr
    assert stdout == done.stdout


def test_evaluate_agrees_with_the_run(finished, run):
    path, _ = finished
    for target in (path, RunDir(path).weights):
        code, stdout, _ = run("evaluate", target, "--data", DATA, "--json")
        assert code == 0
        report = json.loads(stdout)
        assert report["test_error"] == json.loads(RunDir(path).result.read_text())["test_error_last"]
        assert report["num_images"] == 80
        assert sum(map(sum, report["confusion"])) == 80
        right = sum(report["confusion"][i][i] for i in range(10))
        assert report["test_error"] == 100 - 100 * right / 80


def test_evaluate_prints_the_confusion_matrix(finished, run):
    code, stdout, _ = run("evaluate", finished[0], "--data", DATA)
    assert code == 0
    assert "airplane" in stdout
    assert "test error" in stdout
    assert "80 images" in stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "resnet18"], ["unknown model 'resnet18'", "did you mean", "resnet1202"]),
        (["train", "resnet20", "--recipe", "quick"], ["unknown recipe 'quick'", "choose from paper, fast"]),
        (["train", "resnet20", "--option", "D"], ["unknown shortcut option 'D'", "A, B, C"]),
        (["train", "plain20", "--option", "B"], ["plain net has no shortcuts"]),
        (["train", "resnet20", "--split", "40k"], ["unknown split '40k'", "50k, 45k"]),
        (["train", "resnet20", "--device", "tpu"], ["unknown device 'tpu'", "auto, cpu, cuda"]),
        (["train", "resnet20", "--precision", "float16"], ["precision 'float16' is for GPUs", "bfloat16"]),
        (["train", "resnet20", "--precision", "float8"], ["unknown precision 'float8'", "bfloat16"]),
        (["train", "resnet20", "--backend", "fastest"], ["unknown backend 'fastest'", "fused, compiled, eager"]),
        (["train", "resnet20", "--workers", "0"], ["--workers"]),
        (["bench", "resnet21"], ["unknown model 'resnet21'"]),
        (["bench", "resnet20", "--recipe", "slow"], ["unknown recipe 'slow'"]),
        (["train", "resnet20", "--run-dir", "."], ["--run-dir", "name a folder of its own"]),
        (["train", "resnet20", "--run-dir", ""], ["--run-dir", "it is empty: name one"]),
        (["train", "resnet20", "--data", ""], ["--data", "it is empty: name one"]),
        (["train", "resnet20", "--checkpoint-minutes", "nan"], ["--checkpoint-minutes", "nan is no number"]),
        (["bench", "resnet20", "--seconds", "nan"], ["--seconds", "nan is no number"]),
        (["finetune", "resnet20", ""], ["FOLDER", "it is empty: name one"]),
        (["predict", ""], ["IMAGE", "it is empty: name one"]),
        (["evaluate", ""], ["it is empty: name one"]),
        (["results", ""], ["DIR", "it is empty: name one"]),
        (["grid", "--out", ""], ["--out", "it is empty: name one"]),
        (["train", "resnet20", "--seed", "-1"], ["--seed", "-1"]),
        (["train", "resnet20", "--max-steps", "0"], ["--max-steps"]),
        (["train", "resnet20", "--no-such-option"], ["--no-such-option"]),
        (["train"], ["NAME"]),
        (["tran"], ["No such command 'tran'"]),
        (["fetch", "--source", "elsewhere"], ["elsewhere", "official"]),
        (["evaluate", "nowhere.safetensors"], ["no weights file nowhere.safetensors"]),
    ],
)
def test_bad_arguments(run, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    assert_one_line_error(run(*arguments), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(run, tmp_path):
    outcome = run("train", "resnet20", "--device", "cuda", "--run-dir", tmp_path / "run")
    assert_one_line_error(outcome, "device 'cuda'", "--device cpu")
    assert not (tmp_path / "run").exists()


def test_no_data(run, tmp_path):
    outcome = run("train", "resnet20", "--data-dir", tmp_path, "--run-dir", tmp_path / "run")
    assert_one_line_error(outcome, f"no CIFAR-10 in {tmp_path}", "deepres fetch")
    assert not (tmp_path / "run").exists()


def test_damaged_data(run, tmp_path, cifar10_dir):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for path in sorted((cifar10_dir / "cifar-10-batches-bin").glob("*.bin")):
        (folder / path.name).symlink_to(path)
    (folder / "data_batch_3.bin").unlink()
    (folder / "data_batch_3.bin").write_bytes(b"short")
    outcome = run("train", "resnet20", "--data-dir", tmp_path, "--run-dir", tmp_path / "run")
    assert_one_line_error(outcome, "data_batch_3.bin", "deepres fetch")


def test_unwritable_run_directory(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    outcome = run("train", "resnet20", "--run-dir", tmp_path / "file" / "run")
    code, _, stderr = outcome
    assert code == 2
    assert stderr.splitlines()[-1].startswith("deepres: error: cannot write run directory")
    assert "--run-dir" in stderr
    assert "Traceback" not in stderr


def test_foreign_and_broken_weights(run, tmp_path, finished):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"layer1.weight": torch.zeros(3)}, foreign)
    assert_one_line_error(run("evaluate", foreign), str(foreign), "not written by deepres")

    pickled = tmp_path / "pickled.safetensors"
    torch.save({"a": torch.zeros(1)}, pickled)
    assert_one_line_error(run("evaluate", pickled), str(pickled), "no readable safetensors file")

    weights = RunDir(finished[0]).weights
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:-1000])
    assert_one_line_error(run("evaluate", cut), str(cut), "no readable safetensors file")

    tensors = load_file(weights)
    metadata = {"format": "deepres-1", "model": "resnet20", "option": "A", "num_classes": "10"}
    for name, changed in (
        ("missing", {key: tensor for key, tensor in tensors.items() if key != "layer1.0.conv1.weight"}),
        ("deeper", tensors | {"layer1.9.conv1.weight": torch.zeros(16, 16, 3, 3)}),
        ("shape", tensors | {"fc.weight": torch.zeros(10, 32)}),
        ("bare", {key: tensor for key, tensor in tensors.items() if key != "mean"}),
        ("odd", tensors | {"mean": torch.zeros(5)}),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(changed, path, metadata)
        assert_one_line_error(run("evaluate", path), str(path), "does not fit its net resnet20")


def test_a_folder_without_a_finished_run(run, tmp_path):
    assert_one_line_error(run("evaluate", tmp_path), str(tmp_path), "no model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"of a run that went on and has not finished")
    assert_one_line_error(run("evaluate", tmp_path), str(tmp_path), "its run has not finished")


def test_unreadable_recipe_json(run, tmp_path):
    (tmp_path / "recipe.json").write_text("{")
    code, _, stderr = run("train", "resnet20", *TINY, "--run-dir", tmp_path, "--max-steps", "1")
    assert code == 2
    assert stderr.splitlines()[-1].startswith(f"deepres: error: {tmp_path / 'recipe.json'} is damaged")


def no_space(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_one_line_and_damages_nothing(monkeypatch, capsys, cifar10_dir, tmp_path):
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    arguments = ("train", "resnet8", *TINY, "--run-dir", tmp_path)
    assert run_cli(monkeypatch, capsys, *arguments, "--max-steps", 7)[0] == 0
    before = {path: path.read_bytes() for path in RunDir(tmp_path).checkpoints.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        code, _, stderr = run_cli(patch, capsys, *arguments)
    assert code == 2
    last = stderr.splitlines()[-1]
    assert last.startswith("deepres: error: cannot write")
    assert "No space left on device" in last
    assert "Traceback" not in stderr
    assert {path: path.read_bytes() for path in RunDir(tmp_path).checkpoints.iterdir()} == before
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0


@pytest.mark.parametrize(
    ("option", "setting"), [("--lr", "learning_rate"), ("--epochs", "epochs"), ("--batch-size", "batch_size")]
)
def test_options_of_other_programs_point_to_the_recipe(run, option, setting):
    assert_one_line_error(run("train", "resnet20", option, "1"), "No such option", f"give --set {setting}=VALUE")


def test_a_recipe_is_shown_as_a_file_to_begin_with(run, tmp_path):
    code, stdout, _ = run("recipes", "show", "fast", "--set", "learning_rate=0.07")
    assert code == 0
    assert tomllib.loads(stdout)["learning_rate"] == 0.07
    assert tomllib.loads(stdout)["muon"]["learning_rate"] == 0.05
    assert_one_line_error(run("recipes", "show", "fst"), "unknown recipe 'fst'", "fast")


def test_a_setting_that_is_none_ends_before_anything_is_written(run, tmp_path):
    outcome = run("train", "resnet20", "--set", "lerning_rate=1", "--run-dir", tmp_path / "run")
    assert_one_line_error(outcome, "no setting lerning_rate: did you mean learning_rate?")
    assert not (tmp_path / "run").exists()
