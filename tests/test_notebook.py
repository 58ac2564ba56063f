"""main.ipynb, executed from a clean kernel on a few real images; and as it is committed."""

import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from run_files import write_run

from deepres.report.tables import claims_markdown, table_markdown, table_rows
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs
from deepres.runs.statistics import check_claims, summarize

ROOT = Path(__file__).parent.parent
FEWER = """
from deepres.data.cifar10 import Cifar10, Split
data = Cifar10(*(Split(split.images[:512], split.labels[:512]) for split in (data.train, data.test)))
"""


def read_notebook():
    return nbformat.read(ROOT / "main.ipynb", as_version=4)


def execute(cells, folder):
    """Run cells in a folder, from a clean kernel; they then hold their outputs."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        NotebookClient(notebook, timeout=300, record_timing=False).execute(cwd=str(folder))
    return notebook.cells


def outputs(cells):
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def said(cells):
    """What was printed, or displayed as Markdown."""
    texts = [text for o in outputs(cells) for text in (o.get("text", ""), o.get("data", {}).get("text/markdown", ""))]
    return "".join("".join(text) for text in texts)  # in a file a text is a list of lines


def unwanted(cells):
    """Errors, warnings and other things on standard error, and lines with an absolute path."""
    bad = [o for o in outputs(cells) if o["output_type"] == "error" or o.get("name") == "stderr"]
    return bad + re.findall(r".*(?:^|[\s'\"(])/\w+/.*", said(cells))


def pictures(cells):
    return [output for output in outputs(cells) if "image/png" in output.get("data", {})]


@pytest.fixture(scope="module")
def executed(tmp_path_factory, cifar10_dir):
    folder = tmp_path_factory.mktemp("notebook")
    for seed in range(2):
        write_run(folder / "results" / f"a{seed}", "resnet20", seed=seed, test_errors=(9.0, 8.5 + 0.1 * seed))
        write_run(folder / "results" / f"b{seed}", "plain20", seed=seed, test_errors=(9.9, 9.5 + 0.1 * seed))
    cells = read_notebook().cells
    (load,) = [cell for cell in cells if "load_cifar10()" in cell.source]
    load.source += FEWER
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPRES_DATA", str(cifar10_dir))
        return execute(cells, folder), folder


def test_it_goes_from_the_images_to_the_claims(executed):
    cells, folder = executed
    text = said(cells)
    assert "train (50000, 3, 32, 32) uint8 test (10000, 3, 32, 32)" in text
    assert "| resnet20 | 20 | 269,722 | 8.75 |" in text
    for name in ("plain20", "resnet20"):
        result = json.loads((folder / f"runs/notebook/{name}-fast-short-seed0/result.json").read_text())
        assert f"epoch 2: train error {result['train_error']:.2f}%" in text
        assert f"  4 steps, {result['images_per_second']:,.0f} images/s, in runs/notebook/{name}-" in text
    assert "| paper | resnet20 | 8.55 ± 0.07 | 2 |" in text
    assert "$ deepres grid --models plain32," in text
    assert "| ResNet-20 is better than plain-20 | paper | 0.0" in text
    # Classes, mean, augmentation, architecture, confusion, confident errors, figure 6, error against depth.
    assert len(pictures(cells)) == 8
    assert sum(len(picture["data"]["image/png"]) for picture in pictures(cells)) < 1_500_000


def test_it_says_nothing_of_the_machine(executed):
    cells, folder = executed
    assert unwanted(cells) == []
    assert str(folder) not in said(cells)


def test_without_results_it_says_so(tmp_path):
    cells = read_notebook().cells
    begin = next(i for i, cell in enumerate(cells) if "## Figure 6" in cell.source)
    text = said(execute([*cells[1:3], *cells[begin:]], tmp_path))  # 1 and 2: installation and imports
    assert text == "results/ holds no finished runs: figure 6, the table and the claims stand here once it does\n"


def test_it_is_committed_with_its_outputs():
    cells = json.loads((ROOT / "main.ipynb").read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(pictures(cells)) >= 8
    assert "| ResNet-20 is better than plain-20 |" in said(cells)


def test_what_is_committed_says_what_the_committed_results_say():
    text = said(json.loads((ROOT / "main.ipynb").read_text())["cells"])
    groups = group_runs(load_runs([ROOT / "results"])[0])
    assert table_markdown(table_rows([summarize(group) for group in groups])) in text, "run `make notebook`"
    assert claims_markdown(check_claims(groups)) in text, "run `make notebook`"


def test_what_is_committed_is_small_and_says_nothing_of_the_machine():
    content = (ROOT / "main.ipynb").read_text()
    assert len(content) < 2_000_000
    assert unwanted(json.loads(content)["cells"]) == []


def test_the_public_address_is_that_of_pyproject():
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    badge = (
        f"(https://colab.research.google.com/github/{url.removeprefix('https://github.com/')}/blob/main/main.ipynb)"
    )
    cells = read_notebook().cells
    assert badge in cells[0].source
    assert f'REPOSITORY = "{url}"' in cells[1].source
