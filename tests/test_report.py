import hashlib
import json
import re
import shutil
import warnings
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from skvaecert import CollapseCertifier
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.report import _certificate_field, write_report
from skvaecert.wrappers import TrainedEncoder

KINDS = "mean", "sampled", "round_trip"
VOID = {"meta", "img", "br", "link"}
ATTACK = "<script>alert('x')</script>&\"'"


def sha256_of(samples):
    """The hash that docs/security.md describes."""
    head = f"skvaecert rows 1 {samples.dtype} {len(samples)} {samples.shape[1]}\n"
    return hashlib.sha256(head.encode() + samples.tobytes()).hexdigest()


class Page(HTMLParser):
    """Parses a page, and records what does not fit."""

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
def written(fitted, shared_blobs, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(fitted, shared_blobs[1::2], path, title=ATTACK)


@pytest.mark.slow
def test_every_certificate_stands_in_the_report(fitted, blobs, written):
    _, page = read(written)
    for kind in KINDS:
        certificate = fitted.certify(blobs[1::2], kind=kind)
        assert str(certificate) in page.text
        assert f"{certificate.margin:.4g}" in page.text
        assert f"{certificate.tolerance:.2g} nats" in page.text
    assert "not computed" not in page.text
    assert "Not drawn" not in page.text


def test_a_confidence_is_not_rounded(fitted, blobs):
    certificate = fitted.certify(blobs[1::2], kind="sampled", confidence=0.99999)
    assert _certificate_field("confidence", certificate) == "0.99999"


@pytest.mark.slow
def test_what_was_assumed_and_what_it_takes_to_reproduce(fitted, blobs, written):
    _, page = read(written)
    assert sha256_of(blobs[1::2]) in page.text
    assert "shape (60, 6)" in page.text
    assert fitted.__repr__(N_CHAR_MAX=10**6) in page.text
    assert "estimator__random_state=0" in page.text
    assert f"numpy {np.__version__}" in page.text
    assert "32 machine epsilons of float32" in page.text
    assert "does not prove collapse" in page.text


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


def test_titles_are_text(written):
    text, page = read(written)
    assert ATTACK in page.text
    assert ATTACK not in text


@pytest.mark.slow
def test_names_are_text_and_posteriors_are_named(fitted, blobs, tmp_path):
    proba = fitted.teacher_.predict_proba(blobs)
    frame = pd.DataFrame(blobs, columns=[ATTACK, *"bcdef"])
    other = CollapseCertifier(PCA(4)).fit(frame[::2], teacher_proba=proba[::2])
    path = tmp_path / "given.html"
    text, page = read(write_report(other, frame[1::2], path, teacher_proba=proba[1::2]))
    assert ATTACK in page.text
    assert "<script" not in text
    assert "The array of posteriors passed as teacher_proba" in page.text
    assert sha256_of(proba[1::2]) in page.text
    assert "Not drawn" not in page.text


class Stubborn:
    """An encoder that draws, and whose errors and repr are hostile too."""

    def __init__(self, noise):
        self.noise = noise

    def transform(self, X):
        drawn = np.random.default_rng().normal(size=(len(X), 4))
        return np.asarray(X)[:, :4] + self.noise * drawn

    def encode(self, X):
        raise RuntimeError(ATTACK)

    def __repr__(self):
        return f"Stubborn({ATTACK!r})"


def foreign(fitted, noise):
    return CollapseCertifier(Stubborn(noise), teacher=FrozenEstimator(fitted.teacher_))


@pytest.mark.slow
def test_what_a_foreign_encoder_cannot_do_has_its_reason(fitted, blobs, tmp_path):
    other = foreign(fitted, noise=0).fit(blobs[::2])
    path = tmp_path / "foreign.html"
    path.write_text("older", encoding="utf-8")
    before = dict(mpl.rcParams), plt.get_fignums()
    assert write_report(other, blobs[1::2], str(path)) == path
    # No figure stays open and no setting changes.
    assert (dict(mpl.rcParams), plt.get_fignums()) == before
    text, page = read(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert page.text.count("not computed") == 2
    assert ATTACK in page.text
    assert "must have an inverse_transform" in page.text
    assert "<script" not in text
    assert str(other.certify(blobs[1::2])) in page.text
    assert looks(page) == ["diagnosis undecided", "varies", "", ""]
    # Nothing is known of its draws: neither bracket, reconstructions nor history.
    assert len(page.all("img")) == 3


def dead(fitted, blobs, decoder=None):
    teacher = FrozenEstimator(fitted.teacher_)
    encoder = FrozenEstimator(TrainedEncoder(weak, decoder))
    return CollapseCertifier(encoder, teacher=teacher, witness="linear").fit(blobs[::2])


def weak(X):
    """Give means that vary by a hundredth of the posterior's noise."""
    mean = X[:, :4] / 100
    return mean, np.zeros_like(mean)


@pytest.mark.slow
def test_a_dead_code_does_not_look_good_although_its_mean_is_certified(
    fitted, blobs, tmp_path
):
    other = dead(fitted, blobs)
    assert other.certify(blobs[1::2]).verdict == "certified"
    _, page = read(write_report(other, blobs[1::2], tmp_path / "dead.html"))
    assert first_card(page) == ["Has the VAE collapsed?", "\u2717 collapsed"]
    assert "Collapsed: drawn codes carry at most 0.0" in page.text
    # The certificate of the mean is shown without a color or a tick.
    assert "certified" in page.text
    assert "\u2713" not in page.text
    assert looks(page) == ["diagnosis collapsed", "", "inconclusive", ""]
    (bracket,) = [one for one in page.all("img") if "drawn code" in one["alt"]]
    assert "collapsed: at most 0.0" in bracket["alt"]
    assert page.all("img")[0] == bracket


@pytest.mark.slow
def test_a_mean_does_not_look_good_where_a_diagnosis_is_missing(
    fitted, blobs, tmp_path
):
    def broken(Z):
        raise RuntimeError(ATTACK)

    other = dead(fitted, blobs, broken)
    text, page = read(write_report(other, blobs[1::2], tmp_path / "broken.html"))
    assert other.certify(blobs[1::2]).verdict == "certified"
    assert first_card(page) == ["Has the VAE collapsed?", "not computed"]
    assert "\u2713" not in page.text
    assert ATTACK in page.text
    assert ATTACK not in text


def test_a_healthy_code_looks_good_at_once(written):
    _, page = read(written)
    assert first_card(page) == ["Has the VAE collapsed?", "\u2713 informative"]
    assert looks(page) == ["diagnosis informative", *["certified"] * 3]


def first_card(page):
    """Return the first question of the report and its answer."""
    _, _, report = page.text.partition("Diagnosis")
    return [line for line in report.splitlines() if line][:2]


def looks(page):
    boxes = [box["class"] for box in page.all("div") if "card" in box["class"]]
    return [box.removeprefix("card").strip() for box in boxes]


@pytest.mark.slow
def test_warnings_stand_in_the_report_and_are_given(fitted, blobs, tmp_path):
    other = foreign(fitted, noise=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.fit(blobs[::2])
    with pytest.warns(UnstableEncoderWarning) as caught:
        path = write_report(other, blobs[1::2], tmp_path / "drawn.html")
    _, page = read(path)
    assert "Warnings" in page.text
    assert any(str(one.message) in page.text for one in caught)


@pytest.mark.slow
def test_samples_of_the_fit_as_images(fitted, blobs, tmp_path):
    path = tmp_path / "fit.html"
    shape = (1, 2, 3)
    _, page = read(write_report(fitted, blobs[::2], path, image_shape=shape))
    # Drawn codes and reconstructions are certified on other samples only.
    assert page.text.count("that equal samples of fit") == 2
    assert str(fitted.certify(blobs[::2])) in page.text
    (picture,) = [one for one in page.all("img") if "reconstructions" in one["alt"]]
    assert int(picture["width"]) > 3 * int(picture["height"])


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


def test_text_has_enough_contrast_in_color_and_so_in_gray(written):
    text, _ = read(written)
    colors = set(re.findall(r"[^-]color: (#\w+)", text))
    assert len(colors) >= 4

    def luminance(color):
        digits = color[1:] if len(color) == 7 else "".join(2 * c for c in color[1:])
        srgb = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
        linear = np.where(
            srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    # On the darkest background of the page.
    paper = luminance("#eeeeee") + 0.05
    assert all(paper / (luminance(color) + 0.05) > 4.5 for color in colors)


@pytest.mark.slow
def test_a_report_that_cannot_be_written_leaves_an_older_one(
    fitted, blobs, tmp_path, monkeypatch
):
    path = tmp_path / "report.html"
    path.write_text("older", encoding="utf-8")

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="disk full"):
        write_report(foreign(fitted, noise=0).fit(blobs[::2]), blobs[1::2], path)
    assert path.read_text(encoding="utf-8") == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_what_is_no_certifier_or_no_sample_makes_no_report(fitted, blobs, tmp_path):
    path = tmp_path / "none.html"
    with pytest.raises(ValueError, match="must be a CollapseCertifier, got Pipeline"):
        write_report(make_pipeline(PCA(2)), blobs, path)
    with pytest.raises(ValueError, match="not fitted"):
        write_report(CollapseCertifier(), blobs, path)
    with pytest.raises(ValueError, match="NaN"):
        write_report(fitted, np.full((4, 6), np.nan), path)
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
