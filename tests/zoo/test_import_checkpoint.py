"""Checkpoints of other repositories, made here by renaming our own weights."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import assert_one_line_error
from fitted import fit, fitted
from safetensors.torch import save_file
from torch import nn

from deepres.errors import UserError
from deepres.models import build_model
from deepres.models.blocks import PadShortcut
from deepres.weights.file import load_weights
from deepres.weights.read import find_net
from deepres.zoo.catalogue import load_pretrained
from deepres.zoo.import_checkpoint import build_net, get_normalization


class PadAround(nn.Module):
    """Option A as some repositories have it: half of the zero channels before the others, half after."""

    def __init__(self, stride, extra_channels):
        super().__init__()
        self.stride, self.margin = stride, extra_channels // 2

    def forward(self, x):
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.margin, self.margin))


def pad_around(net):
    for module in net.modules():
        if isinstance(getattr(module, "shortcut", None), PadShortcut):
            module.shortcut = PadAround(module.shortcut.stride, module.shortcut.extra_channels)
    return net


def rename(state, *pairs):
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in pairs:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def as_stacks(state):
    """Rename to `stack1.0.conv1`, `stack2a.conv1`, `stack2b.0.conv1`, `fcOut`."""
    state = rename(state, (r"^conv1\.", "convIn."), (r"^bn1\.", "bnIn."), (r"^fc\.", "fcOut."))
    state = rename(state, (r"^layer1\.", "stack1."), (r"^layer([23])\.0\.", r"stack\1a."))
    return {
        re.sub(r"^layer([23])\.(\d+)", lambda m: f"stack{m[1]}b.{int(m[2]) - 1}", key): tensor
        for key, tensor in state.items()
    }


def as_linear(state):
    return rename(state, (r"^fc\.", "linear."))


def nest(key, prefix=""):
    return lambda state: {"epoch": 200, key: {f"{prefix}{name}": tensor for name, tensor in state.items()}}


def same(state):
    return state


def old(state):
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


@pytest.fixture
def fitting(few):
    images, labels = torch.from_numpy(few.images), torch.from_numpy(few.labels)
    return lambda name, option="A": fitted(name, images, labels, option=option)


def as_blocks(state):
    """Rename to `stage1.block1.conv1`, `shortcut.conv`, `conv`, `bn`."""
    state = rename(state, (r"^conv1\.", "conv."), (r"^bn1\.", "bn."))
    state = rename(state, (r"shortcut\.0\.", "shortcut.conv."), (r"shortcut\.1\.", "shortcut.bn."))
    return {
        re.sub(r"^layer(\d)\.(\d+)", lambda m: f"stage{m[1]}.block{int(m[2]) + 1}", k): t for k, t in state.items()
    }


def as_units(state):
    """Rename to `features.stage1.unit1.body.conv1.conv`, `identity_conv`, `init_block`, `output`."""
    state = rename(
        state,
        (r"^conv1\.", "features.init_block.conv."),
        (r"^bn1\.", "features.init_block.bn."),
        (r"^fc\.", "output."),
        (r"^(layer\d\.\d+)\.(conv|bn)(\d)\.", r"\1.body.conv\3.\2."),
        (r"shortcut\.0\.", "identity_conv.conv."),
        (r"shortcut\.1\.", "identity_conv.bn."),
    )
    named = {re.sub(r"^layer(\d)\.(\d+)", lambda m: f"features.stage{m[1]}.unit{int(m[2]) + 1}", k): k for k in state}
    return {new: state[old] for new, old in named.items()}


def counted(state):
    return {**state, "total_ops": torch.zeros(1), "layer2.0.shortcut.total_params": torch.zeros(1)}


FAMILIES = {
    "linear, DataParallel, state_dict": (
        "A",
        lambda s: rename(s, (r"^fc\.", "linear.")),
        nest("state_dict", "module."),
    ),
    "stacks, plain text": ("A", as_stacks, same),
    "fc, downsample": ("B", lambda s: rename(s, (r"\.shortcut\.", ".downsample.")), same),
    "linear, shortcut, compiled, model": (
        "B",
        lambda s: rename(s, (r"^fc\.", "linear.")),
        nest("model", "_orig_mod."),
    ),
    "projections everywhere": ("C", same, nest("net", "module.")),
    "before torch 0.4.1": ("A", old, same),
    "stages and blocks": ("B", as_blocks, nest("model")),
    "stages and blocks, A": ("A", as_blocks, nest("model", "module.")),
    "stages and units": ("B", as_units, same),
    "stages and units, A": ("A", as_units, nest("weights")),
    "averaged": ("A", same, lambda s: {"n_averaged": torch.tensor(5), **{f"module.{k}": t for k, t in s.items()}}),
    "a criterion beside": (
        "B",
        same,
        lambda s: {**nest("state_dict", "model.")(s), "criterion.weight": torch.ones(10)},
    ),
    "a FLOP counter's": ("A", counted, same),
    "a name of its own": ("A", same, nest("state_dict", "backbone.encoder.")),
    "in a list": ("C", same, lambda s: {"state_dict": [s]}),
    "in a tuple": ("A", same, lambda s: (3, s)),
    "numpy beside": ("A", same, lambda s: {"net": s, "acc": np.float64(91.65), "losses": np.array([1.0, 2.0])}),
    "arguments beside": ("A", same, lambda s: {"net": s, "args": argparse.Namespace(lr=0.1, path=Path("x"))}),
    "an average beside": ("A", same, lambda s: {"ema": {k: t * 0 for k, t in s.items()}, "model": s}),
    "only an average": ("A", same, nest("state_dict_ema")),
    "half": ("A", same, lambda s: {k: t.double() if t.is_floating_point() else t for k, t in s.items()}),
    "optimizer beside": (
        "A",
        same,
        lambda s: {"optimizer": {"state": {0: {"momentum_buffer": torch.zeros(16, 3, 3, 3)}}}, "net": s},
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_recognised_and_compute_the_same(tmp_path, few, fitting, family):
    option, renamed, wrapped = FAMILIES[family]
    ours = fitting("resnet20", option)
    path = tmp_path / "theirs.th"
    torch.save(wrapped(renamed(ours.net.state_dict())), path)
    found = find_net(path)
    assert (found.depth, found.option) == (20, option)
    x = ours.normalize(torch.from_numpy(few.images[:4]))
    assert torch.equal(build_net(found)(x), ours.net(x))


@pytest.mark.parametrize(
    ("name", "renamed", "described"),
    [
        ("resnet20", as_stacks, "option A shortcuts, zero channels after"),
        ("plain20", as_stacks, r"no shortcuts \(plain\)"),
        ("plain20", same, r"no shortcuts \(plain\)"),
    ],
)
def test_whether_plain_or_residual_is_found_out(run, few, few_cifar10, fitting, tmp_path, name, renamed, described):
    ours, path, out = fitting(name), tmp_path / "theirs.pt", tmp_path / "out.safetensors"
    torch.save(renamed(ours.net.state_dict()), path)
    mean, std = (",".join(f"{v:.9f}" for v in tensor.flatten().tolist()) for tensor in (ours.mean, ours.std))
    code, stdout, stderr = run("import", path, "-o", out, "--mean", mean, "--std", std)
    assert code == 0
    assert re.search(f"is {name}, {described}", stderr)
    assert "0.0% error on training images" in stderr
    assert "assumed" not in stderr
    assert stdout == f"{out}: {name}, test error 0.00% over 32 images\n"
    torch.testing.assert_close(load_pretrained(str(out)).predict_logits(few.images), ours.predict_logits(few.images))


def test_zero_channels_on_both_sides_become_ours(run, few, few_cifar10, tmp_path):
    images, labels = torch.from_numpy(few.images), torch.from_numpy(few.labels)
    theirs = fit(pad_around(build_model("resnet32")), images, labels)
    path, out = tmp_path / "theirs.th", tmp_path / "out.safetensors"
    state = rename(theirs.net.state_dict(), (r"^fc\.", "module.linear."), (r"^(?!module\.)", "module."))
    torch.save({"state_dict": state, "best_prec1": 92.6}, path)
    code, _, stderr = run("import", path, "-o", out)
    assert code == 0
    assert "is resnet32, option A shortcuts, zero channels on both sides of the others" in stderr
    assert "cifar10 statistics (assumed: see --norm, --mean and --std)" in stderr
    loaded = load_weights(out)
    assert type(loaded.model.layer2[0].shortcut) is PadShortcut
    x = theirs.normalize(images)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), theirs.net(x), rtol=1e-4, atol=1e-4)
    assert loaded.normalization.mean.flatten().tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091])


def test_normalisation_is_taken_as_told(run, few_cifar10, fitting, tmp_path):
    path, out = tmp_path / "theirs.safetensors", tmp_path / "out.safetensors"
    save_file(fitting("resnet20", "B").net.state_dict(), path)
    code, _, stderr = run("import", path, "-o", out, "--norm", "imagenet")
    assert code == 0
    assert "resnet20, option B shortcuts; normalised with imagenet statistics\n" in stderr
    assert load_weights(out).normalization.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    for arguments, message in (
        (["--mean", "0.5,0.5,0.5"], "--mean and --std together"),
        (["--mean", "125,123,114", "--std", "63,62,67"], "not three numbers in units of pixels / 255"),
        (["--mean", "0.5,0.5", "--std", "0.2,0.2"], "not three numbers"),
        (["--mean", "a,b,c", "--std", "0.2,0.2,0.2"], "not three numbers with commas"),
        (["--norm", "cifar100"], "unknown normalisation 'cifar100' (did you mean cifar10?)"),
        (["--shortcuts", "before"], "unknown shortcuts 'before'"),
        (["--shortcuts", "after"], "has projections in its shortcuts (option B)"),
    ):
        code, _, stderr = run("import", path, "-o", tmp_path / "no.safetensors", *arguments)
        assert code == 2
        assert message in stderr
    assert "must end in .safetensors" in run("import", path, "-o", tmp_path / "out.pt")[2]
    assert "there is no folder" in run("import", path, "-o", tmp_path / "none" / "out.safetensors")[2]
    assert not (tmp_path / "no.safetensors").exists()


def test_weights_that_do_not_tell_are_not_guessed(run, few_cifar10, tmp_path):
    path, out = tmp_path / "random.pt", tmp_path / "out.safetensors"
    torch.save(build_model("resnet20", generator=torch.Generator().manual_seed(0)).state_dict(), path)
    code, _, stderr = run("import", path, "-o", out)
    assert code == 2
    assert "do not tell how their shortcuts work" in stderr
    assert not out.exists()
    code, _, stderr = run("import", path, "-o", out, "--shortcuts", "none")
    assert code == 0
    assert load_weights(out).name == "plain20"


class Payload:
    def __reduce__(self):
        return print, ("this must not run",)


def without(key):
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"layer1.3.conv1.weight": torch.zeros(16, 16, 3, 3)},
            "resnet26, option A, it lacks what we call 'layer1.3.bn1.weight'",
        ),
        (
            lambda s: s | {"linear.weight": torch.zeros(100, 64)},
            r"'linear.weight' has shape \(100, 64\), not \(10, 64\)",
        ),
        (
            lambda s: s | {"conv1.weight": torch.zeros(60, 3, 3, 3)},
            r"'conv1.weight' has shape \(60, 3, 3, 3\), not",
        ),
        (lambda s: {"layer4.0.conv1.weight": torch.zeros(1), **s}, "its key 'layer4.0.conv1.weight' has no place"),
        (lambda s: {"features.0.weight": torch.zeros(1)}, "its key 'features.0.weight' has no place"),
        (without("layer3.2.bn2.bias"), "it lacks what we call 'layer3.2.bn2.bias'"),
        (without("layer1.2.conv1.weight"), "it lacks what we call 'layer1.2.conv1.weight'"),
        (lambda s: {"state_dict": {"epoch": 3}}, "holds no state dict, but dict of 'state_dict'"),
        (lambda s: {"args": torch.nn.ReLU(), **s}, "holds a whole module, pickled"),
        (lambda s: [1, 2], "holds no state dict, but list"),
        (lambda s: {"args": Payload(), **s}, "holds print, which loading it would run, and is not loaded"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_first_key(tmp_path, capsys, change, message):
    path = tmp_path / "theirs.pt"
    state = dict(build_model("resnet20").state_dict())
    torch.save(change(state), path)
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + message):
        find_net(path)
    assert capsys.readouterr().out == ""


def test_unreadable_checkpoints_are_refused(tmp_path):
    with pytest.raises(UserError, match="no weights file"):
        find_net(tmp_path / "none.pt")
    for name, content in (("a.pt", b"no such thing"), ("b.pt", b""), ("c.safetensors", b"short")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} (is no readable checkpoint|holds something)"):
            find_net(tmp_path / name)
    for first in "abcdefghijklmnopqrstuvwxyz":  # each is an instruction to a reader of pickles
        (tmp_path / "train.log").write_text(f"{first}poch 1: 12.3%\n")
        with pytest.raises(UserError, match=r"train\.log (is no readable checkpoint|holds )"):
            find_net(tmp_path / "train.log")


def test_the_known_statistics_are_the_data_sets(few):
    assert get_normalization("cifar10").mean.shape == (3, 1, 1)
    with pytest.raises(UserError, match="unknown normalisation"):
        get_normalization("mnist")


def test_what_else_the_file_holds_is_said(run, few_cifar10, fitting, tmp_path):
    path, out = tmp_path / "theirs.ckpt", tmp_path / "out.safetensors"
    state = {f"model.{key}": tensor for key, tensor in fitting("resnet20", "B").net.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(10)}, "epoch": 3}, path)
    code, _, stderr = run("import", path, "-o", out)
    assert code == 0
    assert f"left over in {path}, and not used: state_dict.criterion.weight\n" in stderr


def test_a_head_of_a_hundred_classes(run, few_cifar10, tmp_path):
    path, out = tmp_path / "theirs.pt", tmp_path / "out.safetensors"
    torch.save(build_model("resnet20", num_classes=100).state_dict(), path)
    assert_one_line_error(run("import", path, "-o", out), "100 classes: give --shortcuts after|around|none")
    code, stdout, _ = run("import", path, "-o", out, "--shortcuts", "after")
    assert (code, "100 classes that are not CIFAR-10's" in stdout) == (0, True)
    assert len(load_pretrained(out).classes) == 100
    assert_one_line_error(run("evaluate", out), "100 classes, CIFAR-10 has 10", "give --images")
    names = ",".join(f"c{i}" for i in range(100))
    assert run("import", path, "-o", out, "--shortcuts", "none", "--classes", names)[0] == 0  # replaces our own file
    assert load_pretrained(out).classes[99] == "c99"
    assert load_pretrained(out).net.residual is False
    outcome = run("import", path, "-o", out, "--shortcuts", "none", "--classes", "a,b")
    assert_one_line_error(outcome, "expected 100 different class names, but got 2")


def test_no_file_is_destroyed(run, few_cifar10, fitting, tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file(fitting("resnet20", "B").net.state_dict(), path)
    before = path.read_bytes()
    assert_one_line_error(run("import", path, "-o", path), "is the file that is read")
    other = tmp_path / "thesis.safetensors"
    other.write_text("not ours")
    assert_one_line_error(run("import", path, "-o", other), "exists, and is no weights file of deepres")
    assert (path.read_bytes(), other.read_text()) == (before, "not ours")


def test_statistics_alone_are_missing_and_so_it_says(run, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save(dict(build_model("resnet20").named_parameters()), path)
    outcome = run("import", path, "-o", tmp_path / "out.safetensors")
    assert_one_line_error(outcome, "it lacks what we call 'bn1.running_mean': save the net's state_dict()")
