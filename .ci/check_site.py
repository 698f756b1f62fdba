"""Check the built site: links lead somewhere, and every public name has its place.

python .ci/check_site.py docs/_build/html
"""

import importlib
import inspect
import pkgutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import skvaecert


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name") if tag == "a" else None}
        self.links |= {attrs.get("href"), attrs.get("src")} - {None}


def broken_links(root):
    paths = [path for path in root.rglob("*.html") if "_static" not in path.parts]
    pages = {path.resolve(): Page(path) for path in paths}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (
                (path.parent / unquote(parts.path)).resolve() if parts.path else path
            )
            if not target.is_file():
                yield f"{path.relative_to(root.resolve())}: {link}: no such file"
            elif parts.fragment and target in pages:
                if unquote(parts.fragment) not in pages[target].anchors:
                    yield f"{path.relative_to(root.resolve())}: {link}: no such anchor"


def missing_names(root):
    found = pkgutil.iter_modules(skvaecert.__path__, "skvaecert.")
    for module in ["skvaecert", *(m.name for m in found if "._" not in m.name)]:
        loaded = importlib.import_module(module)
        for member in (m for m in loaded.__all__ if callable(getattr(loaded, m))):
            value = getattr(loaded, member)
            # Objects, such as scorers, are described with their class.
            if not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            name = f"{module}.{member}"
            path = root / "reference" / f"{name}.html"
            if not path.is_file() or name not in Page(path).anchors:
                yield f"{name}: not in the reference"


if __name__ == "__main__":
    site = Path(sys.argv[1])
    wrong = [*broken_links(site), *missing_names(site)]
    n_pages = len(list(site.rglob("*.html")))
    print(*sorted(wrong), f"{n_pages} pages, {len(wrong)} errors", sep="\n")
    sys.exit(bool(wrong) or n_pages < 100)
