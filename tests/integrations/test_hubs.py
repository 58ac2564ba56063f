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
from deepres.integrations.huggingface import HubClassifier
from deepres.models import MODELS
from deepres.zoo.card import read_card
from deepres.zoo.catalogue import PACKAGED, list_cards, load_pretrained

ROOT = Path(__file__).parents[2]


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
    tuned = torch.hub.load(str(ROOT), "plain20", source="local", pretrained=True, progress=False, num_classes=7)
    assert tuned(torch.from_numpy(few.images)).shape == (32, 7)
    assert torch.equal(tuned.net.conv1.weight, model.net.conv1.weight)
    same = torch.hub.load(str(ROOT), "plain20", source="local", pretrained=True, num_classes=10, option="A")
    assert torch.equal(same.net.fc.weight, model.net.fc.weight)
    for kwargs, message in (
        ({"pretrained": True, "option": "C"}, "have shortcut option A, not C"),
        ({"pretrained": True, "num_classes": 0}, "num_classes is 0"),
        ({"pretrained": True, "num_classes": "7"}, "num_classes is '7'"),
        ({"folder": "x"}, "give pretrained=True"),
    ):
        with pytest.raises(ValueError, match=message):
            torch.hub.load(str(ROOT), "resnet20", source="local", **kwargs)
    with pytest.raises(TypeError, match="wieghts"):
        torch.hub.load(str(ROOT), "resnet20", source="local", wieghts=None)


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


def test_the_card_on_the_hub_says_what_is_known(classifier, tmp_path):
    published = load_pretrained("resnet20-fast", folder=PACKAGED)
    stated = read_card(PACKAGED / "resnet20-fast.json")
    HubClassifier.of(published).save_pretrained(tmp_path / "published")
    text = (tmp_path / "published" / "README.md").read_text()
    for part in (f"**{stated.test_error_last:.2f}%** (seed {stated.seed})", "airplane, automobile", stated.sha256):
        assert part in text
    assert text.startswith("---\n")
    assert "pipeline_tag: image-classification" in text
    with torch.no_grad():
        published.net.fc.bias += 1  # trained further, it is no longer what the card states
    classifier.classes = [f"kind {i}" for i in range(10)]
    for i, made in enumerate((published, classifier)):
        HubClassifier.of(made).save_pretrained(tmp_path / str(i))
        text = (tmp_path / str(i) / "README.md").read_text()
        assert "test error | not recorded" in text
        assert f"{stated.test_error_last:.2f}%" not in text
        assert "More Information Needed" not in text
    assert "kind 0, kind 1" in text
    assert HubClassifier.from_pretrained(tmp_path / "1").classes[9] == "kind 9"
    classifier.net.fc = torch.nn.Sequential(classifier.net.fc)
    with pytest.raises(UserError, match="whose last layer is linear"):
        HubClassifier.of(classifier)


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

    import deepres.integrations.timm  # noqa: F401

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
    for refused in ({"drop_rate": 0.1}, {"global_pool": "max"}, {"cache_dir": "x"}):
        with pytest.raises(UserError, match=next(iter(refused))):
            timm.create_model("deepres_resnet20", **refused)


def test_timm_drops_no_argument(timm, stand_in_zoo, few):
    assert timm.create_model("deepres_resnet20.paper", pretrained=True).name == "resnet20-paper"
    overlay = {"file": str(stand_in_zoo / "resnet20-paper.safetensors")}
    made = timm.create_model("deepres_resnet20", pretrained=True, pretrained_cfg_overlay=overlay, global_pool="avg")
    assert made.score(few.images, few.labels) == 1.0
    for name, kwargs, message in (
        ("deepres_resnet20.no_such_tag", {}, "unknown tag of deepres_resnet20 'no_such_tag'"),
        ("deepres_resnet20.no_such_tag", {"pretrained": False}, "unknown tag"),
        ("deepres_resnet20", {"option": "C"}, "have shortcut option A, not C"),
        ("deepres_resnet20", {"pretrained_cfg_overlay": {"file": "gone.safetensors"}}, "no weights file gone"),
        ("deepres_plain20", {"pretrained_cfg_overlay": overlay}, "holds weights of resnet20, not of plain20"),
        ("deepres_resnet20", {"pretrained_cfg_overlay": {"fiel": "x"}}, "no setting among fiel"),
        ("deepres_resnet20", {"pretrained_cfg": {"url": "http://x"}}, "pretrained_cfg url"),
        ("deepres_resnet20", {"pretrained_cfg_overlay": {"mean": (0.5, 0.5, 0.5)}}, "the normalisation is inside"),
    ):
        with pytest.raises(UserError, match=message):
            timm.create_model(name, **{"pretrained": True, **kwargs})


def test_timm_lists_what_it_can_load(timm):
    listed = timm.list_models("deepres_*", pretrained=True)
    assert {f"deepres_{card.model}.{card.recipe}" for card in list_cards(PACKAGED)} == set(listed)


@torch.no_grad()
def test_timm_takes_bytes_gray_images_and_gives_features(timm, stand_in_zoo, few):
    images = torch.from_numpy(few.images)
    model = timm.create_model("deepres_plain20", pretrained=True).eval()
    assert model.score(few.images, few.labels) == 1.0
    torch.testing.assert_close(model(images), model(images / 255))
    for wrong, message in (
        (images.long(), "uint8 or float"),
        (images[:, :1], r"shape \(N, 3, H, W\)"),
        (torch.rand(1, 3, 64, 64), "a mean for each of 32x32 pixels"),
    ):
        with pytest.raises(UserError, match=message):
            model(wrong)
    gray = timm.create_model("deepres_plain20", pretrained=True, in_chans=1).eval()
    torch.testing.assert_close(gray(images[:, :1]), model(images[:, :1].repeat(1, 3, 1, 1)))
    assert timm.create_model("deepres_plain20", pretrained=True, in_chans=4)(torch.rand(2, 4, 32, 32)).shape == (2, 10)
    stages = timm.create_model("deepres_plain20", pretrained=True, features_only=True).eval()
    outputs = stages(images)
    assert [tuple(output.shape[1:]) for output in outputs] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert stages.feature_info.reduction() == [1, 2, 4]
    torch.testing.assert_close(outputs[-1].mean(dim=(2, 3)), model.forward_features(images))
    (second,) = timm.create_model("deepres_plain20", pretrained=True, features_only=True, out_indices=(1,)).eval()(
        images
    )
    torch.testing.assert_close(second, outputs[1])
