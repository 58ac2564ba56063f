import json
from pathlib import Path

import pytest
from run_files import change_json, write_run

from deepres.errors import UserError
from deepres.recipes.named import paper
from deepres.runs.directory import RunDir
from deepres.runs.finished import load_runs, read_record, read_run
from deepres.runs.groups import group_runs
from deepres.runs.image_sets import cifar10_record
from deepres.runs.schema import EpochRow, Evaluation, Result, RunRecord

RESULTS = Path(__file__).parents[2] / "results" / "runs"


@pytest.mark.parametrize("path", sorted(RESULTS.iterdir()), ids=lambda path: path.name)
def test_committed_files_read_back_as_they_were_written(path):
    """Some are older than the record of data and evaluation; those of later ones go without saying."""
    run = read_run(path)
    assert run.record.data == cifar10_record("50k", 0)
    content, known = json.loads(RunDir(path).recipe.read_text()), run.record.to_json()
    assert content == {key: known[key] for key in content}
    if "evaluation" not in content:  # as its rows tell
        every = 4 if run.precision == "bfloat16" else 1
        assert run.record.evaluation == Evaluation("test", every, run.precision)
    assert run.config == {key: value for key, value in content.items() if key not in ("data", "evaluation")}
    assert run.result.to_json() == json.loads(RunDir(path).result.read_text())
    assert run.environment.to_json() == json.loads(RunDir(path).environment.read_text())
    assert run.rows == RunDir(path).read_metrics()


def with_record(path, **changes):
    """Write the whole record into an older run's recipe.json, with other values in data or evaluation."""
    run_dir = RunDir(path)
    content = read_record(run_dir).to_json()
    for part, values in changes.items():
        content[part] |= values
    run_dir.recipe.write_text(json.dumps(content))
    return path


def test_runs_on_other_data_or_of_other_selection_are_rows_of_their_own(tmp_path):
    write_run(tmp_path / "older", seed=0)
    with_record(write_run(tmp_path / "same", seed=1))
    few = {"fraction": 0.1, "train": {"images": 5000, "digest": "0" * 16}}
    with_record(write_run(tmp_path / "fraction", seed=2), data=few)
    with_record(write_run(tmp_path / "selection", seed=3), evaluation={"every": 5})
    with_record(write_run(tmp_path / "val", seed=6), evaluation={"set": "val"})
    with_record(write_run(tmp_path / "elsewhere", seed=4), data={"name": "CIFAR-100"})
    with_record(write_run(tmp_path / "tests", seed=5), data={"test": {"images": 10_000, "digest": "1" * 16}})
    groups = group_runs(load_runs([tmp_path])[0])
    assert {group.label: [run.seed for run in group.runs] for group in groups} == {
        "paper": [0, 1, 3],
        "paper (fraction 0.1, train.images 5000, train.digest 0000000000000000)": [2],
        "paper (name CIFAR-100)": [4],
        "paper (test.digest 1111111111111111)": [5],
    }


def rows_of(*epochs):
    return [{"epoch": epoch, "step": -(-epoch * 50_000 // 128)} for epoch in epochs]


@pytest.mark.parametrize(
    ("rows", "every"),
    [
        ([], 1),
        (rows_of(1, 2, 3), 1),
        (rows_of(5, 10, 15), 5),
        (rows_of(5), 5),
        ([*rows_of(5, 10), {"epoch": 11, "step": 4000}], 5),  # stopped by --max-steps
        ([*rows_of(60, 120), {"epoch": 164, "step": 64_000}], 60),
        ([{"epoch": 164, "step": 64_000}], 1),  # the last step is evaluated in any case
        (rows_of(1, 2, 4, 6), 1),  # changed on the way: it cannot be told
        (["damaged"], 1),
    ],
)
def test_an_older_runs_rows_tell_how_often_it_was_evaluated(tmp_path, rows, every):
    content = json.loads(RunDir(write_run(tmp_path / "a")).recipe.read_text())
    assert RunRecord.from_json(content, tmp_path, rows=rows).evaluation.every == every


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": []}, "data is no JSON object"),
        ({"data": {}}, "fraction is None, no number"),
        ({"data": {"fraction": 1.0, "train": {}, "val": None, "test": None}}, "damaged .data."),
        ({"evaluation": "test"}, "evaluation is no JSON object"),
        ({"evaluation": {"set": "train", "every": 1}}, "evaluation.set is 'train'"),
        ({"evaluation": {"set": "test", "every": None}}, "every is None, no number"),
        ({"seed": "0"}, "damaged .seed is '0'."),
        ({"recipe": paper().to_json() | {"split": "40k"}}, "recipe.split is '40k'"),
    ],
)
def test_a_damaged_record_is_an_error_that_says_where(tmp_path, changes, reason):
    path = write_run(tmp_path / "a")
    change_json(RunDir(path).recipe, **changes)
    with pytest.raises(UserError, match=rf"recipe.json is damaged .*{reason}|recipe.json is {reason}"):
        read_run(path)


def test_what_a_later_version_records_is_kept_and_told_apart(tmp_path):
    for seed, changes in enumerate([{}, {"net": {"source": "abc"}}]):
        change_json(RunDir(write_run(tmp_path / str(seed), seed=seed)).recipe, **changes)
    plain, other = load_runs([tmp_path])[0]
    assert {plain.variant, other.variant} - {plain.variant}
    assert other.record.others == {"net": {"source": "abc"}} or plain.record.others == {"net": {"source": "abc"}}


def test_rows_and_results_read_back():
    row = EpochRow(7, 1, 0.1, 2.3, 88.0, "val", 80.0, 1.5, None)
    assert EpochRow.from_json(row.to_json(), "val", Path("metrics.jsonl")) == row
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged .test_error is None, no number"):
        EpochRow.from_json(row.to_json(), "test", Path("metrics.jsonl"))
    content = json.loads((RESULTS / "resnet20-fast-seed0" / "result.json").read_text())
    result = Result.from_json(content, Path("result.json"))
    assert Result.from_json(result.to_json(), Path("result.json")) == result
