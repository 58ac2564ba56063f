import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import readme as tool  # noqa: E402


def test_generated_tables_are_up_to_date(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["readme.py", "--check"])
    tool.main()
    for name in ("docs", "results", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text().replace(" | float32 |", " | float64 |"))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"README.md not up to date: run `make readme`"):
        tool.main()


def test_time_of_the_table_says_what_was_measured(tmp_path, monkeypatch):
    def written():
        return " ".join(tool.table_time().split())

    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert "hours" not in written()
    assert "has not been measured on a GPU" in written()
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    report = {"device": "A CPU", "cores": 4, "precision": "float32", "jobs": 2, "threads": 1}
    recipes = {"fast": {"seconds": 9000, "epochs": 24, "models": {"plain20": {}, "resnet20": {}}}}
    (folder / "table_time.json").write_text(json.dumps({**report, "recipes": recipes}))
    assert (
        "A CPU, 4 cores, in float32, 2 at a time with 1 thread each, one seed of all 2 nets takes 2.5 hours by"
        in written()
    )
    assert "extrapolated from measured speed" in written()
    assert "has not been measured on a GPU" in written()
    (folder / "table_time_gpu.json").write_text(json.dumps({**report, "device": "A GPU", "recipes": recipes}))
    assert "On A GPU" in written()
    assert "has not been measured" not in written()


def test_ablation_compares_each_variant_with_the_recipe():
    errors = {"the recipe": [10.0, 12.0], "without": [13.0, 15.0], "once": [10.5]}
    table = tool.ablation_of({"model": "resnet20", "fraction": 0.025, "val_errors": errors})
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] == [
        ["the recipe", "11.00", "1.41", "2", ""],
        ["without", "14.00", "1.41", "2", "+3.00 ± 1.41"],  # both variances are 2, each halved by n
        ["once", "10.50", "", "1", "-0.50"],
    ]
    assert "resnet20, 1/40" in table


def test_curve_of_error_and_compute_in_the_order_of_compute(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    lengths = [(0.1, "fast", 4471, (8.0, 8.5)), (0.025, "fast-0.025", 1118, (13.0,))]
    rows = [
        {
            "recipe": {"name": name, "steps": steps},
            "compute_fraction": part,
            "runs": [{"test_error_last": error} for error in errors],
        }
        for part, name, steps, errors in lengths
    ]
    (folder / "error_compute.json").write_text(json.dumps({"model": "resnet20", "rows": rows}))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tool.compute_curve().splitlines()[2:]]
    assert cells == [
        ["1/40", "fast-0.025", "1,118", "13.00", "", "1"],
        ["1/10", "fast", "4,471", "8.25", "0.35", "2"],
    ]


def test_make_targets_and_files_that_the_readme_names_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([a-z]+)`|^\$ make ([a-z]+)", readme, re.MULTILINE))
    names = {name for pair in targets for name in pair if name}
    assert {"reproduce", "test", "help"} <= names
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in names)
    linked = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert "docs/paper.md" in linked
    assert all((ROOT / path).exists() for path in linked)


def test_the_readmes_python_runs(stand_in_zoo):
    model, weights = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    namespace: dict[str, object] = {}
    exec(model, namespace)
    assert namespace["logits"].shape == (1, 10)
    exec(weights, namespace)
    assert namespace["labels"].shape == (4,)


def test_the_papers_page_names_tests_that_exist():
    page = (ROOT / "docs" / "paper.md").read_text()
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_[a-z0-9_]+)`", page)
    assert len(names) > 10
    missing = [name for name in names if f"def {name}(" not in written]
    assert missing == []
    files = re.findall(r"`((?:data|models|training|report)/[a-z0-9_]+\.py)`", page)
    assert all((ROOT / "src/deepres" / f).exists() or (ROOT / "tests" / f).exists() for f in files)
