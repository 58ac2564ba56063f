import json

import pytest
from command_line import assert_one_line_error, run_cli
from tiny_run import DATA

NETS = """
import torch.nn.functional as F
from deepres.models.blocks import Block
from deepres.models.resnet import ResNet


class SiluBlock(Block):
    def forward(self, x):
        return F.silu(super().forward(x))


class SiluNet(ResNet):
    def __init__(self, num_classes):
        super().__init__(8, num_classes=num_classes)
        for module in self.modules():
            if type(module) is Block:
                module.__class__ = SiluBlock


def nothing(num_classes):
    return None
"""


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, cifar10_dir):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    (tmp_path / "nets.py").write_text(NETS)
    return lambda *arguments: run_cli(monkeypatch, capsys, *arguments)


def test_a_net_of_ones_own_is_trained_as_it_is(run, tmp_path):
    settings = ("--set", "batch_size=16", "--set", "low_resolutions=[]", "--data", DATA)
    code, _, stderr = run("train", "nets.py:SiluNet", *settings, "--max-steps", "2", "--backend", "eager")
    assert code == 0, stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("SiluNet-fast+batch_size=16+low_resolutions=")
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["model"] == "SiluNet"
    assert recipe["net"]["source"]
    assert recipe["recipe"]["batch_size"] == 16
    assert json.loads((folder / "result.json").read_text())["backend"] == "eager"
    (tmp_path / "nets.py").write_text(NETS + "\n# changed\n")
    code, _, stderr = run("train", "nets.py:SiluNet", *settings, "--max-steps", "3", "--backend", "eager")
    assert code == 2
    assert "was begun with another configuration (net.source was " in stderr.splitlines()[-1]


def test_what_is_no_net_ends_before_anything_is_written(run, tmp_path):
    assert_one_line_error(run("train", "nets.py:nothing"), "nothing(10) is a NoneType: it must be a torch.nn.Module")
    assert_one_line_error(run("train", "nets.py:SilNet"), "nets.py has no SilNet: did you mean SiluNet?")
    assert_one_line_error(run("train", "absent.py:Net"), "there is no file absent.py")
    assert_one_line_error(run("train", "resnet21"), "unknown model 'resnet21'", "such as resnet26")
    assert not (tmp_path / "runs").exists()


def test_an_empty_result_says_the_way_out(run, tmp_path):
    arguments = ("train", "resnet8", "--recipe", "one-cycle", "--data", DATA, "--run-dir", "r")
    code, _, stderr = run(*arguments, "--max-steps", "1", "--backend", "eager", "--set", "batch_size=16")
    assert code == 0, stderr
    (tmp_path / "r" / "result.json").write_text("")
    code, _, stderr = run(*arguments, "--max-steps", "1", "--backend", "eager", "--set", "batch_size=16")
    assert code == 2
    assert "result.json is damaged" in stderr
    assert stderr.endswith(": delete it, and the same command resumes from the last checkpoint\n")
