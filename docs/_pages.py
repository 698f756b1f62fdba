"""Links between the pages, and the order of the examples.

The Markdown stays as it is read in a repository browser, the docstrings as `help` shows
them; what can be a link becomes one here.
"""

import functools
import importlib
import inspect
import pkgutil
import re
from collections import defaultdict
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_gallery.sorting import FileNameSortKey

import skvaecert

DOCS = Path(__file__).parent
FIRST = ["quickstart", "foreign_models", "text_vae", "tabular", "images"]


class ReadingOrder(FileNameSortKey):
    """What most readers come for, then the others by name."""

    def __call__(self, filename):
        name = Path(filename).stem.removeprefix("plot_")
        place = FIRST.index(name) if name in FIRST else len(FIRST)
        return place, filename


@functools.cache
def public_modules():
    """Names of modules, the package first."""
    found = pkgutil.iter_modules(skvaecert.__path__, "skvaecert.")
    return ["skvaecert", *(m.name for m in found if "._" not in m.name)]


def described_with(module, member):
    """Return a class or function itself; of an object, such as a scorer, its class."""
    value = getattr(module, member)
    has_page = inspect.isclass(value) or inspect.isroutine(value)
    return member if has_page else type(value).__name__


@functools.cache
def public_names():
    """Full names by what pages write: `bounds.betting_bound`, `betting_bound`, ..."""
    meant = defaultdict(set)
    for module in public_modules():
        meant[module].add(module)
        loaded = importlib.import_module(module)
        # Constants have no page of their own.
        for member in (m for m in loaded.__all__ if callable(getattr(loaded, m))):
            full = f"{module}.{member}"
            page = f"{module}.{described_with(loaded, member)}"
            for short in (full, full.removeprefix("skvaecert."), member):
                meant[short].add(page)
    # A name of two modules means neither; a bare `certify` may be the method.
    certain = {short: names.pop() for short, names in meant.items() if len(names) == 1}
    methods = set(dir(skvaecert.CollapseCertifier))
    return {short: full for short, full in certain.items() if short not in methods}


def target_of(literal):
    """Full name of what a literal means, or None."""
    name = literal.astext().removesuffix("()")
    paragraph = literal.parent
    while not isinstance(paragraph, nodes.paragraph) and paragraph.parent:
        paragraph = paragraph.parent
    # The map of the API has a paragraph for each module, which names it first.
    module = next(paragraph.findall(nodes.literal)).astext()
    names = public_names()
    return names.get(f"{module}.{name}") or names.get(name)


def reference_to(app, docname, page, anchor=None):
    """Make a link from one page to another."""
    uri = app.builder.get_relative_uri(docname, page)
    uri += f"#{anchor}" if anchor else ""
    return nodes.reference("", "", internal=True, refuri=uri)


class LinkPublicNames(SphinxPostTransform):
    """`GMMTeacher` on a page leads to its page in the reference.

    The Markdown stays as it is read in a repository browser.
    """

    default_priority = 5  # before references are resolved

    def run(self):
        here = self.env.docname.removeprefix("reference/")
        for literal in list(self.document.findall(nodes.literal)):
            target = target_of(literal)
            linked = isinstance(
                literal.parent, nodes.reference | nodes.title | addnodes.pending_xref
            )
            if target is not None and not linked and target != here:
                link = reference_to(self.app, self.env.docname, f"reference/{target}")
                literal.replace_self(link)
                link += literal


def link_across_pages(app, env, node, contnode):
    """Resolve sections of the theory, and classes of other modules."""
    target = node.get("reftarget", "")
    owner, _, member = target.partition(".")
    if target.startswith("theory section"):
        page, anchor = "theory", theory_sections().get(target.split()[-1])
    elif owner in public_names():
        page = f"reference/{public_names()[owner]}"
        anchor = f"{public_names()[owner]}.{member}" if member else None
    else:
        return None
    link = reference_to(app, node["refdoc"], page, anchor)
    link += contnode
    return link


def link_examples(app, docname, source):
    """Pages link to an example's script; here its page in the gallery is better."""
    source[0] = re.sub(
        r"\]\(\.\./examples/(plot_\w+)\.py\)", r"](auto_examples/\1.rst)", source[0]
    )


@functools.cache
def theory_sections():
    """Anchors by section number."""
    headings = re.findall(r"^## ((\d+) .*)", (DOCS / "theory.md").read_text(), re.M)
    return {
        number: re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading, number in headings
    }


def link_theory(app, what, name, obj, options, lines):
    """'Theory section 4' in a docstring leads there."""
    name = r"\b([Tt]heory section (\d+))"
    lines[:] = [re.sub(name, r":any:`\1 <theory section \2>`", line) for line in lines]


def skip_fields(app, what, name, obj, skip, options):
    """Fields of named tuples stand in the docstring of the class."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app):
    app.add_post_transform(LinkPublicNames)
    app.connect("source-read", link_examples)
    app.connect("missing-reference", link_across_pages)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", link_theory)
