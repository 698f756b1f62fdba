import hashlib
import json
import re
import shutil
import warnings
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.report import write_report

mpl.use("Agg")
import matplotlib.pyplot as plt

KINDS = "mean", "sampled", "round_trip"
VOID = {"meta", "img", "br", "link"}
ATTACK = "<script>alert('x')</script>&\"'"


def sha256_of(rows):
    """The form that docs/security.md tells of."""
    head = f"skvaecert rows 1 {rows.dtype} {len(rows)} {rows.shape[1]}\n"
    return hashlib.sha256(head.encode() + rows.tobytes()).hexdigest()


class Page(HTMLParser):
    """Reads a page, and notes what does not fit."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.wrong = [], [], []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def read(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert not page.wrong
    return text, page


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6)) * 4
    return centres[rng.integers(4, size=120)] + rng.normal(size=(120, 6))


@pytest.fixture(scope="module")
def teacher():
    return GMMTeacher(4, covariance_type="full", random_state=0)


@pytest.fixture(scope="module")
def certifier(rows, teacher):
    vae = CertifiedVAE(
        teacher,
        latent_dim=4,
        hidden_sizes=(16,),
        max_epochs=15,
        learning_rate=1e-2,
        batch_size=32,
        device="cpu",
        random_state=0,
    )
    return CollapseCertifier(vae).fit(rows[::2])


@pytest.fixture(scope="module")
def written(certifier, rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(certifier, rows[1::2], path, title=ATTACK) == path
    return path


def test_every_certificate_stands_in_the_report(certifier, rows, written):
    _, page = read(written)
    for kind in KINDS:
        certificate = certifier.certify(rows[1::2], kind=kind)
        assert str(certificate) in page.text
        assert f"{certificate.margin:.4g}" in page.text
        assert f"{certificate.tolerance:.2g} nats" in page.text
    assert "not computed" not in page.text
    assert "Not drawn" not in page.text


def test_what_was_assumed_and_what_it_takes_to_make_it_again(certifier, rows, written):
    _, page = read(written)
    assert sha256_of(rows[1::2]) in page.text
    assert "shape (60, 6)" in page.text
    assert certifier.__repr__(N_CHAR_MAX=10**6) in page.text
    assert "estimator__random_state=0" in page.text
    assert f"numpy {np.__version__}" in page.text
    assert "32 machine epsilons of float32" in page.text
    assert "no proof of collapse" in page.text


def test_nothing_is_loaded_and_nothing_runs(written):
    text, page = read(written)
    assert not page.all("script")
    assert not page.all("link")
    code = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"https?://|@import|url\(|\son\w+=", code)
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 6
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert b64decode(data).startswith(b"\x89PNG")
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


def test_titles_and_names_are_text(certifier, teacher, rows, written, tmp_path):
    text, page = read(written)
    assert ATTACK in page.text
    assert ATTACK not in text
    frame = pd.DataFrame(rows, columns=[ATTACK, *"bcdef"])
    other = CollapseCertifier(PCA(4), teacher=teacher).fit(frame[::2])
    text, page = read(write_report(other, frame[1::2], tmp_path / "names.html"))
    assert ATTACK in page.text
    assert "<script" not in text


class Stubborn:
    """An encoder whose errors and repr are hostile too."""

    def transform(self, X):
        return np.asarray(X)[:, :4]

    def encode(self, X):
        raise RuntimeError(ATTACK)

    def __repr__(self):
        return f"Stubborn({ATTACK!r})"


def test_what_a_foreign_encoder_cannot_is_told_with_its_reason(teacher, rows, tmp_path):
    other = CollapseCertifier(Stubborn(), teacher=teacher).fit(rows[::2])
    text, page = read(write_report(other, rows[1::2], tmp_path / "foreign.html"))
    assert page.text.count("not computed") == 2
    assert ATTACK in page.text
    assert "must have an inverse_transform" in page.text
    assert "<script" not in text
    assert str(other.certify(rows[1::2])) in page.text
    # Neither bracket nor reconstructions nor history.
    assert len(page.all("img")) == 3


def test_rows_of_the_fit_have_no_certificate_of_drawn_codes(certifier, rows, tmp_path):
    _, page = read(write_report(certifier, rows[::2], tmp_path / "fit.html"))
    assert page.text.count("samples that were in fit") == 2
    assert str(certifier.certify(rows[::2])) in page.text


def test_posteriors_in_place_of_a_teacher(teacher, rows, tmp_path):
    proba = teacher.fit(rows).predict_proba(rows)
    other = CollapseCertifier(PCA(4)).fit(rows[::2], teacher_proba=proba[::2])
    path = tmp_path / "given.html"
    _, page = read(write_report(other, rows[1::2], path, teacher_proba=proba[1::2]))
    assert "array of posteriors that was given" in page.text
    assert sha256_of(proba[1::2]) in page.text
    assert "Not drawn" not in page.text


def test_warnings_stand_in_the_report_and_are_given(teacher, rows, tmp_path):
    class Drawing:
        def transform(self, X):
            noise = np.random.default_rng().normal(size=(len(X), 4))
            return np.asarray(X)[:, :4] + 0.1 * noise

    other = CollapseCertifier(Drawing(), teacher=teacher)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.fit(rows[::2])
    with pytest.warns(UnstableEncoderWarning) as caught:
        path = write_report(other, rows[1::2], tmp_path / "drawn.html")
    _, page = read(path)
    assert "Warnings" in page.text
    assert any(str(one.message) in page.text for one in caught)


def test_images_are_drawn_as_such(digits, tmp_path):
    train, test = digits[0][:80], digits[1][:40]
    vae = CertifiedVAE(
        GMMTeacher(2, covariance_type="spherical"),
        latent_dim=2,
        hidden_sizes=(8,),
        image_shape=(1, 8, 8),
        max_epochs=2,
        device="cpu",
        random_state=0,
    )
    certifier = CollapseCertifier(vae).fit(train)
    _, page = read(write_report(certifier, test, tmp_path / "images.html"))
    flat = [image for image in page.all("img") if "reconstructions" in image["alt"]]
    assert len(flat) == 1
    assert int(flat[0]["width"]) > 3 * int(flat[0]["height"])


def test_the_page_can_be_read_by_all(written):
    _, page = read(written)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(len(image["alt"]) > 40 for image in page.all("img"))
    assert {cell.get("scope") for cell in page.all("th")} == {"row", "col"}
    names = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {one["aria-labelledby"] for one in page.all("section")} == names
    assert page.all("caption")


def test_text_has_enough_contrast_in_colour_and_so_in_grey(written):
    text, _ = read(written)
    colours = set(re.findall(r"[^-]color: (#\w+)", text))
    assert len(colours) >= 4

    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
        srgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        linear = np.where(
            srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    # On the darkest background of the page.
    paper = luminance("#eeeeee") + 0.05
    assert all(paper / (luminance(colour) + 0.05) > 4.5 for colour in colours)


def test_a_report_replaces_an_older_one_as_a_whole(
    certifier, rows, tmp_path, monkeypatch
):
    path = tmp_path / "report.html"
    path.write_text("older", encoding="utf-8")

    def full_disk(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full_disk)
        with pytest.raises(OSError, match="disk full"):
            write_report(certifier, rows[1::2], path)
    assert path.read_text(encoding="utf-8") == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    write_report(certifier, rows[1::2], str(path))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_no_figure_stays_open_and_no_setting_changes(certifier, rows, tmp_path):
    before = dict(mpl.rcParams), plt.get_fignums()
    write_report(certifier, rows[1::2], tmp_path / "report.html")
    assert (dict(mpl.rcParams), plt.get_fignums()) == before


def test_what_is_no_certifier_or_no_rows_makes_no_report(certifier, rows, tmp_path):
    path = tmp_path / "none.html"
    with pytest.raises(ValueError, match="must be a CollapseCertifier, got Pipeline"):
        write_report(make_pipeline(PCA(2)), rows, path)
    with pytest.raises(ValueError, match="not fitted"):
        write_report(CollapseCertifier(), rows, path)
    with pytest.raises(ValueError, match="NaN"):
        write_report(certifier, np.full((4, 6), np.nan), path)
    assert not path.exists()


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium, or no chromedriver, is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()


@pytest.mark.parametrize("width", [1100, 360])
def test_a_browser_shows_it_without_complaint(browser, written, width):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(written.as_uri())
    assert browser.title == ATTACK
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.width])"
    )
    assert len(pictures) == 6
    assert all(
        done and own > 0 and 200 < shown <= width for done, own, shown in pictures
    )
    # Nothing sticks out to the side, and nothing was blocked or missing.
    assert (
        browser.execute_script("return document.documentElement.scrollWidth") <= width
    )
    assert browser.get_log("browser") == []
    asked = browser.execute_script(
        "return JSON.stringify(performance.getEntriesByType('resource')"
        ".map(r => r.name).filter(n => !n.startsWith('data:')))"
    )
    assert json.loads(asked) == []
