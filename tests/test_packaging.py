"""What `python -m build` puts into the sdist and the wheel."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAND_INS = ("resnet20-fast.safetensors", "resnet20-fast.json", "resnet110-paper.safetensors", "resnet110-paper.json")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a copy of this checkout, with stand-ins for two entries of the zoo, and a data set lying about."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    for name in STAND_INS:
        (folder / "src/deepres/zoo/weights" / name).write_bytes(b"stand-in")
    (folder / "data/cifar-10-batches-bin").mkdir(parents=True)
    (folder / "data/cifar-10-batches-bin/test_batch.bin").write_bytes(b"data")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder]
    subprocess.run(command, capture_output=True, check=True)
    return folder / "dist"


def test_the_wheel_holds_the_package_and_the_weights_of_20_layers(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src/deepres").rglob("*.py")}
    assert modules <= names
    assert {"deepres/py.typed", "deepres/backends/fused/kernels/kernels.cpp", "deepres/zoo/weights/README.md"} <= names
    assert {"deepres/zoo/weights/resnet20-fast.safetensors", "deepres/zoo/weights/resnet20-fast.json"} <= names
    assert "deepres/zoo/weights/resnet110-paper.json" in names
    assert "deepres/zoo/weights/resnet110-paper.safetensors" not in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"deepres"}


def test_the_sdist_builds_that_wheel_and_holds_no_data_set(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/deepres/zoo/weights/resnet20-fast.safetensors"} <= names
    assert not [name for name in names if name.startswith(("data", "runs")) or name.endswith((".bin", ".png"))]
    assert "src/deepres/zoo/weights/resnet110-paper.safetensors" not in names


def test_git_keeps_the_committed_runs_and_ignores_those_being_made():
    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0

    assert ignored("runs/resnet20-fast-seed0/result.json")
    assert not ignored("results/runs/resnet20-fast-seed0/result.json")
