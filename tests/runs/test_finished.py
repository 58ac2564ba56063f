import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from run_files import change_json, write_run
from tiny_run import first_images, tiny_recipe

from deepres.errors import UserError
from deepres.recipes.named import fast, paper
from deepres.report.page import runs_table
from deepres.runs.directory import RunDir
from deepres.runs.finished import find_run_dirs, load_runs, model_key, read_run
from deepres.runs.groups import group_runs, labels_in_order
from deepres.training.train import RunConfig, train


def test_models_in_natural_order():
    names = ["plain20", "plain56", "resnet20", "resnet56", "resnet110", "resnet1202", "preresnet110", "preresnet164"]
    shuffled = Random(0).sample(names, len(names))
    assert sorted(shuffled, key=model_key) == names


def test_run_directories_are_found_once_wherever_they_lie(tmp_path):
    first = write_run(tmp_path / "runs" / "a")
    second = write_run(tmp_path / "runs" / "deep" / "er" / "b")
    (first / "checkpoints").mkdir()
    (first / "checkpoints" / "recipe.json").write_text("{}")  # nothing in a run directory is another one
    (tmp_path / "runs" / "no run").mkdir()
    assert find_run_dirs([tmp_path / "runs"]) == [first, second]
    assert find_run_dirs([second, tmp_path, first]) == [first, second]
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(first)
    (tmp_path / "links" / "round").symlink_to(tmp_path / "links")
    assert find_run_dirs([tmp_path / "links"]) == [tmp_path / "links" / "a"]
    with pytest.raises(UserError, match=r"no folder .*missing"):
        find_run_dirs([tmp_path / "missing"])


def test_a_real_run_reads_back(tmp_path, cifar10_dir):
    path, cpu = tmp_path / "run", torch.device("cpu")
    config, few = (
        RunConfig("resnet8", tiny_recipe(), seed=3, precision="float32"),
        first_images(cifar10_dir),
    )
    train(config, few, path, device=cpu, max_steps=7)
    with pytest.raises(UserError, match="ended by --max-steps after step 7 of 25"):
        read_run(path)
    train(config, few, path, device=cpu)
    run = read_run(path)
    assert (run.model, run.recipe, run.split, run.seed, run.steps, run.depth) == ("resnet8", "tiny", "50k", 3, 25, 8)
    assert run.test_error_last == run.rows[-1]["test_error"]
    assert run.test_error_best == min(row["test_error"] for row in run.rows)
    assert run.rows[run.best_epoch - 1]["test_error"] == run.test_error_best
    assert run.train_error == run.rows[-1]["train_error"]
    assert (run.num_parameters, run.epochs, run.device, run.held_out) == (75_290, 4.0, "cpu", "test")
    assert "torch 2." in run.versions


def test_val_error_of_the_papers_split(tmp_path):
    run = read_run(write_run(tmp_path / "a", split="45k", test_errors=(9.0, 8.5, 8.75)))
    assert (run.held_out, run.val_error_last, run.val_error_best, run.best_epoch) == ("val", 8.75, 8.5, 2)
    assert (run.test_error_last, run.test_error_best) == (8.75, None)
    assert read_run(write_run(tmp_path / "b")).val_error_last is None


def break_run(path: Path, how: str) -> None:
    run_dir = RunDir(path)
    match how:
        case "half a result":
            run_dir.result.write_text('{"steps": 6')
        case "no number":
            change_json(run_dir.result, test_error_last=None)
        case "not finite":
            run_dir.result.write_text(run_dir.result.read_text().replace("9.0", "NaN"))
        case "no metrics":
            run_dir.metrics.unlink()
        case "half the metrics":
            run_dir.metrics.write_text(run_dir.metrics.read_text()[:-40])
        case "metrics of bytes":
            run_dir.metrics.write_bytes(run_dir.metrics.read_bytes() + b"\xff\n")
        case "best of words":
            change_json(run_dir.result, test_error_best="x")
        case "compute of words":
            change_json(run_dir.result, compute="much")
        case "metrics of lists":
            run_dir.metrics.write_text("[1]\n")
        case "metrics too short":
            run_dir.metrics.write_text("".join(run_dir.metrics.read_text().splitlines(keepends=True)[:1]))
        case "no environment":
            run_dir.environment.unlink()
        case "recipe of words":
            change_json(run_dir.recipe, recipe="paper")
        case "sizes of words":
            recipe = json.loads(run_dir.recipe.read_text())["recipe"]
            change_json(run_dir.recipe, recipe={**recipe, "low_resolutions": ["small"]})
        case "batches of nothing":
            recipe = json.loads(run_dir.recipe.read_text())["recipe"]
            change_json(run_dir.recipe, recipe={**recipe, "batch_size": None})
        case "starts of nothing":
            change_json(run_dir.environment, earlier_starts=None)
        case "metrics in a folder":
            run_dir.metrics.unlink()
            run_dir.metrics.mkdir()
        case "no model":
            change_json(run_dir.recipe, model=20)
        case "unfinished":
            run_dir.result.unlink()
        case "just begun":
            run_dir.result.unlink()
            run_dir.metrics.unlink()


