"""Every form in which weights are let out comes back, and what would not come back is not let out."""

import argparse
import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from fitted import fitted
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from deepres import load_pretrained
from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.integrations.huggingface import HubClassifier
from deepres.models import build_model
from deepres.weights.file import load_weights, save_weights
from deepres.weights.read import find_net, summarize

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module", params=[("resnet20", "channel"), ("plain20", "pixel_mean")], ids=lambda p: p[0])
def classifier(request, few):
    name, kind = request.param
    images, labels = torch.from_numpy(few.images), torch.from_numpy(few.labels)
    made = fitted(name, images, labels, kind=kind)
    made.classes = CLASSES
    return made


def save_as_weights(classifier, folder):
    name = f"{'resnet' if classifier.net.residual else 'plain'}20"
    save_weights(folder / "w.safetensors", name, classifier.net, classifier.normalization, classifier.classes)
    return folder / "w.safetensors"


def save_run(classifier, folder):
    save_as_weights(classifier, folder).rename(folder / "model.safetensors")
    (folder / "result.json").write_text("{}")
    return folder


def save_hub(classifier, folder):
    HubClassifier.of(classifier).save_pretrained(folder / "hub")
    return folder / "hub"


def save_hub_of_earlier_versions(classifier, folder):
    path = save_hub(classifier, folder) / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != "_extra_state"}  # noqa: SIM118
    save_file(tensors, path)
    return path.parent


def torch_saved(change, name="w.pth"):
    def save(classifier, folder):
        torch.save(change(classifier), folder / name)
        return folder / name

    return save


def prefixed(prefix):
    return lambda classifier: {f"{prefix}{key}": tensor for key, tensor in classifier.state_dict().items()}


