import csv
import io
from dataclasses import replace

import pytest
from run_files import write_run

from deepres.recipes.named import fast
from deepres.report.tables import (
    EIGHT,
    HEADINGS,
    find_missing,
    row_cells,
    table_csv,
    table_latex,
    table_markdown,
    table_rows,
)
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs, labels_in_order
from deepres.runs.statistics import summarize


@pytest.fixture
def rows(tmp_path):
    for seed, error in enumerate((9.0, 9.5, 10.0)):
        write_run(tmp_path / f"a{seed}", "resnet20", seed=seed, test_errors=(8.0, error))
    write_run(tmp_path / "b", "resnet20", "fast", precision="bfloat16")
    write_run(tmp_path / "c", "resnet110")
    write_run(tmp_path / "d", "resnet20", replace(fast(), learning_rate=0.3), precision="bfloat16")
    groups = group_runs(load_runs([tmp_path])[0])
    assert labels_in_order(groups) == ["paper", "fast", "fast (learning_rate 0.3)"]
    return table_rows([summarize(group) for group in groups])


def test_a_row_by_hand(rows):
    cells = {(row.label, row.model): row_cells(row)[2:] for row in rows}
    assert cells["paper", "resnet20"] == ["9.50 ± 0.50", "3", "8.00", "8.75", "8.04", "8.00", "float32"]
    assert cells["fast", "resnet20"] == ["9.00", "1", "", "8.75", "8.04", "8.00", "bfloat16"]
    assert cells["fast (learning_rate 0.3)", "resnet20"][1] == "1"
    assert cells["paper", "resnet110"] == ["9.00", "1", "8.00", "6.43 (6.61)", "", "", "float32"]
    assert cells["paper", "plain44"] == ["missing", "0", "", "12.00", "11.56", "11.35", ""]
    assert all(len(row_cells(row)) == len(HEADINGS) for row in rows)


def test_what_is_missing_and_the_command_that_completes_it(rows):
    paper, fast = find_missing(rows)
    assert set(paper.models) == set(fast.models) == set(EIGHT) - {"resnet20"}
    names = "plain20,plain32,plain44,plain56,resnet32,resnet44,resnet56"
    assert paper.command == f"deepres grid --models {names} --recipes paper"
    assert fast.command == f"deepres grid --models {names} --recipes fast"
    markdown = table_markdown(rows)
    assert f"$ {paper.command}\n" in markdown
    assert "| paper | resnet20 | 9.50 ± 0.50 | 3 |" in markdown


def test_nothing_missing_is_not_mentioned(tmp_path):
    for recipe in ("paper", "fast"):
        for model in (*EIGHT, "resnet110"):
            write_run(tmp_path / f"{model}-{recipe}", model, recipe)
    rows = table_rows([summarize(group) for group in group_runs(load_runs([tmp_path])[0])])
    assert find_missing(rows) == []
    assert "issing" not in table_markdown(rows) + table_latex(rows)


def test_csv_has_full_precision_and_no_missing_nets(rows):
    read = list(csv.DictReader(io.StringIO(table_csv(rows))))
    assert [(row["recipe"], row["model"]) for row in read] == [
        ("paper", "resnet20"),
        ("paper", "resnet110"),
        ("fast", "resnet20"),
        ("fast (learning_rate 0.3)", "resnet20"),
    ]
    assert (float(read[0]["mean"]), float(read[0]["std"]), read[1]["std"]) == (9.5, 0.5, "")


def test_latex_is_escaped(rows):
    latex = table_latex(rows)
    assert r"fast (learning\_rate 0.3) & resnet20" in latex
    assert r"9.50 $\pm$ 0.50" in latex
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")]
    assert {line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")} == {len(HEADINGS) - 1}
