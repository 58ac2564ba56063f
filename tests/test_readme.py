import csv
import inspect
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from tiny_run import first_images

import deepres
from deepres.cli.main import cli
from deepres.recipes.named import get_recipe

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import readme as tool  # noqa: E402


def test_generated_tables_are_up_to_date(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["readme.py", "--check"])
    tool.main()
    for name in ("docs", "results", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text().replace("| fast |", "| slow |"))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"README.md not up to date: run `make readme`"):
        tool.main()


def test_the_page_says_that_no_net_was_trained_on_a_gpu_alone_as_long_as_there_is_none():
    runs = [json.loads(path.read_text()) for path in ROOT.glob("results/runs/*/environment.json")]
    devices = [{start["device"] for start in (run, *run["earlier_starts"])} for run in runs]
    claim = "No net has been trained there from beginning to end" in " ".join(
        (ROOT / "docs/speed.md").read_text().split()
    )
    assert claim == all("cpu" in each for each in devices)


def test_time_of_the_table_says_what_was_measured(tmp_path, monkeypatch):
    def written():
        return " ".join(tool.table_time().split())

    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert "hours" not in written()
    assert "has not been measured on a GPU" in written()
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    report = {"device": "A CPU", "cores": 4, "precision": "float32", "jobs": 2, "threads": 1}
    epochs = get_recipe("fast").total_epochs(50_000)
    recipes = {"fast": {"seconds": 9000, "epochs": epochs, "models": {"plain20": {}, "resnet20": {}}}}
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
    recipes["fast"]["epochs"] += 1  # of another version of the recipe
    (folder / "table_time_gpu.json").unlink()
    (folder / "table_time.json").write_text(json.dumps({**report, "recipes": recipes}))
    assert "hours" not in written()


def test_ablation_compares_each_variant_with_the_recipe():
    errors = {"the recipe": [10.0, 12.0], "without": [13.0, 15.0], "once": [10.5]}
    table = tool.ablation_table({"model": "resnet20", "fraction": 0.025, "val_errors": errors})
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]] == [
        ["the recipe", "11.00", "1.41", "2", ""],
        ["without", "14.00", "1.41", "2", "+3.00 ± 1.41"],  # both variances are 2, each halved by n
        ["once", "10.50", "", "1", "-0.50"],
    ]
    assert "resnet20, 1/40" in table


def test_curve_of_error_and_compute_in_the_order_of_compute(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    first = [(0.1, "fast", 4471, (8.0, 8.5)), (0.025, "fast-0.025", 1118, (13.0,))]
    now = [(0.0249, "fast-0.025", 1361, (12.0,)), (0.05, "fast-0.05", 2723, (9.5,))]
    for lengths, file in ((first, "error_compute_first.json"), (now, "error_compute.json")):
        rows = [
            {
                "recipe": {"name": name, "steps": steps},
                "compute_fraction": part,
                "runs": [{"test_error_last": error} for error in errors],
            }
            for part, name, steps, errors in lengths
        ]
        (folder / file).write_text(json.dumps({"model": "resnet20", "rows": rows}))
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tool.compute_curve().splitlines()[2:]]
    assert cells == [
        ["1/40", "1,118", "13.00", "1", "1,361", "12.00", "1"],
        ["1/20", "", "", "", "2,723", "9.50", "1"],
        ["1/10", "4,471", "8.25 ± 0.35", "2", "", "", ""],
    ]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_table_of_the_readme_holds_what_was_trained_and_names_what_was_not():
    table, missing = tool.reached().split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    with (ROOT / "results" / "runs.csv").open() as file:
        counts = Counter((run["model"], run["precision"], run["recipe"]) for run in csv.DictReader(file))
    recipes = [row[3].partition(" (")[0] for row in rows]  # without the precision of a net that was trained in two
    assert Counter((row[0], int(row[2]), recipe) for row, recipe in zip(rows, recipes, strict=True)) == Counter(
        (model, number, recipe) for (model, _, recipe), number in counts.items()
    )
    (fast,) = (row for row in rows if row[0] == "resnet20" and row[3] == "fast")
    assert re.fullmatch(r"\d\.\d\d ± \d\.\d\d", fast[1])
    assert fast[4:] == ["8.75", "8.04", "1/10"]
    assert all(int(row[2]) > 0 for row in rows)
    assert missing.startswith("Not trained yet: ")
    assert "resnet110" in missing


