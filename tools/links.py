"""Tell which links of a built site lead nowhere: `python tools/links.py build/site`. Other sites are not asked."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep ids and addresses."""
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            elif key in ("id", "name") and value:
                self.names.add(value)


def broken_links(site: Path) -> list[str]:
    """Return the links between the pages of a folder whose file or heading does not exist, with the page of each."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            heading = unquote(parts.fragment)
            if not target.exists() or (heading and target in pages and heading not in pages[target].names):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return sorted(set(broken))


if __name__ == "__main__":
    if found := broken_links(Path(sys.argv[1])):
        sys.exit("links that lead nowhere:\n" + "\n".join(found))
