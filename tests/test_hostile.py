"""Bad input of every kind: one line that says what is wrong, exit code 2, no traceback, and nothing is lost."""

import json
import os
import shlex
import shutil

import pytest
from PIL import Image
from run_files import write_run
from tiny_run import TINY, first_images, tiny_recipe

from deepres.data.release import BIN_FOLDER, PY_FOLDER
from deepres.runs.directory import RunDir

NO_JSON = ["", " \n", "{", "[]", "null", "3", '"text"', "\0\0\0", "\udcff\udcfe", "[" * 100_000, '{"a": 1', "{'a': 1}"]
NO_NUMBERS = [None, "many", [], {}, True, float("nan"), float("inf")]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def assert_refused(outcome, *parts):
    """The last line is the error; before it there may be lines on what was left out."""
    code, stdout, stderr = outcome
    assert code == 2, outcome
    assert stdout == ""
    *before, last = stderr.splitlines()
    assert last.startswith("deepres: error: "), stderr
    assert all(line.startswith("deepres: ") for line in before), stderr
    assert "Traceback" not in stderr
    for part in parts:
        assert part in last
    return last


def write_text(path, text):
    path.write_bytes(text.encode(errors="surrogateescape"))


# --- run directories, read by `results` -----------------------------------------------------------------------

RECIPE_FAULTS = [
    *({"seed": value} for value in (None, "0", 1.5, True, [])),
    *({"model": value} for value in (None, 20, [])),
    *({"option": value} for value in (None, 1)),
    *({"precision": value} for value in (None, 32)),
    *({"recipe": value} for value in (None, "paper", [], {}, {"name": "paper"})),
    *({"data": value} for value in (None, "cifar10", [], {}, {"name": "cifar10"}, {"train": -1})),
]
RESULT_FAULTS = [
    {key: value} for key in ("steps", "test_error_last", "train_error", "best_epoch") for value in NO_NUMBERS
]


@pytest.fixture
def results(run, tmp_path):
    """Damage the only run of a folder and ask for its statistics."""
    path = write_run(tmp_path / "runs" / "a")

    def ask(damage):
        damage(RunDir(path))
        before = snapshot(path)
        last = assert_refused(run("results", tmp_path / "runs"), f"no finished run in {tmp_path / 'runs'}")
        assert snapshot(path) == before
        return last

    return ask


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize("name", ["recipe", "result", "environment", "metrics"])
def test_files_that_are_no_json(results, name, content):
    results(lambda run_dir: write_text(getattr(run_dir, name), content))


@pytest.mark.parametrize(
    ("name", "changes"),
    [*(("recipe", changes) for changes in RECIPE_FAULTS), *(("result", changes) for changes in RESULT_FAULTS)],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_values_that_cannot_be(results, name, changes):
    def damage(run_dir):
        path = getattr(run_dir, name)
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    results(damage)


# --- run directories, gone on with by `train` -----------------------------------------------------------------


@pytest.fixture(scope="module")
def few(cifar10_dir):
    return first_images(cifar10_dir)


@pytest.fixture
def train(run):
    return lambda *arguments: run("train", "plain8", *TINY, "--device", "cpu", *arguments)


@pytest.fixture(scope="module")
def begun(few, tmp_path_factory):
    """A run of one step that has ended."""
    import torch

    from deepres.training.train import RunConfig
    from deepres.training.train import train as train_net

    path = tmp_path_factory.mktemp("begun")
    config = RunConfig("plain8", tiny_recipe(), precision="float32", backend="eager")
    train_net(config, few, path, device=torch.device("cpu"), max_steps=1)
    return path


@pytest.mark.parametrize("content", NO_JSON, ids=range(len(NO_JSON)))
@pytest.mark.parametrize(
    ("name", "way_out"), [("recipe", "put it back, or delete it"), ("result", "delete it, and the same command")]
)
def test_training_over_a_damaged_file_says_the_way_out(train, begun, tmp_path, name, way_out, content):
    path = shutil.copytree(begun, tmp_path / "run")
    write_text(getattr(RunDir(path), name), content)
    before = snapshot(path)
    assert_refused(train("--run-dir", path), f"{name}.json is damaged", way_out)
    assert snapshot(path) == before


@pytest.mark.parametrize("name", ["recipe", "result"])
def test_the_way_out_leads_out(train, begun, tmp_path, name):
    path = shutil.copytree(begun, tmp_path / "run")
    getattr(RunDir(path), name).unlink()
    code, _, stderr = train("--run-dir", path, "--max-steps", 1)
    assert code == 0, stderr
    assert getattr(RunDir(path), name).exists()


# --- command lines --------------------------------------------------------------------------------------------

COMMAND_LINES = [
    "trian resnet20",
    "train",
    "train resnet20 plain20",
    "train RESNET21",
    "train resnet20 --recipe",
    "train resnet20 --recipe ''",
    "train resnet20 --seed x",
    "train resnet20 --seed -3",
    "train resnet20 --split 10k",
    "train resnet20 --train-images 0",
    "train resnet20 --train-images -5",
    "train resnet20 --train-images 1.5",
    "train resnet20 --train-images nan",
    "train resnet20 --train-images 120%",
    "train resnet20 --train-images some",
    "train resnet20 --train-images %",
    "train resnet20 --max-steps -1",
    "train resnet20 --max-steps 1.5",
    "train resnet20 --evaluate-every 0",
    "train resnet20 --evaluate-every x",
    "train resnet20 --checkpoint-minutes -1",
    "train resnet20 --checkpoint-minutes soon",
    "train resnet20 --progress plain",
    "train resnet20 --workers two",
    "train resnet20 --device gpu",
    "train resnet20 --precision half",
    "train resnet20 --backend cudnn",
    "train resnet20 --data-dir /nowhere/at/all",
    "train resnet20 --data-dir ~nobody-of-this-name/data",
    "grid --models resnet21",
    "grid --models ,",
    "grid --recipes slow",
    "grid --recipes ''",
    "grid --seeds x",
    "grid --seeds 3-1",
    "grid --seeds 5000",
    "grid --seeds ''",
    "grid --jobs 0",
    "grid --engine slurm",
    "grid --device gpu",
    "grid --backend cudnn",
    "results",
    "results /nowhere",
    "results . --format xml",
    "report /nowhere --out out",
    "report .",
    "evaluate",
    "evaluate nothing20",
    "evaluate resnet20 --images /nowhere",
    "bench resnet20 --seconds 0",
    "bench resnet20 --recipe slow",
    "fetch --source moon",
    "predict",
]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_lines_that_cannot_be(run, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*shlex.split(line)))
    assert list(tmp_path.iterdir()) == []


