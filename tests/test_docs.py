"""What the documents say is run, or looked up."""

import re
from pathlib import Path

import pytest

import skvaecert
from skvaecert import (
    baselines,
    bounds,
    callbacks,
    datasets,
    diagnostics,
    exceptions,
    forecast,
    metrics,
    model_selection,
    networks,
    objectives,
    persistence,
    plotting,
    simplex,
    wrappers,
)

ROOT = Path(__file__).parents[1]


def test_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    first, search, rescue = blocks
    scope = {}
    exec(first, scope)
    certificate = scope["certifier"].certify(scope["X_test"])
    assert certificate.verdict == "certified"
    # As the comment has it.
    told = re.search(r"margin ([\d.]+) of at most ([\d.]+) nats", first).groups()
    assert certificate.margin == pytest.approx(float(told[0]), abs=0.05)
    assert certificate.teacher_information == pytest.approx(float(told[1]), abs=0.05)
    assert scope["Z"].shape == (450, 16)
    exec(search, scope)
    assert len(scope["teacher"].search_results_["information"]) == 6
    before, after = rescue.split("certifier.set_params", 1)
    exec(before, scope)
    assert scope["certifier"].certify(scope["X_test"]).verdict == "inconclusive"
    exec("certifier.set_params" + after, scope)
    assert scope["certifier"].certify(scope["X_test"]).verdict == "certified"


def test_guide_on_rows_not_seen_runs(capsys):
    section = (ROOT / "docs/guide.md").read_text().split("## Rows not seen")[1]
    (snippet,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.S)
    exec(snippet, {})
    told = re.findall(r"# ([\d.]+)$", snippet, re.M)
    assert capsys.readouterr().out.split() == told


def test_guide_on_saving_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "docs/guide.md").read_text().split("## Saving and sharing")[1]
    snippet = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.S)[0]
    exec(snippet, {})
    assert capsys.readouterr().out.startswith("Confirmed: these are the rows")


def test_readme_shows_a_picture_and_links_that_are_there():
    links = re.findall(r"\]\(((?!http).*?)\)", (ROOT / "README.md").read_text())
    assert "docs/images/quickstart.png" in links
    for link in links:
        assert (ROOT / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=str)
def test_pages_link_to_what_is_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\(((?!http).*?)\)", text):
        path, _, section = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if section:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert section in {anchor(heading) for heading in headings}, link


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("page", "most"), [("theory", 20), ("baselines", 8), ("diagnostics", 4)]
)
def test_tests_named_in_the_documents_exist(page, most):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / f"docs/{page}.md").read_text()))
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert len(named) > most
    missing = {name for name in named if f"def {name}(" not in sources}
    assert not missing


@pytest.mark.parametrize(
    "module",
    [
        skvaecert,
        baselines,
        bounds,
        callbacks,
        datasets,
        diagnostics,
        exceptions,
        forecast,
        metrics,
        model_selection,
        networks,
        objectives,
        persistence,
        plotting,
        simplex,
        wrappers,
    ],
)
def test_public_names_stand_in_the_api(module):
    text = (ROOT / "docs/api.md").read_text()
    for name in module.__all__:
        assert f"`{name}`" in text, name
