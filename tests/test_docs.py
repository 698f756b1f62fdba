"""Code and citations of the documentation are run or looked up."""

import contextlib
import functools
import io
import re
from pathlib import Path

import joblib
import matplotlib
import matplotlib.pyplot
import pytest
import sklearn

import skvaecert

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def name_of(page):
    return page.stem


def check_margin(code, certificate):
    """Compare with the result in a comment, up to rounding on other machines."""
    stated = re.search(r"margin ([\d.]+) of at most ([\d.]+) nats", code).groups()
    found = certificate.margin, certificate.teacher_information
    assert found == pytest.approx([float(number) for number in stated], abs=0.05)


@pytest.mark.slow
def test_readme_runs():
    first, train, search, rescue = runnable(ROOT / "README.md")
    scope = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(first, scope)
    # What the comments say came out, in full or up to three dots.
    said = " ".join(re.findall(r"^# +(.*)$", first, re.M)).removesuffix(" ...")
    assert " ".join(printed.getvalue().split()).startswith(said)
    exec(train, scope)
    certificate = scope["certifier"].certify(scope["X_test"])
    assert certificate.verdict == "certified"
    check_margin(train, certificate)
    assert scope["Z"].shape == (450, 16)
    exec(search, scope)
    assert str(scope["search"].best_params_) in search
    before, after = rescue.split("certifier.set_params", 1)
    exec(before, scope)
    assert scope["certifier"].diagnose(scope["X_test"]).state == "collapsed"
    exec("certifier.set_params" + after, scope)
    assert scope["certifier"].diagnose(scope["X_test"]).state == "informative"
    assert scope["certifier"].certify(scope["X_test"]).certified


def blocks(page):
    """Code, and why it is not run if it says so."""
    fenced = r"(?:<!-- (not run: .*?|lines of .*?) -->\n)?```python\n(.*?)```"
    return [(code, why) for why, code in re.findall(fenced, page.read_text(), re.S)]


def runnable(page):
    return [code for code, why in blocks(page) if not why]


QUOTED = [
    (page, script, code)
    for page in [ROOT / "README.md", *PAGES]
    for script, code in re.findall(
        r"<!-- lines of (.*?) -->\n```python\n(.*?)```", page.read_text(), re.S
    )
]


@pytest.mark.parametrize(("page", "script", "code"), QUOTED)
def test_lines_that_are_quoted_are_those_of_the_script(page, script, code):
    assert code in (ROOT / script).read_text()


def test_scripts_are_quoted():
    assert {page.stem for page, _, _ in QUOTED} >= {"guide", "index"}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """The names of docs/index.md, which other pages use, after short training."""
    # What is run here is the code; what trainings lead to is claimed elsewhere.
    defaults = skvaecert.CertifiedVAE.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "max_epochs", 3)
    # Workers take seconds to start, and test_engines.py is about them.
    one_process = functools.partial(joblib.parallel_config, "sequential")
    monkeypatch.setattr(joblib, "parallel_config", lambda *_, **__: one_process())
    monkeypatch.chdir(tmp_path)
    scope = {}
    with sklearn.config_context(), one_process():
        for code in runnable(ROOT / "docs/index.md"):
            exec(code, scope)
        yield scope
    matplotlib.pyplot.close("all")


def run(code, scope):
    """Run a block; one that brings its own data needs no name from before."""
    own = {} if re.search(r"^(X = load|rng = )", code, re.M) else scope
    exec(compile(code, "a block of the documents", "exec"), own)
    scope |= own


def check_output(code, printed):
    """Lines that are printed are what the comments behind the prints say."""
    said = re.findall(r"^print\(.*\) +# (.*)$", code, re.M)
    if said and len(said) == code.count("print("):
        for line, comment in zip(printed.splitlines(), said, strict=True):
            beginning = comment.removesuffix("...").rstrip(" ,")
            assert line.startswith(beginning) if "..." in comment else line == comment


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=name_of
)
def test_code_on_a_page_runs(page, start, capsys):
    for code in runnable(page):
        capsys.readouterr()
        run(code, start)
        check_output(code, capsys.readouterr().out)
    if page.stem == "guide":
        assert "Certified" in Path("report.html").read_text(encoding="utf-8")


def test_prints_of_the_guide_are_compared():
    """So that a change of layout does not end the comparison."""
    compared = [
        code
        for code in runnable(ROOT / "docs/guide.md")
        if re.findall(r"^print\(.*\) +# ", code, re.M)
    ]
    assert len(compared) >= 3


def test_hardly_any_code_is_not_run():
    reasons = [why for page in PAGES for _, why in blocks(page) if "not" in why]
    assert len(reasons) <= 3
    assert all(why.startswith("not run: needs ") for why in reasons)


@pytest.mark.slow
def test_what_the_first_page_says_is_so(capsys):
    existing, own = runnable(ROOT / "docs/index.md")
    scope = {}
    exec(existing, scope)
    check_output(existing, capsys.readouterr().out)
    exec(own, scope)
    check_margin(own, scope["certifier"].certify(scope["X_test"]))


def test_readme_shows_a_picture_and_links_that_are_there():
    links = re.findall(r"\]\(((?!http).*?)\)", (ROOT / "README.md").read_text())
    assert {"docs/images/quickstart.png", "docs/images/papers/sweep.png"} <= {*links}
    for link in links:
        assert (ROOT / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_link_to_what_is_there(page):
    text = page.read_text()
    for link in re.findall(r"\]\(((?!http).*?)\)", text):
        path, _, section = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if section:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.M)
            assert section in {anchor(heading) for heading in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_formulas_pass_a_reader_that_knows_markdown_only(page):
    """Repository browsers may see an escape or emphasis inside of a formula."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    formulas = re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", prose, re.S)
    for formula in map("".join, formulas):
        assert not re.search(r"\\[^a-zA-Z\s]|\*|[^\w\s\\]_", formula), formula
    if page.stem == "theory":
        assert len(formulas) > 500


def anchor(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(
    ("page", "most"),
    [
        ("theory", 20),
        ("baselines", 8),
        ("contributing", 6),
        ("diagnostics", 4),
        ("scaling", 4),
    ],
)
def test_tests_named_in_the_documents_exist(page, most):
    named = set(re.findall(r"`(test_\w+)`", (ROOT / f"docs/{page}.md").read_text()))
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert len(named) > most
    missing = {name for name in named if f"def {name}(" not in sources}
    assert not missing


MODULES = [getattr(skvaecert, name) for name in skvaecert._MODULES]


@pytest.mark.parametrize("module", [skvaecert, *MODULES])
def test_public_names_stand_in_the_api(module):
    text = (ROOT / "docs/api.md").read_text()
    for name in module.__all__:
        assert f"`{name}`" in text, name
