from dataclasses import replace

import pytest
from run_files import write_run

from deepres.recipes.named import fast
from deepres.report.report import file_names, write_report


def test_a_name_for_each_label():
    labels = ["fast", "x 1", "x -1", "Mine", "mine", "x 1 2", "fast"]
    names = file_names([(label,) for label in labels])
    assert list(names.values()) == ["fast", "x-1", "x-1-2", "mine", "mine-2", "x-1-2-2"]
    assert file_names([("resnet20", "fast (learning_rate 0.3)")]) == {
        ("resnet20", "fast (learning_rate 0.3)"): "resnet20-fast-learning-rate-0.3"
    }


@pytest.mark.parametrize("names", [("Mine", "mine"), ("x 1", "x -1")])
def test_recipes_whose_names_differ_in_case_or_signs_have_figures_of_their_own(tmp_path, names):
    for i, name in enumerate(names):
        write_run(tmp_path / "runs" / str(i), recipe=replace(fast(), name=name), test_errors=(40.0, 9.0 + i))
    written, _ = write_report([tmp_path / "runs"], tmp_path / "out", formats=["svg"])
    assert len(set(written)) == len(written)
    figures = [path for path in written if path.name.startswith("figure6")]
    assert len(figures) == 2
    assert len({path.name.lower() for path in figures}) == 2
    first, second = (path.read_bytes() for path in figures)
    assert first != second
