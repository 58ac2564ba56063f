"""Who may train in a run directory, and what is compared before."""

import json
from dataclasses import replace

import pytest
import torch
from run_files import write_run
from tiny_run import first_images, tiny_recipe

from deepres.errors import UserError
from deepres.recipes.named import get_recipe
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.image_sets import cifar10_record
from deepres.training.claim import claim
from deepres.training.config import RunConfig
from deepres.training.progress import Reporter
from deepres.training.sets import Sets
from deepres.training.train import train

CPU = torch.device("cpu")
NO_IMAGES = (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))


def config(seed=0, **changes):
    settled = {"model": "resnet20", "recipe": tiny_recipe(), "precision": "float32", "backend": "eager"}
    return RunConfig(**{**settled, "seed": seed, **changes})


def claimed(path, asked, split="50k"):
    sets = Sets(NO_IMAGES, None, NO_IMAGES, cifar10_record(split, asked.recipe.split_seed))
    return claim(RunDir(path), asked, sets, CPU, 64_000, Reporter())


@pytest.mark.parametrize(("split", "split_seed"), [("50k", 0), ("45k", 0), ("45k", 3)])
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_an_older_version_is_gone_on_with(tmp_path, split, split_seed, finished):
    """Its recipe.json knows nothing of data and evaluation, and stays as it is."""
    recipe = replace(get_recipe("paper"), split=split, split_seed=split_seed)
    path = write_run(tmp_path / "a", recipe=recipe, split=split, finished=finished)
    before = RunDir(path).recipe.read_bytes()
    assert "data" not in json.loads(before)
    settled = claimed(path, config(recipe=recipe, precision="auto"), split)
    assert (settled.precision, settled.evaluate_every) == ("float32", 1)
    assert RunDir(path).recipe.read_bytes() == before


def test_an_older_run_on_other_data_is_refused(tmp_path, tiny_data):
    path = write_run(tmp_path / "a", finished=False)
    with pytest.raises(UserError, match=r"data.train.images was 50000, is 100; data.train.digest was") as raised:
        train(config(recipe=get_recipe("paper")), tiny_data, path, device=CPU)
    assert "\n" not in str(raised.value)


def test_an_older_runs_evaluations_are_kept_unless_others_are_asked_for(tmp_path):
    path = write_run(tmp_path / "a", finished=False)
    rows = RunDir(path).read_metrics()[:1]
    epochs_end = {**rows[0], "epoch": 4, "step": -(-4 * 50_000 // 128)}
    RunDir(path).write_metrics([epochs_end])
    asked = config(recipe=get_recipe("paper"))
    assert claimed(path, asked).evaluate_every == 4
    with pytest.raises(UserError, match=r"evaluation.every was 4, is 1"):
        claimed(path, replace(asked, evaluate_every=1))


def test_the_record_of_a_new_run_says_what_the_data_were(tmp_path, tiny_data):
    train(config(evaluate_every=2), tiny_data, tmp_path, device=CPU, max_steps=1)
    content = json.loads(RunDir(tmp_path).recipe.read_text())
    assert content["data"]["name"] == "CIFAR-10"
    assert content["data"]["fraction"] == 1.0
    assert (content["data"]["train"]["images"], content["data"]["test"]["images"]) == (100, 80)
    assert content["data"]["val"] is None
    assert content["evaluation"] == {"set": "test", "every": 2, "precision": "float32"}


def test_other_data_other_fraction_or_other_selection_is_another_run(tmp_path, tiny_data):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1)
    others = replace(tiny_data, test=replace(tiny_data.test, images=255 - tiny_data.test.images))
    for data, changes, what in (
        (others, {}, r"\(data.test.digest was"),
        (tiny_data, {"fraction": 0.5}, r"\(data.fraction was 1.0, is 0.5; data.train.images was 100, is "),
        (tiny_data, {"evaluate_every": 2}, r"\(evaluation.every was 1, is 2\)"),
    ):
        with pytest.raises(UserError, match=what):
            train(config(**changes), data, tmp_path, device=CPU)


def test_where_recipe_json_was_lost_the_checkpoint_says_what_was_begun(tmp_path, tiny_data):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1)
    run_dir = RunDir(tmp_path)
    content = run_dir.recipe.read_bytes()
    run_dir.recipe.unlink()
    with pytest.raises(UserError, match=r"was begun with another configuration \(seed was 0, is 7\)"):
        train(config(seed=7), tiny_data, tmp_path, device=CPU)
    assert not run_dir.recipe.exists()
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=2)
    assert run_dir.recipe.read_bytes() == content


def test_where_checkpoints_are_lost_too_the_result_says_what_was_finished(tmp_path, tiny_data):
    train(config(), tiny_data, tmp_path, device=CPU, max_steps=1)
    run_dir = RunDir(tmp_path)
    run_dir.recipe.unlink()
    for path in run_dir.checkpoint_paths():
        path.unlink()
    with pytest.raises(UserError, match=r"was finished with another configuration \(seed was 0, is 7\)"):
        train(config(seed=7), tiny_data, tmp_path, device=CPU, max_steps=1)


def test_runs_on_other_numbers_of_images_are_not_averaged(tmp_path, cifar10_dir):
    """As it was seen: three runs of one configuration and three numbers of images."""
    recipe = replace(tiny_recipe(), steps=1, epochs=None)
    for seed, num_train in enumerate((100, 60, 40)):
        few = first_images(cifar10_dir, num_train, 20)
        train(config(seed=seed, recipe=recipe), few, tmp_path / str(seed), device=CPU)
    groups = group_runs(load_runs([tmp_path])[0])
    assert [len(group.runs) for group in groups] == [1, 1, 1]
    assert len({group.label for group in groups}) == 3
