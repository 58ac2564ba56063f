"""Each format is written, run in its own runtime, and refused if it differs; TensorFlow's where it is installed."""

import importlib
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fitted import fitted
from torch.nn.utils import prune

from deepres.errors import UserError
from deepres.export import FORMATS, Format, export_classifier
from deepres.export.formats import compare
from deepres.weights.file import save_weights

CASES = [
    ("onnx", "resnet20", "A", "channel"),
    ("onnx", "resnet20", "B", "pixel_mean"),
    ("torch-export", "resnet20", "A", "pixel_mean"),
    ("tensorflow", "resnet20", "A", "channel"),
    ("tensorflow", "resnet20", "B", "pixel_mean"),
    ("tensorflow", "plain20", "A", "pixel_mean"),
]


@pytest.fixture
def fitting(few):
    images, labels = torch.from_numpy(few.images), torch.from_numpy(few.labels)
    return lambda name, **settings: fitted(name, images, labels, **settings)


@pytest.mark.parametrize(("name", "net", "option", "kind"), CASES)
def test_exported_files_give_the_same_logits(few, fitting, tmp_path, name, net, option, kind):
    if any(find_spec(package) is None for package in FORMATS[name].needs):
        pytest.skip(f"{name} is not installed")
    classifier = fitting(net, option=option, kind=kind)
    path = tmp_path / f"net{FORMATS[name].suffix}"
    difference = export_classifier(classifier, FORMATS[name], path, few.images)
    assert difference < 1e-4
    assert list(tmp_path.iterdir()) == [path]
    run = importlib.import_module(FORMATS[name].module).load(path)
    for size in (1, 3, 32):
        logits = run(few.images[:size])
        assert logits.shape == (size, 10)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, classifier.predict_logits(few.images[:size]), atol=1e-4)
    check_floats(run, few.images[:7], classifier.predict_logits(few.images[:7]))
    if name == "onnx":
        check_onnx(path)


