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

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
SHORTER = {
    "MINUTES = 4 ": "MINUTES = 0 ",  # so that the notebook takes the fewest steps that it ever does
    "for DEPTH in (56, 44, 32):": "for DEPTH in (14,):",
    "for depth in (20, DEPTH)": "for depth in (8, DEPTH)",
    "data = deepres.load_cifar10()": """
data = deepres.load_cifar10()
data = type(data)(data.train[:512], data.test[:64])
""",
}
STEPS = 10


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
    return bad + absolute_paths(said(cells))


def absolute_paths(text):
    return re.findall(r".*(?:^|[\s'\"(])/\w+/.*", text)


def pictures(cells):
    return [output for output in outputs(cells) if "image/png" in output.get("data", {})]


def shorten(cells):
    """Make a lesson of minutes one of seconds, by its settings and its data alone."""
    for old, new in SHORTER.items():
        (cell,) = [cell for cell in cells if old in cell.source]
        assert cell.source.count(old) == 1
        cell.source = cell.source.replace(old, new)
    return cells


def printed_after(text, words):
    """The rest of the one line that begins with these words."""
    (line,) = re.findall(rf"^{re.escape(words)}(.*)$", text, re.MULTILINE)
    return line


@pytest.fixture(scope="module")
def executed(tmp_path_factory, cifar10_dir):
    folder = tmp_path_factory.mktemp("notebook")
    for seed in range(2):
        write_run(folder / "results" / f"a{seed}", "resnet20", seed=seed, test_errors=(9.0, 8.5 + 0.1 * seed))
        write_run(folder / "results" / f"b{seed}", "plain20", seed=seed, test_errors=(9.9, 9.5 + 0.1 * seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPRES_DATA", str(cifar10_dir))
        cells = shorten(read_notebook().cells)
        *cells, _, without_results = execute([*cells, *show_results_elsewhere(cells)], folder)
    return cells, folder, without_results


def show_results_elsewhere(cells):
    """The cell that shows the results once more, in a folder that has none."""
    (show,) = [cell for cell in cells if "show_results(" in cell.source]
    return nbformat.v4.new_code_cell("%mkdir empty\n%cd -q empty"), nbformat.v4.new_code_cell(show.source)


def test_it_goes_from_the_images_to_the_claims(executed):
    cells, _, _ = executed
    text = said(cells)
    assert "train (512, 3, 32, 32) uint8 test (64, 3, 32, 32)" in text
    assert "def forward(self, x: Tensor)" in text  # the block, as it is in the package
    assert "plain20: output equals input: False; largest output 0.00" in text
    assert "resnet20: output equals input: True" in text
    assert "| paper | resnet20 | 8.55 ± 0.07 | 2 |" in text
    assert "$ deepres grid --models plain32," in text
    assert "| ResNet-20 is better than plain-20 | paper | 0.0" in text
    # Classes, augmentation, architecture, gradients, loss, four nets, a change, figure 6, error by depth, Grad-CAM.
    assert len(pictures(cells)) == 10
    assert sum(len(picture["data"]["image/png"]) for picture in pictures(cells)) < 700_000


def test_gradients_grow_more_in_the_plain_net(executed):
    text = said(executed[0])
    growth = {name: float(printed_after(text, f"{name}: first ").split()[-1]) for name in ("plain14", "resnet14")}
    assert growth["plain14"] > 2 * growth["resnet14"]


def test_the_loop_in_the_open_and_the_package_have_the_same_losses(executed):
    text = said(executed[0])
    opened, package = (
        [float(loss) for loss in printed_after(text, whose).split()] for whose in ("in the open ", "the package ")
    )
    assert opened == pytest.approx(package, abs=1e-3)
    assert len(opened) == 6
    assert opened[-1] < opened[0] - 0.1


def test_four_nets_and_a_changed_one_are_trained(executed):
    cells, folder, _ = executed
    text = said(cells)
    for name in ("plain8", "resnet8", "plain14", "resnet14"):
        result = json.loads((folder / "runs" / "lesson" / name / "result.json").read_text())
        assert (result["model"], result["steps"]) == (name, STEPS)
        line = printed_after(text, f"{name}: training error ")
        assert f"test error {result['test_error_last']:.1f}%, {result['images_per_second']:,.0f} images/s" in line
    changed = json.loads((folder / "runs" / "lesson" / "half" / "result.json").read_text())
    assert (changed["model"], changed["steps"]) == ("half_shortcuts", STEPS)
    assert changed["num_parameters"] == 75_290  # as resnet8's
    assert printed_after(text, f"half_shortcuts, in the last fifth of {STEPS} steps: training error ").endswith("%")


def test_it_has_three_imports_beside_those_of_the_first_cell():
    code = [cell.source for cell in read_notebook().cells if cell.cell_type == "code"]
    imports = re.findall(r"^ *(?:import|from) .*", "\n".join(code[1:]), re.MULTILINE)
    assert imports == ["import torch", "import deepres", "from deepres import notebook"]


def test_every_part_ends_with_questions_and_folded_answers():
    cells = [cell.source for cell in read_notebook().cells if cell.cell_type == "markdown"]
    parts = "\n".join(cells).split("\n## ")[2:-1]  # without how long it takes, and where to go from here
    assert len(parts) == 8
    for part in parts:
        assert part.count("**Questions.**") == part.count("<details><summary>Answers</summary>\n\n") == 1, part[:40]


def test_it_says_nothing_of_the_machine(executed):
    cells, folder, _ = executed
    assert unwanted(cells) == []
    assert str(folder) not in said(cells)


def test_without_results_it_says_so(executed):
    _, _, without_results = executed
    text = said([without_results])
    assert text == "results/ holds no finished runs: figure 6, the table and the claims stand here once it does\n"


def test_it_is_committed_with_its_outputs():
    cells = json.loads((ROOT / "main.ipynb").read_text())["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(pictures(cells)) >= 10
    assert "| ResNet-20 is better than plain-20 |" in said(cells)


def test_what_is_committed_says_what_the_committed_results_say():
    text = said(json.loads((ROOT / "main.ipynb").read_text())["cells"])
    groups = group_runs(load_runs([ROOT / "results"])[0])
    assert table_markdown(table_rows([summarize(group) for group in groups])) in text, "run `make notebook`"
    assert claims_markdown(check_claims(groups)) in text, "run `make notebook`"


def test_what_is_committed_is_small_and_says_nothing_of_the_machine():
    content = (ROOT / "main.ipynb").read_text()
    assert len(content) < 700_000
    cells = json.loads(content)["cells"]
    assert unwanted(cells) == []
    progress = "\n".join("".join(o.get("data", {}).get("text/html", "")) for o in outputs(cells))
    assert absolute_paths(progress) == []


def test_the_public_address_is_that_of_pyproject():
    url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    badge = (
        f"(https://colab.research.google.com/github/{url.removeprefix('https://github.com/')}/blob/main/main.ipynb)"
    )
    cells = read_notebook().cells
    assert badge in cells[0].source
    assert f'REPOSITORY = "{url}"' in cells[1].source
