import pytest

from deepres.errors import UserError
from deepres.objects import is_object_name, load_object


def test_files_and_modules(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text("from dataclasses import dataclass\n@dataclass\nclass Small:\n    width: int = 3\n")
    assert load_object(f"{path}:Small")().width == 3
    assert load_object(f"{path}:Small") is load_object(f"{path}:Small")
    assert load_object("math:sqrt")(9) == 3
    assert is_object_name("nets.py:Small")
    assert not is_object_name("resnet20")


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "Small", r"there is no file .*nets\.py"),
        ("class Small: pass", "Smal", r"nets\.py has no Smal: did you mean Small\?"),
        ("class Small: pass", "other", r"nets\.py has no other$"),
        ("class Small", "Small", r"nets\.py cannot be imported \(SyntaxError: "),
        ("import no_such_module", "Small", r"\(ModuleNotFoundError: No module named 'no_such_module'\)"),
        ("1 / 0", "Small", r"\(ZeroDivisionError: division by zero\)"),
        ("class Small: pass", "", "names nothing: write FILE.py:NAME or module:NAME"),
        ("class Small: pass", "a b", "names nothing"),
    ],
)
def test_what_cannot_be_loaded(tmp_path, content, name, message):
    path = tmp_path / "nets.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_object(f"{path}:{name}")


@pytest.mark.parametrize("name", [":Net", "no.such.module:Net", "os.path:no_such_name"])
def test_names_of_nothing(name):
    with pytest.raises(UserError):
        load_object(name)
