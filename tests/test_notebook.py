"""main.ipynb, executed from a clean kernel on a few images."""

import json
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from run_files import write_run

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import notebook as tool  # noqa: E402


def texts(cell):
    """What a cell printed or displayed as text."""
    written = [output.get("text", "") for output in cell.get("outputs", [])]
    return "".join(written + [output["data"].get("text/markdown", "") for output in pictures_and_tables(cell)])


def pictures_and_tables(cell):
    return [output for output in cell.get("outputs", []) if "data" in output]


@pytest.fixture(scope="module")
def executed(tmp_path_factory, cifar10_dir):
    folder = tmp_path_factory.mktemp("notebook")
    for seed in range(2):
        write_run(folder / "results" / f"a{seed}", "resnet20", seed=seed, test_errors=(9.0, 8.5 + 0.1 * seed))
        write_run(folder / "results" / f"b{seed}", "plain20", seed=seed, test_errors=(9.9, 9.5 + 0.1 * seed))
    notebook = nbformat.read(ROOT / "main.ipynb", as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPRES_NOTEBOOK_IMAGES", "512")
        patch.setenv("DEEPRES_DATA", str(cifar10_dir))
        patch.setenv("OMP_NUM_THREADS", "1")
        tool.execute(notebook, folder, timeout=300)
    return notebook, folder


def test_it_goes_from_the_images_to_the_claims(executed):
    notebook, folder = executed
    said = "".join(map(texts, notebook.cells))
    assert "train (512, 3, 32, 32) uint8 test (512, 3, 32, 32)" in said
    assert "| resnet20 | 20 | 269,722 | 8.75 |" in said
    assert "  2 steps, " in said
    for name in ("plain20", "resnet20"):
        assert (folder / "runs" / "notebook" / f"{name}-short-seed0" / "result.json").exists()
    assert "4 finished runs in results/, 0 left out" in said
    assert "| paper | resnet20 | 8.55 ± 0.07 | 2 |" in said
    assert "recipe paper: 7 nets missing; this completes it: deepres grid --models plain32," in said
    assert "| ResNet-20 is better than plain-20 | paper | 0.0" in said


def test_it_shows_every_figure(executed):
    notebook, _ = executed
    pictures = [
        output for cell in notebook.cells for output in pictures_and_tables(cell) if "image/png" in output["data"]
    ]
    # Classes, mean, augmentation, architecture, confusion, surest errors, figure 6, error against depth.
    assert len(pictures) == 8


def test_it_is_committed_with_its_outputs_and_without_errors():
    content = json.loads((ROOT / "main.ipynb").read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 6


def test_the_public_address_is_that_of_pyproject():
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    notebook = nbformat.read(ROOT / "main.ipynb", as_version=4)
    before = nbformat.writes(notebook)
    tool.write_addresses(notebook)
    assert nbformat.writes(notebook) == before, "run tools/notebook.py --addresses"
    assert f'REPOSITORY = "{url}"' in notebook.cells[2].source
    assert tool.badge() in notebook.cells[0].source
