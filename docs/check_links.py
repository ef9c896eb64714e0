"""Follows every local link, anchor and picture of the built pages: `check_links.py site`.

Prints those that lead nowhere, and pictures and scripts that are loaded from elsewhere; fails if
there are any.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The anchors of a page, and what it leads to or loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.targets |= {found[key] for key in ("href", "src") if found.get(key)}
        self.loaded |= {found["src"]} if found.get("src") else set()


def broken(site: Path) -> list[str]:
    """A line for each local target that is missing, in a page or in the site."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"Expected built pages. Received: none in {site}."]
    lines = []
    for path, page in pages.items():
        for target in sorted(page.targets):
            url = urlsplit(target)
            if url.netloc and target in page.loaded:
                lines.append(f"{path.relative_to(site.resolve())}: {target}: loaded from elsewhere")
            if url.scheme or url.netloc or path.name == "404.html":  # whose links are absolute
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(url.fragment)
            if not there.exists():
                lines.append(f"{path.relative_to(site.resolve())}: {target}: no such file")
            elif anchor and there in pages and anchor not in pages[there].anchors:
                lines.append(f"{path.relative_to(site.resolve())}: {target}: no such anchor")
    return lines


def main() -> None:
    lines = broken(Path(sys.argv[1]))
    print(*lines, sep="\n", end="\n" if lines else "")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
