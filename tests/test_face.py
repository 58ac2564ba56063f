import doctest
import inspect
from pathlib import Path

import pytest

import deepres


def test_every_name_of_the_face_is_there_and_explained():
    assert set(deepres.HOMES) == set(deepres.__all__) <= set(dir(deepres))
    for name in deepres.__all__:
        thing = getattr(deepres, name)
        assert thing.__name__ == name
        docstring = inspect.getdoc(thing)
        assert docstring, name
        assert docstring.split("\n")[0].endswith((".", ":")), name


@pytest.mark.parametrize("name", deepres.__all__)
def test_every_name_of_the_face_has_an_example_that_runs(name, cifar10_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # examples write where they run
    (tmp_path / "results").symlink_to(Path(__file__).parent.parent / "results")
    monkeypatch.setenv("DEEPRES_DATA", str(cifar10_dir))
    (example,) = (found for found in doctest.DocTestFinder(recurse=False).find(getattr(deepres, name), name, globs={}))
    assert example.examples, f"the docstring of deepres.{name} has no example"
    assert not any(doctest.SKIP in part.options for part in example.examples)
    outcome = doctest.DocTestRunner().run(example)
    assert outcome.failed == 0, capsys.readouterr().out


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'deepres' has no attribute 'no_such_name'"):
        deepres.no_such_name  # noqa: B018
