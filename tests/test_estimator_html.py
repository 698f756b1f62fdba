"""What a notebook shows of an estimator."""

import copy
from email.message import Message
from html.parser import HTMLParser

import pytest
import sklearn
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher

VOID = {"br", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """Reads HTML, and fails where tags are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.links, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open[-1:] not in (["style"], ["script"]) else ""


def test_a_fitted_certifier_shows_its_verdict(fitted):
    pages = [fitted._repr_html_(), fitted._repr_mimebundle_()["text/html"]]
    for page in map(Page, pages):
        assert str(fitted.certificate_) in page.text
        assert "CollapseCertifier" in page.text
    # A refit changes it.
    careful = copy.copy(fitted)
    careful.certificate_ = fitted.certify([[0.0] * 6])
    assert str(careful.certificate_) in Page(careful._repr_html_()).text
    assert str(fitted.certificate_) not in Page(careful._repr_html_()).text


@pytest.mark.parametrize(
    "estimator",
    [
        CollapseCertifier(CertifiedVAE(GMMTeacher(3))),
        make_pipeline(StandardScaler(), CollapseCertifier()),
    ],
)
def test_what_is_not_fitted_has_no_verdict(estimator):
    assert "samples" not in Page(estimator._repr_html_()).text


def test_text_stays_text(fitted):
    with sklearn.config_context(display="text"):
        assert fitted._repr_mimebundle_() == {"text/plain": repr(fitted)}
        assert not hasattr(fitted, "_repr_html_")


@pytest.mark.parametrize("kind", [CollapseCertifier, CertifiedVAE, GMMTeacher])
def test_links_go_to_the_documentation_that_the_metadata_name(kind, monkeypatch):
    metadata = Message()
    monkeypatch.setattr("skvaecert._estimator.metadata", lambda name: metadata)
    assert Page(kind()._repr_html_()).links == []
    metadata["Project-URL"] = "Source, https://host.invalid/source"
    assert Page(kind()._repr_html_()).links == []
    metadata["Project-URL"] = "Documentation, https://host.invalid/docs/"
    links = Page(kind()._repr_html_()).links
    page = f"https://host.invalid/docs/reference/skvaecert.{kind.__name__}.html"
    assert {link.partition("#")[0] for link in links} == {page}
