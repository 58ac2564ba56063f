"""The documentation site as `make docs` builds it."""

import re
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

import deepres
from deepres.cli.main import cli
from deepres.zoo.catalogue import PACKAGED, list_cards

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from links import broken_links  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("sphinx", "furo", "myst_nb", "sphinx_click"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    (ROOT / "build").mkdir(exist_ok=True)
    with filelock.FileLock(ROOT / "build" / "site.lock"):  # two builds at once would write docs/generated together
        done = subprocess.run([*command, ROOT / "docs", out], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_every_link_within_the_site_leads_somewhere(site, tmp_path):
    assert broken_links(site) == []
    (tmp_path / "a.html").write_text('<a href="b.html#there"></a><a href="b.html#gone"></a><img src="c.png">')
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="https://example.org/gone"></a>')
    assert broken_links(tmp_path) == ["a.html: b.html#gone", "a.html: c.png"]


def test_the_face_and_the_command_line_are_documented(site):
    api = (site / "api.html").read_text()
    assert {name for name in deepres.__all__ if f'id="deepres.{name}"' not in api} == set()
    commands = (site / "cli.html").read_text()
    shown = {name for name, command in cli.commands.items() if not command.hidden}
    assert {name for name in shown if f'id="deepres-{name}"' not in commands} == set()


def test_a_page_for_each_model_card(site):
    for card in list_cards(PACKAGED):
        page = (site / "generated" / "cards" / f"{card.name}.html").read_text()
        for part in (f"{card.test_error_last:.2f}%", card.sha256, "Intended use", "Data", "Limits"):
            assert part in page


def test_the_notebook_is_shown_with_its_pictures_and_the_demo_is_there(site):
    page = (site / "generated" / "notebook.html").read_text()
    assert len(re.findall(r"<img [^>]*_images/", page)) >= 8
    assert (site / "demo" / "index.html").exists()
    assert 'href="demo/index.html"' in (site / "demo.html").read_text()


def test_no_page_asks_another_host_for_anything(site):
    for path in site.rglob("*.html"):
        for address in re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="(https?:[^"]*)"', path.read_text()):
            assert "github.com" in address or "colab.research" in address, (path, address)
