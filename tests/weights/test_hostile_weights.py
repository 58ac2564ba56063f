"""Whatever is given for weights, images, labels and options: one line that names it, exit code 2, and nothing lost."""

import itertools
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from command_line import assert_one_line_error
from fitted import fitted
from PIL import Image
from safetensors.torch import save_file

from deepres import load_pretrained
from deepres.errors import UserError
from deepres.export import FORMATS, export_classifier
from deepres.models import build_model
from deepres.weights.file import load_weights, save_weights

METADATA = {"format": "deepres-1", "model": "resnet20", "option": "A", "num_classes": "10"}


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


class SystemCode:
    def __reduce__(self):
        return os.system, ("true",)


def state(**changes):
    """Return the tensors of a weights file of deepres, changed; None takes one away."""
    tensors = dict(build_model("resnet20", generator=torch.Generator().manual_seed(0)).state_dict())
    tensors |= {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    tensors |= {key.replace("__", "."): tensor for key, tensor in changes.items()}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def as_bytes(content):
    return lambda path: path.write_bytes(content)


def as_torch(make):
    return lambda path: torch.save(make(), path)


def as_weights(metadata=METADATA, **changes):
    return lambda path: save_file(state(**changes), path, metadata)


def as_zip(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def nested(depth):
    content = {"a": torch.zeros(1)}
    for _ in range(depth):
        content = {"a": content}
    return content


def looped():
    content = {"weights": torch.zeros(3)}
    content["self"] = content
    return content


FILES = {
    "missing.safetensors": lambda path: None,
    "missing.pth": lambda path: None,
    "folder.pth": lambda path: path.mkdir(),
    "empty.pth": as_bytes(b""),
    "empty.safetensors": as_bytes(b""),
    "short.safetensors": as_bytes(b"\x10"),
    "huge-header.safetensors": as_bytes((2**62).to_bytes(8, "little") + b"{}"),
    "header.safetensors": as_bytes((2).to_bytes(8, "little") + b"{}"),
    "list-header.safetensors": as_bytes((2).to_bytes(8, "little") + b"[]"),
    "text.pt": as_bytes("épochs: 200".encode()),
    "log.pt": as_bytes(b"(dp0\nS'a'\n"),
    "web.pth": as_bytes(b"<!doctype html>"),
    "lfs.pth": as_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "random.bin": as_bytes(np.random.default_rng(0).bytes(4096)),
    "zeros.pt": as_bytes(bytes(4096)),
    "cut.pt": lambda path: (torch.save(state(), path), path.write_bytes(path.read_bytes()[:-500])),
    "zip.pt": as_zip("a.txt"),
    "empty-zip.pt": as_zip(),
    "arrays.pt": as_zip("a.npy"),
    "damaged-zip.pt": as_zip("archive/data.pkl", "archive/version"),
    "code.pt": as_torch(lambda: {"state_dict": state(), "hook": Code()}),
    "system.pt": as_torch(lambda: {"state_dict": state(), "hook": SystemCode()}),
    "pickle.pkl": lambda path: path.write_bytes(pickle.dumps({"a": 1})),
    "pickle5.pkl": lambda path: path.write_bytes(pickle.dumps(state(), protocol=5)),
    "module.pt": as_torch(lambda: build_model("resnet20")),
    "tensor.pt": as_torch(lambda: torch.zeros(3)),
    "number.pt": as_torch(lambda: 3),
    "none.pt": as_torch(lambda: None),
    "empty-dict.pt": as_torch(dict),
    "numbers.pt": as_torch(lambda: {1: torch.zeros(1), None: torch.zeros(1), (): torch.zeros(1)}),
    "deep.pt": as_torch(lambda: nested(300)),
    "loop.pt": as_torch(looped),
    "optimizer.pt": as_torch(lambda: torch.optim.SGD(build_model("resnet20").parameters(), 0.1).state_dict()),
    "imagenet.pt": as_torch(lambda: state(conv1__weight=torch.zeros(64, 3, 7, 7))),
    "sparse.pt": as_torch(lambda: state(fc__weight=torch.zeros(10, 64).to_sparse())),
    "complex.pt": as_torch(lambda: state(fc__weight=torch.zeros(10, 64, dtype=torch.complex64))),
    "int8.pt": as_torch(lambda: state(fc__weight=torch.zeros(10, 64, dtype=torch.int8))),
    "meta.pt": as_torch(lambda: state(fc__weight=torch.zeros(10, 64, device="meta"))),
    "scalar-head.pt": as_torch(lambda: state(fc__weight=torch.tensor(3.0))),
    "no-classes.pt": as_torch(lambda: state(fc__weight=torch.zeros(0, 64), fc__bias=torch.zeros(0))),
    "no-head.pt": as_torch(lambda: state(fc__weight=None, fc__bias=None)),
    "sparse-mean.pt": as_torch(lambda: state(mean=torch.full((3, 1, 1), 0.5).to_sparse())),
    "meta-std.pt": as_torch(lambda: state(std=torch.zeros(3, 1, 1, device="meta"))),
    "counter.pt": as_torch(lambda: state(bn1__num_batches_tracked=torch.zeros(3))),
    "nan.safetensors": as_weights(fc__bias=torch.full((10,), float("nan"))),
    "inf.safetensors": as_weights(fc__weight=torch.full((10, 64), float("inf"))),
    "variance.safetensors": as_weights(bn1__running_var=torch.full((16,), -1.0)),
    "nan-mean.safetensors": as_weights(mean=torch.full((3, 1, 1), float("nan"))),
    "zero-std.safetensors": as_weights(std=torch.zeros(3, 1, 1)),
    "odd-mean.safetensors": as_weights(mean=torch.zeros(5)),
    "int-mean.safetensors": as_weights(mean=torch.zeros(3, 1, 1, dtype=torch.int64)),
    "no-mean.safetensors": as_weights(mean=None),
    "deeper.safetensors": as_weights(layer1__9__conv1__weight=torch.zeros(16, 16, 3, 3)),
    "other-net.safetensors": as_weights({**METADATA, "model": "resnet56"}),
    "no-net.safetensors": as_weights({**METADATA, "model": "resnet50"}),
    "no-option.safetensors": as_weights({"format": "deepres-1", "model": "resnet20"}),
    "option.safetensors": as_weights({**METADATA, "option": "B"}),
    "count.safetensors": as_weights({**METADATA, "num_classes": "many"}),
    "class-names.safetensors": as_weights({**METADATA, "classes": "[1, 2]"}),
    "class-text.safetensors": as_weights({**METADATA, "classes": "cat"}),
    "plain-b.safetensors": as_weights({**METADATA, "model": "plain20", "option": "B"}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for name, write in FILES.items():
        write(folder / name)
    Image.new("RGB", (8, 8)).save(folder / "photo.png")
    return folder


COMMANDS = {
    "predict": lambda path, folder: ("predict", folder / "photo.png", "--model", path),
    "evaluate": lambda path, folder: ("evaluate", path),
    "export": lambda path, folder: ("export", path, "--format", "torch-export", "-o", folder / "out.pt2"),
    "import": lambda path, folder: ("import", path, "-o", folder / "out.safetensors"),
}


@pytest.mark.parametrize(("name", "command"), list(itertools.product(FILES, COMMANDS)))
def test_files(run, few_cifar10, files, name, command):
    before = sorted(files.iterdir())
    assert_one_line_error(run(*COMMANDS[command](files / name, files)), name.partition(".")[0])
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize("name", FILES)
def test_files_given_to_functions(files, name, capsys):
    for read in (load_pretrained, load_weights):
        with pytest.raises(UserError) as caught:
            read(files / name)
        assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "name", [None, 3, b"resnet20", ["resnet20"], "", ".", "~", "\0", "resnet", "a" * 5000, "./x/y"]
)
def test_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        load_pretrained(name)


@pytest.mark.parametrize(
    "config", ["{", "[]", json.dumps({"model": "resnet20", "option": 3}), json.dumps({"model": ["resnet20"]})]
)
def test_hub_folders(run, few_cifar10, tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    tensors = {f"net.{key}": tensor for key, tensor in state(mean=None, std=None).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_one_line_error(run("evaluate", tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--norm", "mnist"),
        ("--norm", ""),
        ("--norm", "cifar10", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"),
        ("--mean", "0.5,0.5,0.5"),
        ("--mean", "nan,0.5,0.5", "--std", "0.2,0.2,0.2"),
        ("--mean", "0.5,0.5,0.5", "--std", "0,0.2,0.2"),
        ("--mean", "0.5;0.5;0.5", "--std", "0.2,0.2,0.2"),
        ("--mean", "125,123,114", "--std", "63,62,67"),
        ("--mean", "", "--std", ""),
        ("--shortcuts", "before"),
        ("--shortcuts", ""),
        ("--classes", "cat,dog"),
        ("--classes", ""),
        ("--classes", ",,,,,,,,,"),
        ("--classes", "a,a,b,c,d,e,f,g,h,i"),
    ],
)
def test_options_of_import(run, few_cifar10, tmp_path, arguments):
    torch.save(build_model("resnet20", option="A").state_dict(), tmp_path / "theirs.pt")
    shortcuts = () if "--shortcuts" in arguments else ("--shortcuts", "after")
    outcome = run("import", tmp_path / "theirs.pt", "-o", tmp_path / "out.safetensors", *shortcuts, *arguments)
    code, stdout, stderr = outcome
    assert (code, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith("deepres: error: ")
    assert "Traceback" not in stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "output", ["out.pt", "none/out.safetensors", ".", "theirs.pt", "", "a" * 300 + ".safetensors"]
)
def test_outputs_of_import(run, few_cifar10, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    torch.save(build_model("resnet20", option="B").state_dict(), "theirs.pt")
    code, stdout, stderr = run("import", "theirs.pt", "-o", output)
    assert (code, stdout, "Traceback" in stderr) == (2, "", False)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.pt"]


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("caffe", "net.pt2"),
        ("", "net.pt2"),
        ("torch-export", "net.onnx"),
        ("torch-export", "none/net.pt2"),
        ("torch-export", "folder.pt2"),
        ("torch-export", "there.pt2"),
        ("torch-export", "a" * 300 + ".pt2"),
        ("torch-export", "."),
        ("torch-export", ""),
    ],
)
def test_outputs_of_export(run, few, few_cifar10, tmp_path, monkeypatch, kind, output):
    monkeypatch.chdir(tmp_path)
    classifier = fitted("plain20", torch.from_numpy(few.images), torch.from_numpy(few.labels))
    save_weights(tmp_path / "net.safetensors", "plain20", classifier.net, classifier.normalization)
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "there.pt2").write_text("of someone")
    before = sorted(tmp_path.iterdir())
    assert_one_line_error(run("export", "net.safetensors", "--format", kind, "-o", output))
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.pt2").read_text() == "of someone"


@pytest.mark.parametrize(
    "images",
    [
        None,
        "photo.png",
        np.zeros((2, 3, 32, 32)) + 7,
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((2, 3, 32, 32), np.int32),
        torch.full((2, 3, 32, 32), float("nan")),
    ],
)
def test_images_given_to_functions(few, tmp_path, images):
    classifier = fitted("plain20", torch.from_numpy(few.images), torch.from_numpy(few.labels))
    for function in (classifier.predict, classifier.predict_proba, lambda given: classifier.score(given, [0, 1])):
        with pytest.raises(UserError, match="expected pixels"):
            function(images)
    with pytest.raises(UserError, match="expected pixels"):
        export_classifier(classifier, FORMATS["torch-export"], tmp_path / "net.pt2", images)
