"""Ten changes of one ingredient, each from the command line in one command and a file of at most 20 lines."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_cli
from PIL import Image
from safetensors.torch import load_file
from scipy.io import savemat
from sklearn.datasets import load_digits
from tiny_run import command

import deepres
from deepres.errors import UserError

MINE = """
import numpy as np
import torch
from torch import nn
from deepres import ImageData
from deepres.data.cifar10 import CLASSES, Split
from deepres.models.resnet import ResNet

class GeluNet(ResNet):
    def __init__(self, num_classes):
        super().__init__(8, num_classes=num_classes)
        for stage in (self.layer1, self.layer2, self.layer3):
            stage.append(nn.GELU())

def small(num_classes):
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, num_classes))

def few():
    arrays = np.load("few.npz")
    train, test = (Split(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test"))
    return ImageData(train, test, "a few of CIFAR-10", CLASSES)

def noise(images, labels, generator):
    return images + 0.1 * torch.randn(images.shape, generator=generator), labels
"""
BASE = ("--recipe", "one-cycle", "--set", "batch_size=16", "--data", "mine.py:few", "--backend", "eager")

# What is changed, the command's arguments, and where recipe.json shows it.
CHANGES = {
    "rate": (["resnet8", "--set", "learning_rate=0.05"], ("recipe", "learning_rate"), 0.05),
    "schedule": (["resnet8", "--set", "schedule.kind=Cosine"], ("recipe", "schedule", "kind"), "Cosine"),
    "block": (["mine.py:GeluNet"], ("model",), "GeluNet"),
    "net": (["mine.py:small"], ("model",), "small"),
    "width": (["resnet8x2"], ("model",), "resnet8x2"),
    "order": (["preresnet8"], ("model",), "preresnet8"),
    "optimizer": (["resnet8", "--set", "optimizer.name=AdamW"], ("recipe", "optimizer", "name"), "AdamW"),
    "augmentation": (["resnet8", "--set", "augmentation=mine.py:noise"], ("recipe", "augmentation"), "mine.py:noise"),
    "mixup": (["resnet8", "--set", "mixup=0.2"], ("recipe", "mixup"), 0.2),
    "ema": (["resnet8", "--set", "ema=0.5", "--set", "clip_norm=1"], ("recipe", "ema"), 0.5),
    "look-ahead": (["resnet8", "--set", "look_ahead.reach=0.6"], ("recipe", "look_ahead", "decay"), 0.99),
    "labels": (["resnet8", "--fraction", "0.5"], ("data", "fraction"), 0.5),
}


@pytest.fixture
def folder(tmp_path, few):
    """A folder with a few images of CIFAR-10 and what changes how they are trained on."""
    (tmp_path / "mine.py").write_text(MINE)
    parts = {"train_images": few.images, "train_labels": few.labels}
    np.savez(tmp_path / "few.npz", **parts, test_images=few.images[:50], test_labels=few.labels[:50])
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys, folder):
    monkeypatch.chdir(folder)
    return lambda *arguments: run_cli(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_trained_recorded_and_resumed_bit_for_bit(run, name, tmp_path):
    arguments, place, value = CHANGES[name]
    command = ("train", *arguments[:1], *BASE, *arguments[1:], "--precision", "float32")
    for folder, steps in (("straight", 3), ("stopped", 2), ("stopped", 3)):
        code, _, stderr = run(*command, "--run-dir", folder, "--max-steps", str(steps))
        assert code == 0, stderr
    content = json.loads((tmp_path / "straight" / "recipe.json").read_text())
    for key in place:
        content = content[key]
    assert content == value
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "stopped"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    results = [json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("straight", "stopped")]
    errors = [{key: result[key] for key in result if "error" in key} for result in results]
    assert errors[0] == errors[1]
    assert ("test_error_ema" in results[0]) == (name == "ema")


def test_a_run_with_many_ingredients_survives_sigkill(run, folder):
    settings = ["ema=0.5", "mixup=0.3", "cutout=4", "optimizer.name=AdamW", "clip_norm=0.5", "schedule.kind=Cosine"]

    options = [part for setting in settings for part in ("--set", setting)]
    given = [*BASE, *options, "--precision", "float32", "--max-steps", "6", "--checkpoint-minutes", "0"]
    arguments = ("train", "resnet8", *given, "--run-dir")
    code, _, stderr = run(*arguments, "straight")
    assert code == 0, stderr
    with subprocess.Popen(
        command(*arguments, "killed", "--progress", "json"), cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line) == {"event": "saved", "step": 3}:
                process.kill()
    assert not (folder / "killed" / "result.json").exists()
    code, _, stderr = run(*arguments, "killed")
    assert code == 0, stderr
    assert "resuming killed after step" in stderr
    for name in ("model.safetensors", "model-ema.safetensors"):
        one, other = (load_file(folder / run_dir / name) for run_dir in ("straight", "killed"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_cannot_be_obeyed_is_an_error(run):
    for settings, message in (
        (["optimizer.name=AdamX"], "unknown optimizer 'AdamX' (did you mean"),
        (["optimizer.name=LBFGS", "weight_decay=0"], "LBFGS doesn't support per-parameter options"),
        (["optimizer.name=Rprop"], "optimizer Rprop takes no weight decay: set weight_decay=0"),
        (["optimizer.name=AdamW", "optimizer.arguments.beta=0.9"], "cannot be built"),
    ):
        options = [part for setting in settings for part in ("--set", setting)]
        code, _, stderr = run("train", "resnet8", *BASE, *options, "--run-dir", "wrong")
        assert code == 2
        assert message in stderr.splitlines()[-1]


def test_own_weights_are_evaluated_predicted_and_exported(run, tmp_path, few):
    code, _, stderr = run("train", "mine.py:small", *BASE, "--max-steps", "2", "--run-dir", "own")
    assert code == 0, stderr
    code, _, stderr = run("evaluate", "own")
    assert (code, stderr) == (
        2,
        "deepres: error: own holds weights of your own net small: name its source with --net FILE.py:small\n",
    )
    code, stdout, _ = run("evaluate", "own", "--net", "mine.py:small", "--data", "mine.py:few", "--json")
    result = json.loads((tmp_path / "own" / "result.json").read_text())
    assert json.loads(stdout)["test_error"] == result["test_error_last"]
    (tmp_path / "pictures").mkdir()
    for i in range(20):
        Image.fromarray(few.images[i].transpose(1, 2, 0)).save(tmp_path / "pictures" / f"{i}.png")
    code, _, stderr = run(
        "export", "own", "--net", "mine.py:small", "--format", "torch-export", "--images", "pictures"
    )
    assert code == 0, stderr
    assert (tmp_path / "small.pt2").exists()
    code, _, stderr = run("evaluate", "own", "--net", "mine.py:GeluNet")
    assert (code, "own holds weights of small, and --net names GeluNet" in stderr) == (2, True)
    code, stdout, _ = run("predict", "pictures/0.png", "--model", "own", "--net", "mine.py:small", "--json")
    assert json.loads(stdout)["model"] == "small"
    Path("mine.py").write_text(MINE.replace("nn.SiLU()", "nn.ReLU()"))
    _, _, stderr = run("evaluate", "own", "--net", "mine.py:small", "--data", "mine.py:few")
    assert stderr == "deepres: the source of small has changed since own was trained\n"


def write_digits(folder, number):
    """Write the first of scikit-learn's digits as PNG files, a folder for each class."""
    digits = load_digits()
    for i in range(number):
        place = folder / f"digit {digits.target[i]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(place / f"{i}.png")


def test_nets_for_images_of_another_size_keep_it_with_their_weights(run, tmp_path):
    write_digits(tmp_path / "digits", 100)
    data = ("--data", "digits", "--image-size", "20", "--set", "batch_size=16", "--max-steps", "2", "--device", "cpu")
    code, _, stderr = run("train", "resnet8", "--recipe", "fast", *data, "--run-dir", "small")
    assert code == 0, stderr
    assert "there are no kernels for images of 20 x 20" in stderr
    record = json.loads((tmp_path / "small" / "recipe.json").read_text())
    assert (record["data"]["name"], record["recipe"]["low_resolutions"][0]["size"]) == ("digits-20px", 16)
    code, stdout, _ = run("evaluate", "small", "--data", "digits", "--json")
    result = json.loads((tmp_path / "small" / "result.json").read_text())
    assert json.loads(stdout)["test_error"] == result["test_error_last"]
    assert run("predict", "digits/digit 3/3.png", "--model", "small")[0] == 0
    export = ("export", "small", "--format", "torch-export", "--images", "digits")
    assert run(*export)[0] == 0
    classifier = deepres.load_pretrained("small")
    assert (classifier.image_size, tuple(classifier.mean.shape)) == (20, (3, 20, 20))
    with pytest.raises(UserError, match=r"expected pixels of shape \(N, 3, 20, 20\)"):
        classifier.predict(np.zeros((1, 3, 32, 32), np.uint8))
    code, _, stderr = run("finetune", "small", "digits", "--image-size", "24", "--max-steps", "1", "--run-dir", "fine")
    assert code == 0, stderr
    assert deepres.load_pretrained("fine").image_size == 24
    code, _, stderr = run("train", "resnet8", *BASE, "--image-size", "64")
    assert (code, "an image size goes with a folder of images" in stderr) == (2, True)


def test_svhn_is_evaluated_from_its_file(run, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (32, 32, 3, 20), np.uint8), np.arange(1, 21)[:, None] % 10
    savemat(tmp_path / "test_32x32.mat", {"X": images, "y": np.where(labels == 0, 10, labels).astype(np.uint8)})
    code, stdout, stderr = run("evaluate", "resnet20", "--images", "test_32x32.mat", "--json")
    assert code == 0, stderr
    expected = deepres.load_pretrained("resnet20").predict(images.transpose(3, 2, 0, 1))
    assert json.loads(stdout)["test_error"] == pytest.approx(100 * np.mean(expected != labels.ravel()))
    savemat(tmp_path / "other.mat", {"X": images[..., :3], "y": labels})
    (tmp_path / "broken.mat").write_bytes(b"nonsense")
    for name, message in (("other", "is no file of SVHN"), ("broken", "cannot be read as a file of SVHN")):
        code, _, stderr = run("evaluate", "resnet20", "--images", f"{name}.mat")
        assert (code, message in stderr, len(stderr.splitlines())) == (2, True, 1)


def test_weights_are_trained_further_on_a_folder_of_digits(run, tmp_path):
    write_digits(tmp_path / "digits", 300)
    settings = ("--set", "epochs=16", "--set", "flips=none", "--backend", "fused", "--precision", "float32")
    code, _, stderr = run("finetune", "resnet20", "digits", *settings, "--run-dir", "fine")
    assert code == 0, stderr
    record = json.loads((tmp_path / "fine" / "recipe.json").read_text())
    assert record["start"]["weights"] == "resnet20-paper"
    error = json.loads((tmp_path / "fine" / "result.json").read_text())["test_error_last"]
    assert error < 30  # chance is 90
    code, stdout, _ = run("evaluate", "fine", "--data", "digits", "--json")
    assert json.loads(stdout)["test_error"] == error
    code, stdout, _ = run("predict", "digits/digit 3/3.png", "--model", "fine", "--json")
    assert json.loads(stdout)["images"][0]["predictions"][0]["class"].startswith("digit ")
    code, _, stderr = run("finetune", "resnet20-fast", "digits", *settings, "--run-dir", "fine")
    assert "another configuration (start.weights was resnet20-paper, is resnet20-fast" in stderr.splitlines()[-1]
