import inspect

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


def test_other_names_are_not_there():
    with pytest.raises(AttributeError, match="module 'deepres' has no attribute 'no_such_name'"):
        deepres.no_such_name  # noqa: B018