def test_a_generated_part_is_written_in_whatever_page_it_stands(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for path in (tmp_path / "README.md", tmp_path / "docs" / "any.md"):
        path.write_text("before\n<!-- generated: published -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["readme.py"])
    tool.main()
    for path in (tmp_path / "README.md", tmp_path / "docs" / "any.md"):
        text = path.read_text()
        assert text.startswith("before\n<!-- generated: published -->\n| net | paper |")
        assert text.endswith("|\n<!-- end -->\nafter\n")
        assert "old" not in text


def test_make_targets_that_the_pages_name_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = "".join(path.read_text() for path in PAGES)
    targets = set(re.findall(r"`make ([a-z-]+)`|^\$ make ([a-z-]+)", text, re.MULTILINE))
    names = {name for pair in targets for name in pair if name}
    assert {"reproduce", "reproduce-table", "test", "help"} <= names
    assert all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in names)


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_files_and_headings_that_a_page_links_to_exist(page):
    for path, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        target = page.parent / path if path else page
        assert target.exists()
        if heading:
            titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{path}#{heading}"


def test_commands_and_options_that_the_pages_show_exist():
    lines = re.findall(r"^\$ (deepres [^#\n]*)", "".join(path.read_text() for path in PAGES), re.MULTILINE)
    shown = {tuple(re.findall(r"^deepres ([a-z]+)|(--[a-z-]+)", line)) for line in lines}
    assert len(shown) > 10
    for (name, _), *options in shown:
        command = cli.commands[name]
        commands = [command, *(command.commands.values() if hasattr(command, "commands") else ())]
        known = {option for one in commands for parameter in one.params for option in parameter.opts}
        assert {option for _, option in options} <= known, name


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/weights.md"])
def test_the_python_that_uses_weights_runs(page, stand_in_zoo):
    namespace: dict[str, object] = {}
    exec(python_blocks(page)[0], namespace)
    assert namespace["labels"].shape == (4,)


def test_the_python_that_builds_a_net_runs():
    namespace: dict[str, object] = {}
    exec(python_blocks("docs/runs.md")[0], namespace)
    assert namespace["logits"].shape == (1, 10)


def test_the_python_that_changes_one_thing_runs(tmp_path, monkeypatch, cifar10_dir):
    """Its first step, that is, and on the first images of what it trains on."""
    monkeypatch.chdir(tmp_path)
    assert inspect.signature(deepres.train).parameters["data"].default == "cifar10"
    block = python_blocks("README.md")[1]
    one_step = block.replace("recipe, seed=0)", "recipe, first, seed=0, max_steps=1)")
    assert one_step != block
    exec(one_step, {"first": first_images(cifar10_dir, 1000, 200)})
    recipe = json.loads((tmp_path / "runs" / "resnet20-gentle-seed0" / "recipe.json").read_text())["recipe"]
    assert (recipe["name"], recipe["muon"]["learning_rate"]) == ("gentle", 0.03)
    assert (tmp_path / "runs" / "resnet20-gentle-seed0" / "result.json").exists()


def test_the_papers_page_names_tests_that_exist():
    page = (ROOT / "docs" / "paper.md").read_text()
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    names = re.findall(r"`(test_[a-z0-9_]+)`", page)
    assert len(names) > 10
    missing = [name for name in names if f"def {name}(" not in written]
    assert missing == []
    files = re.findall(r"`((?:data|models|training|report)/[a-z0-9_]+\.py)`", page)
    assert all((ROOT / "src/deepres" / f).exists() or (ROOT / "tests" / f).exists() for f in files)


def test_the_container_runs_the_readmes_commands():
    """The Dockerfile as a text; building it is a step of docs/release.md."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    instructions = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and line[0] != "#"]
    assert [name for name, _ in instructions if name not in ("RUN", "ENV")] == (
        ["FROM", "USER", "WORKDIR", "COPY", "VOLUME", "CMD"]
    )
    assert json.loads(instructions[-1][1]) == ["make", "reproduce"]
    readme, install = (ROOT / "README.md").read_text(), (ROOT / "docs" / "install.md").read_text()
    for command in ("make reproduce", "make reproduce-table"):
        assert re.search(rf"^\$ {command} ", readme, re.MULTILINE)
        assert command in install
    (target,) = re.findall(r"^RUN make \.venv/(\w+)$", text, re.MULTILINE)
    assert f"{target.upper()} := $(VENV)/{target}" in (ROOT / "Makefile").read_text()
    for ignored in (".venv", "runs", "docs/demo/build"):
        assert ignored in (ROOT / ".dockerignore").read_text().splitlines()