# --- data files -----------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def as_folder(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to("/nowhere")


DATA_FAULTS = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "another's": lambda path: shutil.copy(path.with_stem("data_batch_1"), path),
    "one bit": flip,
    "text": lambda path: path.write_text("no images"),
    "gone": lambda path: path.unlink(),
    "folder": as_folder,
    "dangling": dangling,
}


@pytest.mark.parametrize("fault", DATA_FAULTS)
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize("layout", ["bin", "py"])
def test_data_files_that_cannot_be(run, tiny_cifar10, tmp_path, monkeypatch, layout, name, fault):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    if layout == "bin":
        tiny_cifar10.write(data)
        path = data / BIN_FOLDER / f"{name}.bin"
    else:
        tiny_cifar10.write_py(data)
        path = data / PY_FOLDER / name
    DATA_FAULTS[fault](path)
    run.release = tiny_cifar10.release
    assert_refused(run("train", "resnet20", "--data-dir", data), str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


# --- image folders --------------------------------------------------------------------------------------------


def picture(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def unnamed(folder):
    picture(folder / "fish" / "a.png")


def two_numbers(folder):
    picture(folder / "1_2" / "a.png")


def wrong_number(folder):
    picture(folder / "3_ship" / "a.png")


def high_number(folder):
    picture(folder / "10" / "a.png")


def loose(folder):
    picture(folder / "a.png")


def nothing(folder):
    folder.mkdir()


def empty_classes(folder):
    (folder / "cat").mkdir(parents=True)


def hidden_only(folder):
    picture(folder / "cat" / ".ipynb_checkpoints" / "a.png")
    picture(folder / "cat" / "._a.png")


def text_only(folder):
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "notes.txt").write_text("a cat")


def broken_only(folder):
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "a.png").write_bytes(b"no png")


def endless(folder):
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "again").symlink_to(folder)


def pipe(folder):
    (folder / "cat").mkdir(parents=True)
    os.mkfifo(folder / "cat" / "pipe.png")


def a_file(folder):
    folder.write_text("no folder")


def odd_name(folder):
    picture(folder / "fi\nsh" / "a.png")


IMAGE_FOLDERS = [
    unnamed,
    two_numbers,
    wrong_number,
    high_number,
    loose,
    nothing,
    empty_classes,
    hidden_only,
    text_only,
]
IMAGE_FOLDERS += [broken_only, endless, pipe, a_file, odd_name]


@pytest.mark.parametrize("make", IMAGE_FOLDERS)
def test_image_folders_that_cannot_be(run, tmp_path, make):
    make(tmp_path / "images")
    assert_refused(run("evaluate", "resnet20", "--images", tmp_path / "images"))


@pytest.mark.parametrize("make", [nothing, empty_classes, hidden_only, text_only, endless, pipe])
def test_folders_without_images(run, tmp_path, make):
    make(tmp_path / "images")
    assert_refused(run("predict", tmp_path / "images"), "holds no image files")