def test_the_page_shows_val_errors_where_there_are_some(tmp_path):
    whole = read_run(write_run(tmp_path / "a"))
    val = read_run(write_run(tmp_path / "b", split="45k", test_errors=(9.0, 8.5)))
    assert "val, last epoch" not in runs_table([whole]).headings
    table = runs_table([whole, val])
    assert table.headings[-1] == "val, last epoch"
    assert [row[-1] for row in table.rows] == ["", "8.50"]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("half a result", "result.json is damaged"),
        ("no number", "test_error_last is None, no number"),
        ("not finite", "is nan, no number"),
        ("no metrics", "metrics.jsonl is missing or does not end at step 64,000"),
        ("half the metrics", "metrics.jsonl is damaged"),
        ("metrics of bytes", "metrics.jsonl is damaged"),
        ("best of words", "test_error_best is 'x', no number"),
        ("compute of words", "compute is 'much', no number"),
        ("metrics of lists", "no JSON object"),
        ("metrics too short", "does not end at step 64,000"),
        ("no environment", "cannot read .*environment.json"),
        ("recipe of words", "no whole recipe"),
        ("sizes of words", r"recipe.json is damaged \(low_resolutions"),
        ("batches of nothing", "batch_size is None, no number"),
        ("starts of nothing", r"environment.json is damaged \(earlier_starts"),
        ("metrics in a folder", "cannot read .*metrics.jsonl"),
        ("no model", "recipe.json is damaged"),
        ("unfinished", "not finished: epoch 3, step 64,000"),
        ("just begun", "not finished: no epoch yet"),
    ],
)
def test_a_broken_run_is_skipped_with_its_reason(tmp_path, how, reason):
    whole, broken = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1)
    break_run(broken, how)
    finished, skipped = load_runs([tmp_path])
    assert [run.path for run in finished] == [whole]
    assert [skip.path for skip in skipped] == [broken]
    with pytest.raises(UserError, match=reason):
        read_run(broken)


def test_the_recipe_of_the_paper_comes_first(tmp_path):
    for recipe in ("faster", "fast", "paper"):
        write_run(tmp_path / recipe, recipe=recipe)
    assert labels_in_order(group_runs(load_runs([tmp_path])[0])) == ["paper", "fast", "faster"]


def test_a_run_and_its_copy_count_once_and_a_second_run_of_its_seed_does_not_count(tmp_path):
    first, _ = write_run(tmp_path / "runs" / "a"), write_run(tmp_path / "results" / "a")
    third = write_run(tmp_path / "runs" / "b", test_errors=(8.5, 7.0))
    finished, skipped = load_runs([tmp_path / "runs", tmp_path / "results"])
    assert len(finished) == 1
    assert [(skip.path, skip.reason.split(",")[0]) for skip in skipped] == [
        (third, f"the same configuration and seed as {finished[0].path}")
    ]
    assert finished[0].path in (first, tmp_path / "results" / "a")


def test_settings_that_differ_as_json_alone_are_told_apart(tmp_path):
    """Of an older version, which had one field less or wrote a number another way, for instance."""
    as_now = paper().to_json()
    variants = {
        "paper": as_now,
        "paper (epochs missing)": {key: value for key, value in as_now.items() if key != "epochs"},
        "paper (weight_decay 1)": as_now | {"weight_decay": 1},
        "paper (weight_decay 1.0)": as_now | {"weight_decay": 1.0},
    }
    assert as_now["epochs"] is None
    for seed, recipe in enumerate(variants.values()):
        path = write_run(tmp_path / f"{seed}", seed=seed)
        change_json(RunDir(path).recipe, recipe=recipe)
    groups = group_runs(load_runs([tmp_path])[0])
    assert {group.label: [run.seed for run in group.runs] for group in groups} == {
        label: [seed] for seed, label in enumerate(variants)
    }


def test_runs_of_one_recipe_name_but_other_content_are_never_put_together(tmp_path):
    older = replace(fast(), learning_rate=0.3)
    oldest = replace(paper(), name="fast", split="45k")
    for seed in range(2):
        write_run(tmp_path / f"now{seed}", recipe="fast", seed=seed)
        write_run(tmp_path / f"older{seed}", recipe=older, seed=seed)
        write_run(tmp_path / f"bfloat{seed}", recipe="fast", seed=seed, precision="bfloat16")
    write_run(tmp_path / "other seeds only", recipe=older, seed=7)
    write_run(tmp_path / "val", recipe="fast", split="45k")
    write_run(tmp_path / "oldest", recipe=oldest)
    groups = group_runs(load_runs([tmp_path])[0])
    assert all(len({(run.model, run.variant) for run in group.runs}) == 1 for group in groups)
    labels = {group.label: [run.seed for run in group.runs] for group in groups}
    assert len(labels) == len(groups) == 5
    assert labels.pop("fast") == [0, 1]
    assert labels.pop("fast (precision bfloat16)") == [0, 1]
    assert labels.pop("fast (learning_rate 0.3)") == [0, 1, 7]
    assert labels.pop("fast (split 45k)") == [0]
    (label,) = labels
    assert "more, variant " in label


def test_a_recipe_that_the_code_does_not_know_is_told_from_the_most_frequent_one(tmp_path):
    mine = replace(fast(), name="mine")
    for model in ("plain20", "resnet20"):
        write_run(tmp_path / model, model, recipe=mine)
    write_run(tmp_path / "longer", recipe=replace(mine, steps=5000))
    groups = group_runs(load_runs([tmp_path])[0])
    assert [(group.model, group.label) for group in groups] == [
        ("plain20", "mine"),
        ("resnet20", "mine"),
        ("resnet20", "mine (steps 5000)"),
    ]
