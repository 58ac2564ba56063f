"""The kernels stand for the sources that they were written for: an edited forward pass is another net."""

import ast
import functools
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepres.backends.fused.standard import FORWARDS, source_digest, why_not_standard
from deepres.models import blocks, build_model
from deepres.models.blocks import Block, PadShortcut


def test_the_kernels_were_written_for_these_sources():
    """Whoever changes a forward pass changes the kernels too, or leaves its digest alone and trains without them."""
    assert {f"{owner.__name__}.{name}": source_digest(getattr(owner, name)) for owner, name in FORWARDS} == {
        f"{owner.__name__}.{name}": digest for (owner, name), digest in FORWARDS.items()
    }


EDITS = [
    ("return F.relu(out)", "return F.silu(out)"),
    ("out = F.relu(self.bn1(self.conv1(x)))", "out = F.gelu(self.bn1(self.conv1(x)))"),
    ("out = self.bn2(self.conv2(out))", "out = self.conv2(self.bn2(out))"),
    ("out = out + self.shortcut(x)", "out = out + 0.5 * self.shortcut(x)"),
    ("x = x[:, :, :: self.stride, :: self.stride]", "x = F.avg_pool2d(x, self.stride)"),
    ("padding=1, bias=False)\n        self.bn2", "padding=2, dilation=2, bias=False)\n        self.bn2"),
]


@pytest.mark.parametrize(("old", "new"), EDITS)
def test_an_edited_source_is_another_net(old, new, tmp_path, monkeypatch):
    source = Path(blocks.__file__).read_text()
    assert source.count(old) == 1
    edited = tmp_path / "edited_blocks.py"
    edited.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("edited_blocks", edited)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for owner in (Block, PadShortcut):
        for name in ("__init__", "forward"):
            monkeypatch.setattr(owner, name, function_of(owner, vars(module)[owner.__name__], name))
    assert why_not_standard(build_model("resnet20")) is not None


def function_of(owner, edited, name):
    """An edited method, whose `super()` is that of the class into which it is put."""
    if name == "forward":
        return edited.forward
    code = vars(edited)[name]
    cell = type((lambda: owner).__closure__[0])(owner)
    return type(code)(code.__code__, code.__globals__, name, code.__defaults__, (cell,))


def test_comments_docstrings_and_layout_are_no_change(tmp_path):
    def one(x):
        return x + 1

    def other(x):
        """With words."""
        return (
            x  # and a comment
            + 1
        )

    other.__name__ = "one"
    assert source_digest(one) is not None
    assert source_digest(other) != source_digest(one)  # another name
    renamed = tmp_path / "renamed.py"
    renamed.write_text(
        'def one(x):\n    """With words."""\n    return (\n        x  # and a comment\n        + 1\n    )\n'
    )
    spec = importlib.util.spec_from_file_location("renamed", renamed)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert source_digest(module.one) == source_digest(one)


def test_no_two_threads_parse_at_once(monkeypatch):
    """Which Python 3.11 does not stand: https://github.com/python/cpython/issues/106905."""
    parse, parsing, most = ast.parse, [], []

    def slow_parse(source):
        parsing.append(source)
        most.append(len(parsing))
        time.sleep(0.02)
        parsing.pop()
        return parse(source)

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(ast, "parse", slow_parse)
        digests = list(pool.map(source_digest, [Block.forward] * 8))
    assert len(set(digests)) == 1
    assert most == [1] * 8


def test_what_has_no_source_has_no_digest():
    space = {}
    exec("def forward(self, x): return x", space)
    assert source_digest(space["forward"]) is None
    assert source_digest(functools.partial(print)) is None
    assert source_digest(functools.wraps(Block.forward)(lambda self, x: x)) is None


def test_a_decorated_forward_is_another_one(monkeypatch):
    original = Block.forward

    @functools.wraps(original)
    def doubled(self, x):
        return 2 * original(self, x)

    monkeypatch.setattr(Block, "forward", doubled)
    assert why_not_standard(build_model("resnet20")) == (
        "Block.forward is not the one that the kernels were written for"
    )
