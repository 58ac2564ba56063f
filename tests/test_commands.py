"""The console blocks of the pages, executed as they are written, on a few images and with recipes of a few steps.

A block behind `<!-- not executed: REASON -->` is left out, and so is `deepres grid`, whose processes would train on
all images: tests/grid executes grids.
"""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_files import write_run
from tiny_cifar10 import TinyCifar10
from tiny_run import first_images

from deepres.recipes import named
from deepres.recipes.read import read_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]
BLOCK = re.compile(r"(?:<!-- not executed: ([^>]+) -->\n)? *```console\n(.*?)\n *```", re.DOTALL)
STEPS, BATCH = 2, 16  # of each training


def blocks(*, executed):
    """Yield page, place among the page's blocks, and commands of each block."""
    for page in sorted(PAGES):
        for i, (reason, text) in enumerate(BLOCK.findall(page.read_text())):
            if bool(reason) != executed:
                yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{i}")


def commands(block):
    lines = [line.strip() for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def words(command):
    """The arguments as a shell gives them: braces and patterns expanded, comments gone."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def data(cifar10_dir):
    return TinyCifar10.of(first_images(cifar10_dir, 600).train, 100)


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch, run, data):
    """A folder as the pages take it for granted: a checkout's results and weights, runs, pictures, a net, a recipe."""
    monkeypatch.chdir(tmp_path)
    run.release = data.release
    monkeypatch.setenv("DEEPRES_DATA", str(data.write(tmp_path_factory.mktemp("data"))))
    recipes = {
        name: lambda make=make: replace(make(), epochs=None, steps=STEPS, batch_size=BATCH)
        for name, make in named.RECIPES.items()
    }
    monkeypatch.setattr(named, "RECIPES", recipes)
    (tmp_path / "src").symlink_to(ROOT / "src")
    for run_dir in (ROOT / "results" / "runs").glob("*20-fast-seed*"):
        shutil.copytree(run_dir, Path("results", "runs", run_dir.name))
    shutil.copy(ROOT / "results" / "responses.json", "results")
    for model, error in (("resnet20", 8.0), ("plain20", 9.0)):
        for seed in range(2):
            write_run(tmp_path / "runs" / f"{model}-{seed}", model, seed=seed, test_errors=(30.0, error + seed / 10))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    for name in ("photo.jpg", "holiday/beach.png", "FOLDER/cat/a.png", "FOLDER/ship/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(name)
    Path("mine.toml").write_text('base = "fast"\nname = "mine"\n')
    for i in range(8):
        for name in ("cat", "ship"):
            Path("pictures", name).mkdir(parents=True, exist_ok=True)
            picture.rotate(10 * i).save(Path("pictures", name, f"{i}.png"))
    nets, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "change.md").read_text(), re.DOTALL)
    Path("nets.py").write_text(f"{nets}\n\nclass MyNet(GeluNet):\n    pass\n")
    return tmp_path


def write_compared_runs():
    """The runs that docs/compare.md speaks of."""
    fast = named.get_recipe("fast")
    lower = read_recipe("fast", ["muon.learning_rate=0.03"])
    recipes = [fast, lower, replace(fast, name="mine", pad=3), replace(fast, name="other", pad=4)]
    for recipe in recipes:
        for seed in range(3):
            path = Path("runs", f"resnet20-{recipe.name}-seed{seed}")
            write_run(path, recipe=recipe, seed=seed, test_errors=(30.0, 8 + 0.1 * seed + 0.2 * (recipe != fast)))


@pytest.mark.parametrize("block", list(blocks(executed=True)))
def test_the_commands_of_a_page_run(block, run, folder):
    lines = commands(block)
    assert lines
    if "'runs/resnet20-fast-seed*'" in block:
        write_compared_runs()
    for line in lines:
        command, _, file = line.partition(" > ")
        program, *arguments = words(command)
        assert program == "deepres", f"{line}: mark its block, <!-- not executed: REASON -->"
        if arguments[0] == "grid":
            continue
        code, stdout, stderr = run(*arguments)
        assert code == 0, f"{line}: {stderr}"
        if file:
            Path(file.split()[0]).write_text(stdout)


def test_what_is_not_executed_says_why():
    assert len(list(blocks(executed=False))) >= 5
    for page in PAGES:
        assert page.read_text().count("```console") == len(BLOCK.findall(page.read_text())), page
        for reason, block in BLOCK.findall(page.read_text()):
            assert commands(block)
            assert not reason or len(reason.split()) > 1
