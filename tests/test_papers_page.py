"""The page of the papers' experiments is what the kept records give."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "papers.md"
RECORDS = ROOT / "docs" / "records"
SEEDS = 3


@pytest.fixture
def page(papers):
    return papers("page")


def shown(page, text, experiments, folder=RECORDS):
    """Each mark of a page, its experiment, settings, and the results in a folder."""
    for mark, experiment, settings in page.marked(text, experiments):
        results, _ = page.kept(experiment, settings, folder)
        yield mark, experiment, settings, results


def test_every_block_of_the_page_is_what_the_records_give(entry, page):
    text = PAGE.read_text(encoding="utf-8")
    blocks = [*shown(page, text, entry.EXPERIMENTS.values())]
    marks = [mark for mark, *_ in blocks]
    assert sorted(re.findall(r"(?<=<!-- end of ).*(?= -->)", text)) == sorted(marks)
    assert {*entry.EXPERIMENTS} <= {*marks}
    for mark, *shown_there in blocks:
        assert text.count(f"<!-- {mark} -->") == 1
        assert page.filled(text, mark, *shown_there) == text


def test_every_picture_of_the_page_was_drawn_from_the_records(entry, papers, page):
    """What is drawn depends on the version of matplotlib; of what, is kept inside."""
    digest = papers("figures").digest
    text = PAGE.read_text(encoding="utf-8")
    for mark, *_, results in shown(page, text, entry.EXPERIMENTS.values()):
        if results:
            with Image.open(PAGE.parent / page.IMAGES / f"{mark}.png") as image:
                assert image.text["Records"] == digest(results)


def complaints(record):
    """Return what is wrong with a record of a model."""
    found = []
    if not 0 <= record["low"] <= record["high"]:
        found.append("inverted")
    if record["margin"] > record["information"]:
        found.append("more than there is")
    if record["verdict"] == "certified" and not record["margin"] > 0:
        found.append("certified below 0")
    if record.get("phase") == "forced constant" and record["verdict"] != "constant":
        found.append("a constant passes")
    if (record["state"] == "collapsed") != (record["high"] <= 0.05):
        found.append("collapsed or not")
    if record["state"] == "informative" and not record["low"] > 0.05:
        found.append("not informative")
    return found


def test_no_committed_record_breaks_what_must_hold():
    for path in RECORDS.glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for record in json.loads(line)["result"]["records"]:
                if "low" in record:
                    assert not complaints(record), (path.name, record)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"low": 2.1}, "inverted"),
        ({"margin": 1.6}, "more than there is"),
        ({"margin": 0.0}, "certified below 0"),
        ({"phase": "forced constant"}, "a constant passes"),
        ({"state": "collapsed"}, "collapsed or not"),
        ({"low": 0.01, "high": 0.02, "state": "ignored"}, "collapsed or not"),
        ({"low": 0.01}, "not informative"),
    ],
)
def test_a_tampered_record_is_reported(change, complaint):
    record = {
        "low": 1.9,
        "high": 2.0,
        "margin": 1.0,
        "information": 1.5,
        "verdict": "certified",
        "state": "informative",
        "phase": "aligned",
    }
    assert complaints(record) == []
    assert complaints(record | change) == [complaint]


@pytest.fixture
def example(papers):
    """An experiment with a cell a seed on one data set, without training."""
    claims = papers("claims")

    def draw(results, figure):
        figure.subplots().plot([record["margin"] for record in results[0]["records"]])

    return papers("cells").Experiment(
        name="example",
        title="Example",
        cells=lambda setting: [
            {"seed": seed, "kl_weight": kl} for seed in range(SEEDS) for kl in "12"
        ],
        compute=lambda lab: None,
        by=("data", "kl_weight"),
        columns={"margin": papers("tables").spread("margin")},
        claims=lambda records: [
            claims.tally(records, ("kl_weight",), "all are certified", claims.certified)
        ],
        draw=draw,
        caption="What to see.",
        data=("mnist",),
    )


@pytest.fixture
def save(papers, example, tmp_path):
    """Append a cell."""

    def of(seed, kl_weight, margin=1.0, code="a", preset="papers"):
        options = {"kl_weight": kl_weight, "seed": seed}
        setting = papers("settings").make_setting(preset, "mnist")._asdict()
        verdict = "certified" if margin > 0 else "varies"
        record = options | {"data": "mnist", "margin": margin, "verdict": verdict}
        name = {"setting": setting, "options": options, "versions": {}, "code": code}
        store = papers("cells").store_of(tmp_path, example, "mnist")
        store.save(name, {"records": [record], "warnings": []})

    return of


@pytest.fixture
def save_all(save):
    """Append all cells, the last seed first, as processes may end in any order."""

    def of():
        for seed in reversed(range(SEEDS)):
            for kl_weight in "12":
                save(seed, kl_weight, margin=seed + 0.5)

    return of


@pytest.fixture
def text(page, example, tmp_path):
    """The page with the records of a folder."""
    start = "Words.\n\n<!-- example -->\nold\n<!-- end of example -->\nMore words.\n"

    def fill():
        (mark,) = shown(page, start, [example], tmp_path)
        return page.filled(start, *mark)

    return fill


def test_a_block_has_figure_claims_images_and_intervals(text, save_all):
    assert "\nNot run yet.\n" in text()
    save_all()
    assert (
        text()
        == """Words.

<!-- example -->

![Example](images/papers/example.png)

What to see.

- Shows: all are certified: 6 of 6.

**mnist**: 10,000 training and 2,000 test images, 3 of 3 seeds.

| kl_weight | margin |
| --- | --- |
| 1 | 1.50 (0.50 to 2.50) |
| 2 | 1.50 (0.50 to 2.50) |

<!-- end of example -->
More words.
"""
    )


def test_an_unfinished_seed_is_left_out_and_reported(text, save):
    save(2, "1")
    save(2, "2")
    save(0, "1", margin=-7.0)
    assert "1 of 3 seeds, not finished." in text()
    assert "| 1 | 1.00 |\n| 2 | 1.00 |\n" in text()
    assert "-7" not in text()


def test_the_last_record_of_a_cell_is_shown_for_any_version_of_the_code(
    text, save, save_all
):
    save_all()
    before = text()
    save(0, "1", margin=-3.0, preset="five-minutes")
    assert text() == before
    save(0, "1", margin=-3.0, code="b")
    assert "| 1 | 1.50 (-3.00 to 2.50) |" in text()
    assert (
        "**Does not show**: all are certified: 5 of 6 (kl_weight 1: 2 of 3)." in text()
    )


def test_the_page_is_filled_to_the_byte_and_says_whose_records_it_has(
    page, example, save, save_all, tmp_path, capsys
):
    save_all()
    save(1, "2", code="b")
    path, image = tmp_path / "page.md", tmp_path / page.IMAGES / "example.png"
    image.parent.mkdir(parents=True)
    path.write_text("<!-- example -->\n<!-- end of example -->\n")
    files = []
    for _ in range(2):
        page.fill(path, [example], tmp_path)
        files.append((path.read_bytes(), image.read_bytes()))
    assert files[0] == files[1]
    assert "1.50 (0.50 to 2.50)" in path.read_text()
    output = capsys.readouterr().out
    assert "5 cells by" in output
    assert "1 cells by" in output
