"""Around the steps: what a run leaves when an ornament fails, on a GPU, and of a net of one's own."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_recipe
from torch import nn

from deepres.data.splits import stratified_split, stratified_subset
from deepres.errors import UserError
from deepres.runs.directory import RunDir
from deepres.runs.schema import RunRecord
from deepres.training.config import RunConfig
from deepres.training.progress import Reporter
from deepres.training.recorder import Recorder
from deepres.training.train import train

CPU = torch.device("cpu")


class Notices(Reporter):
    def __init__(self):
        self.notices = []

    def notice(self, message):
        self.notices.append(message)


class SmallNet(nn.Module):
    """Nothing of ours, and too small to take time."""

    depth = 2

    def __init__(self, num_classes, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))


def config(**changes):
    return RunConfig(**{"model": SmallNet, "recipe": tiny_recipe(), "precision": "float32", **changes})


def test_a_net_of_ones_own_is_trained_as_it_is_and_resumed(tmp_path, tiny_data):
    straight, resumed = (RunDir(tmp_path / name) for name in ("straight", "resumed"))
    result = train(config(), tiny_data, straight.path, device=CPU)
    assert (result["model"], result["backend"]) == ("SmallNet", "eager")
    assert result["num_parameters"] == 4 * 27 + 8 + 50
    train(config(), tiny_data, resumed.path, device=CPU, max_steps=9)
    train(config(), tiny_data, resumed.path, device=CPU)
    weights, others = load_file(straight.weights), load_file(resumed.weights)
    assert weights.keys() == others.keys() == {*(f"net.{key}" for key in SmallNet(10).state_dict()), "mean", "std"}
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    errors = [row["train_error"] for row in straight.read_metrics()]
    assert errors[-1] < errors[0]


def test_a_net_of_ones_own_is_part_of_what_determines_the_run(tmp_path, tiny_data):
    torch.manual_seed(0)
    net = SmallNet(10)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    train(config(model=net), tiny_data, tmp_path, device=CPU, max_steps=1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
    assert json.loads(RunDir(tmp_path).recipe.read_text())["net"].keys() == {"source", "weights"}
    with pytest.raises(UserError, match=r"net.weights was \w+, is \w+"):
        train(config(model=SmallNet(10)), tiny_data, tmp_path, device=CPU)
    train(config(model=net), tiny_data, tmp_path, device=CPU, max_steps=2)


@pytest.mark.parametrize(
    ("net", "what"),
    [
        (lambda num_classes: num_classes, r"<lambda>\(10\) is a int: it must be a torch.nn.Module"),
        (SmallNet(10).requires_grad_(False), "SmallNet: the parameter conv.weight is frozen"),
        (nn.Conv1d(1, 1, 1), "Conv1d: the parameter weight is of 3 dimensions"),
        ("resnet21", "unknown model 'resnet21'"),
    ],
)
def test_a_net_that_cannot_be_trained_is_an_error_before_anything_is_written(tmp_path, tiny_data, net, what):
    with pytest.raises(UserError, match=what):
        train(config(model=net), tiny_data, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_a_picture_that_fails_is_a_notice(tmp_path, tiny_data, monkeypatch, broken):
    def fail(figure):
        raise RuntimeError("no fonts\nat all")

    module = None if broken == "missing" else SimpleNamespace(FigureCanvasAgg=fail)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", module)
    reporter = Notices()
    result = train(config(), tiny_data, tmp_path, device=CPU, max_steps=1, reporter=reporter)
    assert json.loads(RunDir(tmp_path).result.read_text()) == result
    reason = "it needs matplotlib: pip install 'deepres[report]'" if broken == "missing" else "no fonts"
    assert f"no curve.png ({reason}); the result is complete" in reporter.notices
    assert not RunDir(tmp_path).curve.exists()


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_a_run_needs_no_tensorboard(tmp_path, tiny_data, monkeypatch, broken):
    def fail(folder):
        raise TypeError("another protobuf")

    module = None if broken == "missing" else SimpleNamespace(SummaryWriter=fail)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    reporter = Notices()
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1, reporter=reporter)
    assert RunDir(tmp_path).result.exists()
    said = [line for line in reporter.notices if "TensorBoard" in line]
    assert said == (
        [] if broken == "missing" else ["no TensorBoard events (another protobuf): continuing without them"]
    )


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_that_is_resumed_says_where_it_is_not_bit_identical(tmp_path, tiny_data, exact):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1)

    class Trainer:
        """Takes no steps."""

        device = CPU
        resumes_exactly = exact
        step = 1

        def load_state(self, state):
            assert state["step"] == 1

    reporter, run_dir = Notices(), RunDir(tmp_path)
    record = RunRecord.from_json(json.loads(run_dir.recipe.read_text()), run_dir.recipe)
    assert Recorder(config(backend="eager"), record, Trainer(), None, run_dir, reporter, 5.0).resume() is not None
    assert any("not bit-identical" in line for line in reporter.notices) == (not exact)


def test_a_fraction_trains_on_fewer_images_and_the_same_test_set(tmp_path, tiny_data):
    recipe = replace(tiny_recipe(), split="45k")
    result = train(config(recipe=recipe, fraction=0.5), tiny_data, tmp_path, device=CPU)
    data = json.loads(RunDir(tmp_path).recipe.read_text())["data"]
    train_index, val_index = stratified_split(tiny_data.train.labels, 0.1, seed=0)
    subset = stratified_subset(tiny_data.train.labels[train_index], 0.5)
    assert data["fraction"] == 0.5
    assert data["train"]["images"] == len(subset) < len(train_index)
    assert data["val"]["images"] == len(val_index)
    assert data["test"]["images"] == 80
    assert result["total_steps"] == recipe.total_steps(data["train"]["images"])