def check_floats(run, images, expected):
    """Floats in [0, 1] give the same logits or are refused; those in [0, 255] are never taken for ones in [0, 1]."""
    for floats in ((images / 255).astype(np.float32), images.astype(np.float32)):
        try:
            logits = run(floats)
        except Exception:  # each runtime has its own
            continue
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def check_onnx(path):
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (pixels,), (logits,) = model.graph.input, model.graph.output
    assert (pixels.name, logits.name) == ("pixels", "logits")
    assert pixels.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    first, *others = pixels.type.tensor_type.shape.dim
    assert first.dim_param
    assert [dim.dim_value for dim in others] == [3, 32, 32]
    assert {p.key: p.value for p in model.metadata_props}["classes"].split(",")[0] == "airplane"


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_tensorflow_trains_further(few, fitting, tmp_path):
    classifier = fitting("resnet20")
    export_classifier(classifier, FORMATS["tensorflow"], tmp_path / "net.keras", few.images)
    import keras

    model = keras.models.load_model(tmp_path / "net.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == 269_722
    channels_last = few.images.transpose(0, 2, 3, 1)
    shifted = (few.labels + 1) % 10
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    before = model.get_layer("layer2_0_conv1").get_weights()[0].copy()
    history = model.fit(channels_last, shifted, epochs=3, batch_size=32, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert not np.allclose(model.get_layer("layer2_0_conv1").get_weights()[0], before)


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_training_does_not_load_tensorflow(tmp_path):
    program = (
        "import sys, deepres.training, torch.utils.tensorboard\n"
        "torch.utils.tensorboard.SummaryWriter(sys.argv[1]).add_scalar('error', 1, 1)\n"
        "print('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", program, tmp_path]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("+ 0.01", r"differs from the net by 1\.0e-02 in a logit"),
        ("* float('nan')", "differs from the net by nan"),
    ],
)
def test_a_file_that_differs_is_not_left(few, fitting, tmp_path, monkeypatch, spoil, message):
    """Of a format whose runtime computes something else."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "spoiled_format.py").write_text(
        "from deepres.export import torch_export\n"
        "write = torch_export.write\n"
        f"load = lambda path: lambda images: torch_export.load(path)(images) {spoil}\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.delitem(sys.modules, "spoiled_format", raising=False)
    own = Format("own", "spoiled_format", ".pt2")
    with pytest.raises(UserError, match=f"the own file {message}.*not kept"):
        export_classifier(fitting("plain20"), own, tmp_path / "net.pt2", few.images)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_changed_prediction_is_not_left(few, fitting):
    classifier = fitting("plain20")
    logits = classifier.predict_logits(few.images).numpy()
    logits[0, 1] = logits[0].max() + 1e-5  # nearly a tie
    with pytest.raises(UserError, match="predicts 1 of 32 images otherwise"):
        compare(classifier, lambda images: logits[: len(images)], few.images, "onnx", max_difference=1e9)


def test_the_command(run, few_cifar10, fitting, tmp_path, monkeypatch):
    classifier = fitting("plain20")
    weights = tmp_path / "net.safetensors"
    save_weights(weights, "plain20", classifier.net, classifier.normalization)
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = run("export", weights, "--format", "torch-export")
    assert code == 0
    assert stdout.startswith("plain20.pt2: ")
    assert "over 32 test images the same predictions, largest difference of a logit" in stdout
    for arguments, message in (
        (["--format", "caffe"], "unknown format 'caffe': choose from onnx, torch-export, tensorflow"),
        (["--format", "torch-export", "-o", "net.onnx"], "net.onnx must end in .pt2"),
        (["--format", "torch-export", "-o", "nowhere/net.pt2"], "there is no folder nowhere"),
    ):
        code, _, stderr = run("export", weights, *arguments)
        assert code == 2
        assert message in stderr
    for package in FORMATS["onnx"].needs:
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    message = "format onnx needs onnx, onnxscript, onnxruntime, not installed here: pip install 'deepres[onnx]'"
    assert message in run("export", weights, "--format", "onnx")[2]


def test_floats_that_are_taken_for_something_else_are_found(few, fitting, tmp_path):
    classifier = fitting("plain20")

    def run(images):  # as a traced module does
        return classifier.predict_logits(images.astype(np.uint8)).numpy()

    with pytest.raises(UserError, match=r"the onnx file takes floats in \[0, 1\] for something else"):
        compare(classifier, run, few.images, "onnx")


def test_the_callers_model_stays_as_it_is(few, fitting, tmp_path):
    classifier = fitting("plain20").double().train()
    classifier.net.layer1.eval()
    modes = [module.training for module in classifier.modules()]
    pointers = [tensor.data_ptr() for tensor in [*classifier.parameters(), *classifier.buffers()]]
    before = {name: tensor.clone() for name, tensor in classifier.named_parameters()}
    export_classifier(classifier, FORMATS["torch-export"], tmp_path / "net.pt2", few.images)
    assert [module.training for module in classifier.modules()] == modes
    assert {tensor.dtype for tensor in classifier.parameters()} == {torch.float64}
    assert [tensor.data_ptr() for tensor in [*classifier.parameters(), *classifier.buffers()]] == pointers
    assert all(torch.equal(before[name], tensor) for name, tensor in classifier.named_parameters())


def test_a_head_of_ones_own_and_a_pruned_weight(few, fitting, tmp_path):
    classifier = fitting("resnet20")
    prune.l1_unstructured(classifier.net.layer1[0].conv1, "weight", 0.3)
    classifier.net.fc = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(64, 3))
    assert export_classifier(classifier, FORMATS["torch-export"], tmp_path / "net.pt2", few.images) < 1e-4
    if find_spec("tensorflow") is not None:
        with pytest.raises(UserError, match="linear last layer"):
            export_classifier(classifier, FORMATS["tensorflow"], tmp_path / "net.keras", few.images)


def test_no_file_is_overwritten_unasked(run, few, few_cifar10, fitting, tmp_path, monkeypatch):
    classifier = fitting("plain20")
    save_weights(tmp_path / "net.safetensors", "plain20", classifier.net, classifier.normalization)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain20.pt2").write_text("of someone")
    code, _, stderr = run("export", "net.safetensors", "--format", "torch-export")
    assert (code, "plain20.pt2 exists: name another file with --out, or replace it with --force" in stderr) == (
        2,
        True,
    )
    with pytest.raises(UserError, match="exists"):
        export_classifier(classifier, FORMATS["torch-export"], tmp_path / "plain20.pt2", few.images)
    assert (tmp_path / "plain20.pt2").read_text() == "of someone"
    assert run("export", "net.safetensors", "--format", "torch-export", "--force")[0] == 0
    assert (tmp_path / "plain20.pt2").stat().st_size > 100_000