class Lightning(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.criterion = model, nn.CrossEntropyLoss(weight=torch.ones(10))


FORMS = {
    "save_weights": save_as_weights,
    "run directory": save_run,
    "Hub folder": save_hub,
    "Hub folder of earlier versions": save_hub_of_earlier_versions,
    "state_dict": torch_saved(lambda c: c.state_dict()),
    "state_dict, legacy": lambda c, folder: (
        torch.save(c.state_dict(), folder / "w.th", _use_new_zipfile_serialization=False) or folder / "w.th"
    ),
    "state_dict as safetensors": lambda c, folder: (
        save_file(c.state_dict(), folder / "s.safetensors") or folder / "s.safetensors"
    ),
    "DataParallel": torch_saved(lambda c: nn.DataParallel(c).state_dict()),
    "DistributedDataParallel, nested": torch_saved(lambda c: {"epoch": 3, "state_dict": prefixed("module.")(c)}),
    "Lightning": torch_saved(
        lambda c: {"pytorch-lightning_version": "2", "state_dict": Lightning(c).state_dict()}, "w.ckpt"
    ),
    "compiled": torch_saved(lambda c: torch.compile(c).state_dict()),
    "averaged": torch_saved(lambda c: torch.optim.swa_utils.AveragedModel(c).state_dict()),
    "beside numbers, arguments, optimizer": torch_saved(
        lambda c: {
            "args": argparse.Namespace(lr=0.1, seeds=[1, 2]),
            "best": np.float64(91.25),
            "losses": np.arange(3.0),
            "net": c.state_dict(),
            "optimizer": torch.optim.SGD(c.parameters(), 0.1, momentum=0.9).state_dict(),
        }
    ),
    "deep": torch_saved(lambda c: {"a": [{"b": (1, prefixed("x.y.")(c))}]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back(run, few, few_cifar10, classifier, form, tmp_path):
    path = FORMS[form](classifier, tmp_path)
    expected = classifier.predict_logits(few.images)
    for target in (path, str(path)):
        loaded = load_pretrained(target)
        assert not loaded.training
        assert torch.equal(loaded.predict_logits(few.images), expected)
        assert list(loaded.classes) == CLASSES
    code, stdout, stderr = run("import", path, "-o", tmp_path / "imported.safetensors")
    assert code == 0
    assert "the mean and std in the file" in stderr
    assert "that are not CIFAR-10's, so that there is no test error" in stdout
    again = load_pretrained(tmp_path / "imported.safetensors")
    assert torch.equal(again.predict_logits(few.images), expected)
    assert list(again.classes) == CLASSES


def test_every_form_serves_every_command(run, few, few_cifar10, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("DEEPRES_ZOO", "/nowhere")
    made = fitted("plain20", torch.from_numpy(few.images), torch.from_numpy(few.labels))
    Image.fromarray(few.images[0].transpose(1, 2, 0)).save(tmp_path / "photo.png")
    for form in ("state_dict", "Hub folder", "Lightning"):
        path = FORMS[form](made, tmp_path)
        code, stdout, _ = run("predict", tmp_path / "photo.png", "--model", path, "--json", "--top", 1)
        assert code == 0
        best = json.loads(stdout)["images"][0]["predictions"][0]["class"]
        assert best == made.classes[few.labels[0]]
        assert "test error 0.00%" in run("evaluate", path)[1]
    assert run("export", path, "--format", "torch-export", "-o", tmp_path / "net.pt2")[0] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_every_type_of_float(run, few, few_cifar10, classifier, tmp_path, dtype):
    rounded = copy.deepcopy(classifier).to(dtype).float()
    expected = rounded.predict_logits(few.images)
    made = copy.deepcopy(classifier).to(dtype)
    for path in (save_as_weights(made, tmp_path), FORMS["state_dict"](made, tmp_path)):
        loaded = load_pretrained(path)
        assert {tensor.dtype for tensor in [*loaded.parameters(), loaded.mean, loaded.std]} == {torch.float32}
        assert torch.equal(loaded.predict_logits(few.images), expected)
    code, stdout, _ = run("export", path, "--format", "torch-export", "-o", tmp_path / "n.pt2")
    assert code == 0
    assert "the same predictions" in stdout
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(load_pretrained(path).predict_logits(few.images), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_tools_add_is_not_written_and_what_they_change_is(few, classifier, tmp_path):
    def pruned(net):
        prune.l1_unstructured(net.fc, "weight", 0.5)

    def counted(net):
        net.conv1.register_buffer("total_ops", torch.zeros(1))

    def parametrized(net):
        parametrizations.weight_norm(net.layer1[0].conv1)

    for change in (pruned, counted, parametrized):
        made = copy.deepcopy(classifier)
        change(made.net)
        with torch.no_grad():
            expected = made.predict_logits(few.images)
        loaded = load_pretrained(save_as_weights(made, tmp_path))
        torch.testing.assert_close(loaded.predict_logits(few.images), expected)
    made = copy.deepcopy(classifier)
    pruned(made.net)
    loaded = load_pretrained(torch_saved(lambda c: c.state_dict())(made, tmp_path))
    torch.testing.assert_close(loaded.predict_logits(few.images), made.predict_logits(few.images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: setattr(net, "fc", nn.Sequential(nn.Linear(64, 2))), "last layer is Sequential, not Linear"),
        (lambda net: setattr(net, "fc", nn.Linear(64, 10, bias=False)), "'fc.bias' of this net is missing"),
        (lambda net: setattr(net, "conv1", nn.Conv2d(3, 16, 5, padding=2, bias=False)), "'conv1.weight' .* of shape"),
        (lambda net: setattr(net, "layer2", nn.Identity()), "'layer2.0.conv1.weight' of this net is missing"),
        (lambda net: setattr(net, "bn1", nn.Sequential()), "'bn1.weight' of this net is missing"),
        (
            lambda net: setattr(net, "layer1", nn.Sequential(*net.layer1, nn.Dropout(), nn.Tanh())),
            "computes otherwise",
        ),
        (lambda net: net.layer1[0].register_forward_hook(lambda m, i, o: o + 1), "computes otherwise"),
        (lambda net: net.fc.bias.data.fill_(float("nan")), r"not finite \('fc.bias'\)"),
        (lambda net: net.bn1.running_var.fill_(-1), r"variance below 0 \('bn1.running_var'\)"),
    ],
)
def test_what_would_not_come_back_is_not_written(classifier, tmp_path, change, message):
    made = copy.deepcopy(classifier)
    change(made.net)
    with pytest.raises(UserError, match=f"cannot write .*w.safetensors: .*{message}"):
        save_as_weights(made, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_class_names_are_in_the_file(classifier, tmp_path):
    path = save_as_weights(classifier, tmp_path)
    assert load_weights(path).classes == tuple(CLASSES)
    with pytest.raises(UserError, match="expected 10 different class names"):
        save_weights(path, "resnet20", build_model("resnet20"), classifier.normalization, ["cat"])
    save_weights(path, "resnet20", build_model("resnet20"), classifier.normalization)
    assert load_weights(path).classes is None


def test_a_name_comes_before_a_folder_of_that_name(stand_in_zoo, few, tmp_path, monkeypatch):
    (tmp_path / "resnet20").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("resnet20").name == "resnet20-paper"
    for path in ("./resnet20", tmp_path / "resnet20"):
        with pytest.raises(UserError, match=r"resnet20 holds no model\.safetensors"):
            load_pretrained(path)
    made = load_pretrained("plain20")
    (tmp_path / "mine").mkdir()
    torch.save(made.state_dict(), tmp_path / "mine" / "w")
    assert load_pretrained(tmp_path / "mine" / "w").score(few.images, few.labels) == 1.0
    save_run(made, tmp_path / "mine")
    assert load_pretrained("mine").score(few.images, few.labels) == 1.0


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\x89PNG\r\n", "an image: give it to `deepres predict`"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"\x93NUMPY", "an array of NumPy"),
        (b"", "empty"),
    ],
)
def test_files_of_other_kinds_are_told_apart(tmp_path, content, kind):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"is no readable checkpoint: it is {kind}"):
        load_pretrained(tmp_path / "w.pth")


def test_programs_are_told_apart(few, classifier, tmp_path):
    from deepres.export import FORMATS, export_classifier

    for name, file, kind in (
        ("torch-export", "net.pt2", "a program of torch.export"),
        ("onnx", "net.onnx", "an ONNX file"),
    ):
        export_classifier(classifier, FORMATS[name], tmp_path / file, few.images)
        with pytest.raises(UserError, match=f"it is {kind}.*: name the weights that it was exported from"):
            load_pretrained(tmp_path / file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(tmp_path / "net.pt"))
    with pytest.raises(UserError, match="it is a TorchScript program: name the weights that it was exported from"):
        load_pretrained(tmp_path / "net.pt")
    np.savez(tmp_path / "predictions.npz", a=np.zeros(3))
    with pytest.raises(UserError, match=r"predictions\.npz, and no weights"):
        load_pretrained(tmp_path / "predictions.npz")


def test_a_bare_net_is_imported_and_nothing_else(classifier, tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(classifier.net.state_dict(), path)
    message = rf"does not tell which net it is of: `deepres import {re.escape(str(path))} -o NAME\.safetensors`"
    with pytest.raises(UserError, match=message):
        load_pretrained(path)
    found = find_net(path)
    assert (found.depth, found.option, found.num_classes, found.name) == (20, "A", 10, None)


def test_what_is_left_over():
    keys = ["epoch_weights", *(f"ema.{i}" for i in range(9)), "a.b"]
    assert summarize(keys) == "ema.* (9), epoch_weights, a.b"
    assert summarize([f"k{i}" for i in range(7)]) == "k0, k1, k2, k3 and 3 more"


def test_neither_writing_nor_reading_draws_random_numbers(classifier, tmp_path):
    before = torch.get_rng_state()
    load_weights(save_as_weights(classifier, tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_net_that_overflows_after_its_first_steps_is_written(classifier, tmp_path):
    made = copy.deepcopy(classifier)
    for module in made.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(1e20)
    load_weights(save_as_weights(made, tmp_path))


@pytest.mark.parametrize("name", ["resnet8", "plain26", "resnet8x2"])
def test_weights_of_nets_that_are_not_the_papers_come_back(name, tmp_path):
    model = build_model(name, num_classes=7)
    save_weights(tmp_path / "w.safetensors", name, model, Normalization(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))
    loaded = load_weights(tmp_path / "w.safetensors")
    assert loaded.name == name
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor), key
