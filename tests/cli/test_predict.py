"""`deepres predict` and `deepres evaluate` on image files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import assert_one_line_error
from fitted import fitted
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_run import command

from deepres.data.cifar10 import CLASSES
from deepres.weights.file import save_weights


@pytest.fixture(scope="module")
def classifier(few):
    return fitted("resnet20", torch.from_numpy(few.images), torch.from_numpy(few.labels))


@pytest.fixture(scope="module")
def weights(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_weights(path, "resnet20", classifier.net, classifier.normalization)
    return path


@pytest.fixture
def folder(few, tmp_path):
    """The few images in a folder for each class."""
    for i, (image, label) in enumerate(zip(few.images, few.labels, strict=True)):
        path = tmp_path / "images" / CLASSES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return tmp_path / "images"


def test_a_folder_as_json(run, few, folder, classifier, weights):
    code, stdout, _ = run("predict", folder, "--model", weights, "--json", "--top", 20)
    assert code == 0
    report = json.loads(stdout)
    assert report["model"] == "resnet20"
    assert len(report["images"]) == len(few.labels)
    probabilities = classifier.predict_proba(few.images)
    for found in report["images"]:
        label, i = found["image"].removesuffix(".png").split("/")[-2:]
        predictions = found["predictions"]
        assert predictions[0]["class"] == label
        assert len(predictions) == 10
        assert predictions == sorted(predictions, key=lambda p: -p["probability"])
        for p in predictions:
            assert p["probability"] == pytest.approx(probabilities[int(i), CLASSES.index(p["class"])], abs=1e-6)


def test_broken_files_are_named_and_the_others_go_on(run, few, folder, weights, tmp_path, monkeypatch):
    good = next(folder.glob("*/3.png"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(good.read_bytes())))
    (tmp_path / "broken.png").write_bytes(good.read_bytes()[:100])
    code, stdout, stderr = run(
        "predict", tmp_path / "broken.png", "-", good, "gone.jpg", "--model", weights, "--top", 2
    )
    assert code == 2
    lines = stderr.splitlines()
    assert lines[0].startswith(f"deepres: error: {tmp_path / 'broken.png'}: it cannot be read")
    assert lines[1] == "deepres: error: gone.jpg: it cannot be read (No such file or directory)"
    assert lines[2] == "deepres: error: 2 of 4 images could not be used"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in stdout.splitlines() if "│" in line]
    rows = [row for row in rows if row[1]]  # the others go on with a name that is folded
    assert [row[1] for row in rows[::2]] == [CLASSES[few.labels[3]]] * 2
    assert rows[0][0] == "-"
    assert rows[0][2].endswith("%")
    assert len(rows) == 4
    code, stdout, _ = run("predict", "gone.jpg", "--model", weights, "--json")
    assert code == 2
    assert json.loads(stdout)["images"][0]["error"].startswith("it cannot be read")


def test_brackets_in_a_name_are_not_markup(run, folder, weights, monkeypatch):
    monkeypatch.chdir(folder)
    Path("cat[red].png").write_bytes(next(folder.glob("*/3.png")).read_bytes())
    assert "cat[red].png" in run("predict", "cat[red].png", "--model", weights)[1]


def test_show_draws_what_the_net_sees(folder, weights):
    path = next(folder.glob("*/0.png"))
    terminal = {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm", "COLUMNS": "100"}
    words = command("predict", path, "--model", weights, "--show")
    done = subprocess.run(words, env={**os.environ, **terminal}, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    stdout = done.stdout
    assert stdout.count("▀") == 16 * 32
    red, green, blue = Image.open(path).convert("RGB").getpixel((0, 0))
    assert f"\x1b[38;2;{red};{green};{blue};" in stdout


def test_show_without_colours_says_so(run, folder, weights):
    code, stdout, stderr = run("predict", next(folder.glob("*/0.png")), "--model", weights, "--show")
    assert code == 0
    assert "▀" not in stdout
    assert "no colours" in stderr


def test_unknown_weights(run, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DEEPRES_ZOO", str(tmp_path))
    assert_one_line_error(run("predict", folder, "--model", "resnet20"), "no weights of 'resnet20'", "is empty")
    assert_one_line_error(run("predict"), "IMAGE")
    assert_one_line_error(run("predict", folder, "--top", 0), "--top")


def test_a_name_of_the_zoo_comes_before_a_folder_of_that_name(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20").mkdir()
    code, stdout, _ = run("predict", next(folder.rglob("*.png")))
    assert code == 0
    assert "resnet20-paper" in stdout
    assert_one_line_error(run("predict", folder, "--model", "./resnet20"), "resnet20 holds no model.safetensors")


def test_evaluate_a_folder_of_classes(run, few, folder, weights):
    code, stdout, _ = run("evaluate", weights, "--images", folder, "--json")
    assert code == 0
    report = json.loads(stdout)
    assert (report["test_error"], report["num_images"], report["unreadable"]) == (0.0, len(few.labels), {})
    assert [sum(row) for row in report["confusion"]] == [int((few.labels == i).sum()) for i in range(10)]

    moved = next(folder.glob("*/0.png"))
    moved.rename(folder / CLASSES[(few.labels[0] + 1) % 10] / "moved.png")
    (folder / "cat" / "broken.png").write_bytes(b"?")
    code, stdout, stderr = run("evaluate", weights, "--images", folder)
    assert code == 2
    assert "resnet20: error 3.12% over 32 images" in stdout
    assert f"{folder / 'cat' / 'broken.png'}: it is no image" in stderr
    assert "1 of 33 images could not be read and are not counted" in stderr


def test_evaluate_takes_a_folder_or_a_data_set(run, folder, weights):
    outcome = run("evaluate", weights, "--images", folder, "--data", "cifar100")
    assert_one_line_error(outcome, "--images takes the place of --data")


def test_evaluate_a_folder_that_is_none(run, folder, weights, tmp_path):
    assert_one_line_error(run("evaluate", weights, "--images", tmp_path / "gone"), "no folder")
    assert_one_line_error(run("evaluate", weights, "--images", folder / "cat"), "must hold one for each class")
    (folder / "wolves").mkdir()
    assert_one_line_error(run("evaluate", weights, "--images", folder), "wolves is named after no class", "airplane")
    tensors = load_file(weights)
    tensors |= {"fc.weight": torch.zeros(7, 64), "fc.bias": torch.zeros(7)}
    metadata = {"format": "deepres-1", "model": "resnet20", "option": "A", "num_classes": "7"}
    save_file(tensors, tmp_path / "seven.safetensors", metadata)
    assert_one_line_error(run("evaluate", tmp_path / "seven.safetensors"), "7 classes, CIFAR-10 has 10")


def test_folders_named_in_other_words_are_said(run, few, folder, weights):
    (folder / "automobile").rename(folder / "Cars")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "cat" / "._0.png").write_bytes(b"")
    code, stdout, stderr = run("evaluate", weights, "--images", folder, "--json")
    assert code == 0
    assert (json.loads(stdout)["test_error"], json.loads(stdout)["num_images"]) == (0.0, len(few.labels))
    assert "deepres: folders read as classes: Cars as automobile" in stderr
    assert f"deepres: left out in {folder / 'cat'}: 1 hidden" in stderr


def test_names_are_never_cut_off(run, folder, weights, tmp_path):
    deep = tmp_path / ("a_rather_long_name_of_a_folder_" * 3) / ("and_another_one_within_it_" * 3)
    deep.mkdir(parents=True)
    for name in ("first", "second"):
        (deep / f"{name}.png").write_bytes(next(folder.glob("*/*.png")).read_bytes())
    code, stdout, _ = run("predict", tmp_path / deep.parent.name, "--model", weights, "--top", 1)
    assert code == 0
    cells = "".join(line.split("│")[1].strip() for line in stdout.splitlines() if "│" in line)
    assert f"{deep}/first.png" in cells
    assert f"{deep}/second.png" in cells


def test_a_name_that_is_no_text_ends_nothing(folder, weights, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(name, "wb") as file:  # noqa: PTH123
        file.write(next(folder.glob("*/*.png")).read_bytes())
    command = [sys.executable, "-m", "deepres", "predict", name, "--model", weights, "--top", "1"]
    for encoding in ("utf-8", "ascii"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert b"caf" in done.stdout
