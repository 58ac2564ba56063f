from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from run_files import change_json, write_run

from deepres.cli.grid import parse_fractions, read_recipes
from deepres.data.cifar10 import Split
from deepres.data.datasets import ImageData
from deepres.errors import UserError
from deepres.grid.plan import PAPER_MODELS, parse_seeds, plan_grid
from deepres.recipes.named import fast, paper
from deepres.runs.directory import RunDir
from deepres.training.sets import load_sets


def test_useful_runs_come_early(tmp_path):
    jobs = plan_grid(["resnet56", "plain20", "resnet20"], [fast(), paper()], [0, 1], tmp_path)
    assert [job.path for job in jobs] == [
        tmp_path / f"{model}-{recipe}-seed{seed}"
        for recipe in ("fast", "paper")
        for seed in (0, 1)
        for model in ("plain20", "resnet20", "resnet56")
    ]


def test_the_papers_table_is_the_eight_nets_of_figure_6():
    assert (
        *("plain20", "resnet20", "plain32", "resnet32"),
        *("plain44", "resnet44", "plain56", "resnet56"),
    ) == PAPER_MODELS


def test_a_variant_has_a_name_and_arguments_of_its_own(tmp_path):
    (job,) = plan_grid(["plain20"], [replace(paper(), split="45k")], [3], tmp_path, precision="float32")
    assert job.name == "plain20-paper-split45k-seed3"
    assert job.arguments()[:7] == ["plain20", "--recipe", "paper", "--seed", "3", "--split", "45k"]
    assert job.arguments()[9:11] == ["--precision", "float32"]
    assert job.num_images == 64_000 * 128


def test_evaluations_are_as_often_as_asked(tmp_path):
    (job,) = plan_grid(["plain20"], [paper()], [0], tmp_path, evaluate_every=4)
    assert job.config.evaluate_every == 4
    run_dir = RunDir(write_run(job.path, "plain20"))  # which was evaluated after each epoch
    assert not job.is_finished()
    (job,) = plan_grid(["plain20"], [paper()], [0], tmp_path)
    assert job.is_finished()
    change_json(run_dir.recipe, evaluation={"set": "test", "every": 4, "precision": "float32"})
    assert job.is_finished()  # however it was begun


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", [0]), ("3", [0, 1, 2]), ("5-5", [5]), ("0,2,5-7", [0, 2, 5, 6, 7]), ("4, 1,4", [4, 1]), (" 3 ", [0, 1, 2])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "", "-1", "1,", "3-1", "a", "1-", "1.5", "1001", "9" * 30, "0-1000"])
def test_wrong_seeds_are_one_line(text):
    with pytest.raises(UserError, match="give their number, such as 3, or a list"):
        parse_seeds(text)


def test_only_a_whole_run_of_the_same_configuration_is_finished(tmp_path):
    (job,) = plan_grid(["resnet20"], [paper()], [0], tmp_path)
    assert not job.is_finished()
    run_dir = RunDir(write_run(job.path))
    assert job.is_finished()
    (other,) = plan_grid(["resnet20"], [paper()], [0], tmp_path, precision="bfloat16")
    assert not other.is_finished()
    (other,) = plan_grid(["resnet20"], [replace(paper(), momentum=0.8)], [0], tmp_path)
    assert not other.is_finished()
    change_json(run_dir.result, steps=1000)  # by --max-steps
    assert not job.is_finished()
    change_json(run_dir.result, steps=None)
    assert not job.is_finished()
    run_dir.result.write_text("{")
    assert not job.is_finished()


def test_a_run_on_other_images_of_the_same_name_is_not_finished(tmp_path):
    images = np.zeros((4, 3, 32, 32), np.uint8)
    split = Split(images, np.array([0, 0, 1, 1]))
    pictures = ImageData(split, split, name="pictures", classes=("cat", "dog"))
    (job,) = plan_grid(["resnet20"], [paper()], [0], tmp_path, data="pictures", dataset=pictures)
    run_dir = RunDir(write_run(job.path))
    assert not job.is_finished()  # on CIFAR-10
    record = load_sets(pictures, paper(), torch.device("cpu")).record
    change_json(run_dir.recipe, data=asdict(record), evaluation={"set": "test", "every": 1, "precision": "float32"})
    assert job.is_finished()
    other = replace(pictures, train=Split(images + 1, split.labels))
    (job,) = plan_grid(["resnet20"], [paper()], [0], tmp_path, data="b/pictures", dataset=other)
    assert not job.is_finished()
    (job,) = plan_grid(["resnet20"], [paper()], [0], tmp_path)
    assert RunDir(job.path).path != run_dir.path
    assert not replace(job, path=run_dir.path).is_finished()  # as where the folder is called cifar10


def test_a_folder_of_images_is_found_from_any_folder_that_a_run_works_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (job,) = plan_grid(["resnet20"], [paper()], [0], tmp_path, data="pictures")
    assert job.arguments()[-2:] == ["--data", str(tmp_path / "pictures")]
    assert job.name == "resnet20-paper-pictures-seed0"
    (job,) = plan_grid(["resnet20"], [paper()], [0], tmp_path, data="data.py:make")
    assert job.arguments()[-2:] == ["--data", "data.py:make"]


def test_a_grid_of_changes_and_of_nets_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def small(n):\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, n))\n"
    )
    recipes, arguments = read_recipes(["paper"], ["pad=2,4", "nesterov=true"], None)
    assert [recipe.pad for recipe in recipes] == [2, 4]
    jobs = plan_grid(
        ["nets.py:small", "resnet8"], recipes, [0], tmp_path, fractions=[0.5, 1.0], recipe_arguments=arguments
    )
    assert [job.name for job in jobs[:2]] == [
        "small-paper+nesterov=true+pad=2-fraction0.5-seed0",
        "small-paper+nesterov=true+pad=2-seed0",
    ]
    assert len({job.path for job in jobs}) == len(jobs) == 8
    assert jobs[0].arguments()[:6] == ["nets.py:small", "--recipe", "paper", "--set", "pad=2", "--set"]
    assert jobs[0].arguments()[-2:] == ["--fraction", "0.5"]
    assert jobs[0].sources() == {"nets.py": (tmp_path / "nets.py").read_bytes()}
    assert jobs[-1].sources() == {}
    assert jobs[0].num_images == 32_000 * 2 * 128
    assert jobs[0].flop_per_image == 3 * 2 * (4 * 27 * 900 + 36_000)
    (job,) = plan_grid([str(tmp_path / "nets.py:small")], recipes[:1], [0], tmp_path)
    with pytest.raises(UserError, match="goes to other machines: name it by its path from this folder"):
        job.sources()


def test_one_directory_is_not_for_two_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(
            "from torch import nn\ndef net(n):\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, n))\n"
        )
    with pytest.raises(UserError, match="two runs of this grid would have the directory"):
        plan_grid(["a.py:net", "b.py:net"], [paper()], [0], tmp_path)
    with pytest.raises(UserError, match="two recipes of this grid are named mine"):
        read_recipes(["paper"], ["name=mine", "pad=2,4"], None)
    with pytest.raises(UserError, match="--fraction 'half' is no number"):
        parse_fractions(["half"])
