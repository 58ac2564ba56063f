"""The documentation site: `make docs` builds it into build/site.

The pages in docs/ are read on the repository's host too. Here their links to files outside of docs/ are turned to the
pages that are made of these files in docs/generated, or to the repository.
"""

import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = DOCS / "generated"
sys.path.insert(0, str(ROOT / "src"))

from deepres._version import __version__  # noqa: E402
from deepres.zoo.catalogue import PACKAGED, list_cards  # noqa: E402

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]

# Files outside of docs/ that become pages.
PAGES = {
    ROOT / "main.ipynb": "notebook.ipynb",
    ROOT / "results" / "README.md": "results.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "SECURITY.md": "security.md",
    **{PACKAGED / f"{card.name}.md": f"cards/{card.name}.md" for card in list_cards(PACKAGED)},
}

project = "deepres"
author = copyright = "The deepres authors"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["demo"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the notebook is shown as it is committed
autodoc_member_order = "bysource"
html_theme = "furo"
html_title = f"deepres {version}"
html_baseurl = os.environ.get("DEEPRES_SITE", "")  # the site's address, where it is published
html_favicon = "demo/icon.svg"
html_show_copyright = False
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}


def turn_links(text: str, source: Path, page: Path) -> str:
    """Return the text of a file with its links as they must be in the page that it becomes."""

    def turn(match: re.Match[str]) -> str:
        image, label, target, heading = match[1], match[2], match[3], match[4] or ""
        path = (source.parent / target).resolve()
        if image:
            address = os.path.relpath(path, page.parent)
        elif path in PAGES:
            address = os.path.relpath(GENERATED / PAGES[path], page.parent)
        elif path == ROOT / "README.md":
            address = os.path.relpath(DOCS / "index.md", page.parent)
        elif path.is_relative_to(DOCS):
            address = os.path.relpath(path, page.parent)
        else:
            kind = "tree" if path.is_dir() else "blob"
            address = f"{REPOSITORY}/{kind}/main/{path.relative_to(ROOT)}"
        return f"{image}[{label}]({address}{heading})"

    return re.sub(r"(!?)\[((?:[^\[\]]|\n)*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)]*)?\)", turn, text)


def write_pages() -> None:
    """Write docs/generated."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    for source, name in PAGES.items():
        page = GENERATED / name
        page.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        page.write_text(text if page.suffix == ".ipynb" else turn_links(text, source, page), encoding="utf-8")


def turn_links_of_page(app: Any, name: str, content: list[str]) -> None:
    """Turn the links of a page in docs/ as it is read."""
    path = DOCS / f"{name}.md"
    if path.exists() and not path.is_relative_to(GENERATED):
        content[0] = turn_links(content[0], path, path)


def mark_code(app: Any, *of_object: Any) -> None:
    """Turn what docstrings mark as code, as Markdown does, into what Sphinx takes for code; the lines come last."""
    lines = of_object[-1]
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            marked = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line)
            lines[i] = re.sub(r"``.*?``|\*", lambda match: r"\*" if match[0] == "*" else match[0], marked)


def copy_demo(app: Any, failure: Exception | None) -> None:
    """Put the demo beside the pages, as `make demo` left it."""
    if failure is None and app.builder.name == "html":
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(DOCS / "demo", Path(app.outdir) / "demo", ignore=hidden, dirs_exist_ok=True)


def setup(app: Any) -> None:
    """Tell Sphinx what to do when."""
    write_pages()
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", turn_links_of_page)
    for event in ("autodoc-process-docstring", "sphinx-click-process-description"):
        app.connect(event, mark_code, priority=400)  # before napoleon
    app.connect("build-finished", copy_demo)
