"""Nothing beside the package replaces anything inside it, but for a few places with their reasons.

What a test, a program or the notebook needs otherwise, functions take as a parameter, or it is a file, a variable of
the environment or something outside the package, such as torch's answer about the hardware.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parent.parent
PROGRAMS = ("main.ipynb", *(f"{folder}/**/*.py" for folder in ("tests", "benchmarks", "examples", "tools")))
REPLACING = ("setattr", "delattr", "setitem", "delitem", "patch", "object")  # of monkeypatch, and of unittest.mock

LEFT = {
    "tests/test_commands.py: named RECIPES": "the pages' commands stay as users type them, which train for hours",
    "tests/backends/fused/test_sources.py: owner name": "an edited source file of the package is what it tests",
    "tests/backends/fused/test_sources.py: Block forward": "a method that a user replaced is what it tests",
    "tests/training/test_train.py: Block forward": "a method that a user replaced is what it tests",
    "tests/backends/fused_cuda/test_availability.py: availability why_not_standard": "no net lies on a GPU here",
    "tests/backends/fused_cuda/net_in_interpreter.py: Launch __call__": "Triton's interpreter cannot record a graph",
}


def source(path: Path) -> str:
    """The Python code of a file; of a notebook's cells, the commands of IPython translated."""
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join(
        TransformerManager().transform_cell("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"
    )


def replacements(path: Path) -> Iterator[str]:
    """Yield what a file replaces, unless that is known to be outside the package: the object and the attribute."""
    tree = ast.parse(source(path))
    inside = {}  # names that are imported -> whether from the package
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                module = alias.name if isinstance(node, ast.Import) else node.module or ""
                name = alias.asname or (alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name)
                inside[name] = module.partition(".")[0] == "deepres"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Attribute) and inside.get(root(target)):
                    yield f"{ast.unparse(target.value)} {target.attr}"
        elif isinstance(node, ast.Call) and node.args and called(node) in REPLACING:
            target, *others = node.args
            if not is_inside(target, inside, otherwise=isinstance(node.func, ast.Attribute)):
                continue  # Python's own setattr has local objects for its own, monkeypatch's hardly
            named = [target] if is_text(target) else [target, *others[:1]]
            yield " ".join(str(ast.literal_eval(part)) if is_text(part) else ast.unparse(part) for part in named)


def called(call: ast.Call) -> str:
    """The last name of the function that is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def root(node: ast.expr) -> str:
    """The name with which an expression such as `a.b.c` begins; "" of another."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def is_inside(target: ast.expr, inside: dict[str, bool], *, otherwise: bool) -> bool:
    """Tell whether something of the package is meant; `otherwise` is the answer for a name that no import explains."""
    texts = [str(part.value) for part in ast.walk(target) if is_text(part)]
    if isinstance(target, ast.Constant | ast.Starred | ast.Call):
        return any(text.partition(".")[0] == "deepres" for text in texts)
    return inside.get(root(target), otherwise)


def test_what_is_replaced_is_listed_with_its_reason():
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {what}"
        for pattern in PROGRAMS
        for path in ROOT.glob(pattern)
        for what in replacements(path)
    ]
    assert sorted(found) == sorted(LEFT)
    assert all(len(reason.split()) > 3 for reason in LEFT.values())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('monkeypatch.setattr(module, "x", 1)', ["module x"]),
        ('patch.setattr("deepres.a.b", 1)', ["deepres.a.b"]),
        ('patch("deepres.a.b")', ["deepres.a.b"]),
        ('mock.patch.object(Class, "method")', ["Class method"]),
        ('monkeypatch.setitem(module.TABLE, "key", 1)', ["module.TABLE key"]),
        (
            'monkeypatch.setattr(importlib.import_module("deepres.a"), "b", 1)',
            ["importlib.import_module('deepres.a') b"],
        ),
        ("for some in (Class,): monkeypatch.setattr(some, name, 1)", ["some name"]),
        ("module.x = 1", ["module x"]),
        ("made = Class()\nmade.x = 1", []),
        ('monkeypatch.setattr(torch.cuda, "is_available", 1)', []),
        ('monkeypatch.setattr("os.fsync", 1)', []),
        ('monkeypatch.setitem(torch.modules, "deepres", None)', []),
        ('monkeypatch.setenv("DEEPRES_DATA", "x")', []),
    ],
)
def test_replacements_are_found(tmp_path, line, found):
    path = tmp_path / "some.py"
    path.write_text(
        f"import torch\nfrom importlib import import_module\nfrom deepres.a import module, Class\n{line}\n"
    )
    assert list(replacements(path)) == found


def test_replacements_are_found_in_a_notebook(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["module.x = 1"]},
        {"cell_type": "code", "source": ["from deepres.a import module\n", "%pip install deepres"]},
        {"cell_type": "code", "source": ["if True:\n", "    !ls\n", "    module.x = 1"]},
    ]
    path = tmp_path / "some.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert list(replacements(path)) == ["module x"]
