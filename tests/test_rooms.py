import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import architecture as tool  # noqa: E402


def test_rooms_import_only_from_rooms_below_them():
    assert len(tool.read_arrows()) > 40
    assert tool.arrows_that_do_not_go_down() == []


def test_an_arrow_upwards_is_found(tmp_path, monkeypatch):
    for path, text in {
        "cli/main.py": "",
        "runs/directory.py": "def f():\n    from deepres.cli import main\n",
        "runs/schema.py": "import deepres.weights.file\n",
        "weights/file.py": "from deepres import errors\n",
        "errors.py": "",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(tool, "SOURCE", tmp_path)
    assert tool.read_arrows()["weights", "errors"] == ["weights/file.py"]
    assert tool.arrows_that_do_not_go_down() == [
        "runs imports cli: runs/directory.py",
        "runs imports weights: runs/schema.py",
    ]


def test_no_modules_import_each_other_in_a_circle(tmp_path, monkeypatch):
    assert len(tool.module_imports()) > 80
    assert tool.circular_imports() == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a.py").write_text("from deepres.runs.b import f\n")
    (tmp_path / "runs" / "b.py").write_text("from deepres.runs import c\n")
    (tmp_path / "runs" / "c.py").write_text("import deepres.runs.a\n")
    (tmp_path / "runs" / "d.py").write_text("def f():\n    from deepres.runs import d, a\n")
    monkeypatch.setattr(tool, "SOURCE", tmp_path)
    assert tool.circular_imports() == ["runs.a", "runs.b", "runs.c"]


def test_the_page_is_up_to_date():
    assert tool.PAGE.read_text() == tool.page()


def test_no_file_is_longer_than_400_lines():
    root = Path(__file__).parent.parent
    lengths = {
        str(path.relative_to(root)): len(path.read_text().splitlines())
        for folder in ("benchmarks", "examples", "src", "tests", "tools")
        for path in (root / folder).rglob("*.py")
    }
    assert lengths
    assert {path: n for path, n in lengths.items() if n > 400} == {}


def test_importing_the_package_imports_nothing_large():
    program = "import sys, deepres; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "matplotlib", "tensorboard", "tensorflow", "click"} & set(done.stdout.split())


def test_the_command_line_starts_without_the_extras():
    extras = ("scipy", "jinja2", "tensorboard", "ray")
    program = f"import sys; sys.modules |= dict.fromkeys({extras}); import deepres.cli.main"
    program += "; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "matplotlib"} & set(done.stdout.split())  # so that it starts quickly
