from dataclasses import replace

import pytest
from run_files import write_run

from deepres.errors import UserError
from deepres.recipes.named import fast
from deepres.runs.select import select_runs


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 2):
        write_run(tmp_path / f"runs/resnet20-fast-seed{seed}", "resnet20", "fast", seed, (8.1 + seed / 10,))
    write_run(tmp_path / "runs/resnet20-fast-seed3", "resnet20", "fast", 3, finished=False)
    slow = replace(fast(), name="fast+learning_rate=0.05", learning_rate=0.05)
    write_run(tmp_path / "runs/resnet20-fast+learning_rate=0.05-seed0", "resnet20", slow)
    write_run(tmp_path / "more/plain20-fast-seed0", "plain20", "fast")
    return tmp_path


def found(selection):
    return [run.path.name for run in selection.runs]


FAST = [f"resnet20-fast-seed{seed}" for seed in (0, 1, 2)]


@pytest.mark.parametrize(
    "text",
    [
        "runs/resnet20-fast-seed*",
        "runs/resnet20-fast-seed0,runs/resnet20-fast-seed1, runs/resnet20-fast-seed[2-9]",
        "model=resnet20,recipe=fast",
        "recipe=fast",
        "model=resnet20,recipe.learning_rate=0.030",
        "recipe.muon.learning_rate=0.05,recipe.name=fast,split=50k",
        "recipe=fast,seed=0,seed=1,seed=2",
    ],
)
def test_ways_to_name_the_same_runs(runs, text):
    assert found(select_runs(text)) == FAST


def test_a_folder_with_an_equals_sign_is_a_folder(runs):
    assert found(select_runs("runs/resnet20-fast+learning_rate=0.05-seed0")) == [
        "resnet20-fast+learning_rate=0.05-seed0"
    ]
    assert found(select_runs("runs/resnet20-fast+learning_rate=0.05-*")) == ["resnet20-fast+learning_rate=0.05-seed0"]


def test_other_folders_and_what_is_left_out(runs):
    assert found(select_runs("model=plain20", ["runs", "more"])) == ["plain20-fast-seed0"]
    assert found(select_runs("more")) == ["plain20-fast-seed0"]
    for text in ("recipe=fast", "runs/*-fast-seed*"):
        (left_out,) = select_runs(text).skipped
        assert left_out.path.name == "resnet20-fast-seed3"
    assert select_runs("recipe.learning_rate=0.05").skipped == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("no-such-folder", "no folder no-such-folder"),
        ("runs/vgg*", r"no folder matches runs/vgg\*"),
        ("runs/resnet20-fast-seed3", "no finished run in .*not finished"),
        ("modl=resnet20", "no run has a setting 'modl': did you mean model"),
        ("learning_rate=0.1", "no run has a setting 'learning_rate': did you mean recipe.learning_rate"),
        ("model=resnet56", "no finished run in runs has model=resnet56: model is resnet20 there"),
        ("runs/resnet20-fast-seed0,model=resnet20", "mixes paths and settings"),
    ],
)
def test_what_names_nothing_is_an_error_that_says_why(runs, text, message):
    with pytest.raises(UserError, match=message):
        select_runs(text)


def test_no_runs_at_all(tmp_path):
    with pytest.raises(UserError, match="name the folder of the runs with --runs"):
        select_runs("model=resnet20", [tmp_path])
