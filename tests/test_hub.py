"""Ways in by torch.hub, the Hugging Face Hub's client, and timm; all from local files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fitted import fitted
from safetensors.torch import load_file, save_file

from deepres.errors import UserError
from deepres.hub import HubClassifier
from deepres.models import MODELS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def classifier(few):
    return fitted("plain20", torch.from_numpy(few.images), torch.from_numpy(few.labels), kind="pixel_mean")


def test_torch_hub(stand_in_zoo, few):
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    entry_points = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entry_points == set(MODELS)
    assert "pretrained: with the weights" in hubconf.resnet20.__doc__
    model = torch.hub.load(str(ROOT), "plain20", source="local", pretrained=True)
    assert not model.training
    assert model.score(few.images, few.labels) == 1.0
    fresh = torch.hub.load(str(ROOT), "resnet20", source="local", option="B", num_classes=7)
    assert fresh(torch.from_numpy(few.images)).shape == (32, 7)
    assert fresh.net.option == "B"


def test_torch_hub_where_deepres_is_not_installed(tmp_path):
    program = (
        "import importlib.util, torch\n"
        "assert importlib.util.find_spec('deepres') is None\n"
        f"print(torch.hub.load({str(ROOT)!r}, 'resnet20', source='local').net.depth)"
    )
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.path[:] = [path for path in sys.path if not path.endswith('/src')]\n"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout == "20\n", done.stderr


def test_saved_and_loaded_by_the_hub_client(classifier, few, tmp_path):
    images = torch.from_numpy(few.images)
    saved = HubClassifier.of(classifier)
    saved.save_pretrained(tmp_path / "net")
    assert {path.name for path in (tmp_path / "net").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = HubClassifier.from_pretrained(tmp_path / "net")
    assert not loaded.training
    assert (loaded.name, loaded.net.residual, loaded.mean.shape) == ("plain20", False, (3, 32, 32))
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier(images))

    path = tmp_path / "net" / "model.safetensors"
    tensors = load_file(path)
    del tensors["mean"]
    save_file(tensors, path)
    with pytest.raises(RuntimeError, match="mean"):
        HubClassifier.from_pretrained(tmp_path / "net")


@pytest.fixture
def timm(monkeypatch):
    """Return timm, if it is installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    # torchvision, which timm imports, may be built for GPUs and torch for CPUs. None of its operators is there then,
    # and it fails when it describes them, though no classifier uses one.
    with monkeypatch.context() as patch:
        patch.setattr(torch.library, "register_fake", lambda name: lambda function: function)
        import torchvision  # noqa: F401
    import timm

    import deepres.timm  # noqa: F401

    return timm


def test_timm_creates_our_nets(timm, stand_in_zoo, few):
    assert set(timm.list_models("deepres_*")) == {f"deepres_{name}" for name in MODELS}
    model = timm.create_model("deepres_plain20", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["mean"], config["std"]) == ((3, 32, 32), (0, 0, 0), (1, 1, 1))
    pixels = torch.from_numpy(few.images) / 255
    with torch.no_grad():
        logits = model(pixels)
        features = model.forward_features(pixels)
        torch.testing.assert_close(model.forward_head(features), logits)
    assert logits.argmax(dim=1).tolist() == few.labels.tolist()
    assert features.shape == (32, model.num_features)
    tuned = timm.create_model("deepres_plain20", pretrained=True, num_classes=5)
    assert tuned(pixels).shape == (32, 5)
    assert torch.equal(tuned.net.conv1.weight, model.net.conv1.weight)
    assert timm.create_model("deepres_resnet20", num_classes=3)(pixels * 3 - 1).shape == (32, 3)
    for pretrained in (False, True):
        bare = timm.create_model("deepres_plain20", pretrained=pretrained, num_classes=0, drop_rate=0.0)
        assert bare(pixels).shape == (32, bare.num_features)
    torch.testing.assert_close(bare.eval()(pixels), features)
    for refused in ({"in_chans": 1}, {"features_only": True}, {"drop_rate": 0.1}):
        with pytest.raises(UserError, match=next(iter(refused))):
            timm.create_model("deepres_resnet20", **refused)
