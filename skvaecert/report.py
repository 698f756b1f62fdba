"""HTML report on a fitted certifier: one file that begins with the diagnosis."""

from __future__ import annotations

import os
import platform
import uuid
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert._estimator import warn_user
from skvaecert._samples import count_samples, digest_samples, take_samples
from skvaecert.diagnosis import Diagnosis
from skvaecert.plotting import (
    ContributionDisplay,
    InformationBracketDisplay,
    LatentMapDisplay,
    MarginHistoryDisplay,
    ReconstructionDisplay,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_DIAGNOSIS, _DIAGNOSIS_QUESTION = "diagnosis", "Has the VAE collapsed?"
_QUESTIONS = {
    "mean": "Does the latent mean depend on the input?",
    "sampled": "Do drawn codes carry information about the teacher's clusters?",
    "round_trip": "Do reconstructions still show the teacher's clusters?",
}
# Symbols of verdicts and states. Their colors are in the style sheet.
_SYMBOLS = {
    "informative": "&#10003;",
    "collapsed": "&#10007;",
    "ignored": "!",
    "undecided": "?",
    "certified": "&#10003;",
    "varies": "&#8800;",
    "constant": "&#10007;",
    "inconclusive": "?",
}
# Labels of the fields of a certificate.
_FIELDS = {
    "verdict": "verdict",
    "margin": "margin (nats)",
    "margin_low": "lower end of its interval over draws (nats)",
    "margin_high": "upper end of its interval over draws (nats)",
    "confidence": "confidence of the interval",
    "teacher_information": "teacher information, the largest possible margin (nats)",
    "relative_margin": "margin / teacher information",
    "accuracy": "probability of guessing the teacher's cluster from a drawn code, at "
    "least",
    "alignment_loss": "alignment loss (nats)",
    "tolerance": "tolerance: error that rounding may cause (nats)",
    "safety_margin": "safety margin: required in addition (nats)",
    "dispersion": "distance of the latent means from their average (latent units)",
    "dispersion_bound": "certified lower bound on this distance (latent units)",
    "dispersion_in_noise": "this distance, in units of the posterior's noise",
    "latent_noise": "change that rounding or another batch may cause (latent units)",
    "witness": "witness",
    "n_samples": "samples",
    "n_components": "teacher components",
    "latent_dim": "latent dimensions",
}
_WITNESSES = {
    "raw": "The witness is the fixed simplex. It is not fitted.",
    "procrustes": "The witness is the simplex, rotated, shifted and scaled to fit half "
    "of the samples of fit. This is not the papers' certificate, but it proves as much "
    "about other samples.",
    "linear": "The witness is a softmax of a linear map, fitted on half of the samples "
    "of fit. This is not the papers' certificate, but it proves as much about other "
    "samples.",
}
_ASSUMED = {
    "mean": "The error of each latent mean is at most 32 machine epsilons of float32 "
    "at magnitude max(1, |mean|). If all values of a dimension fit in a 16-bit type, "
    "the bound is 8 machine epsilons of this type. If encoding some samples twice "
    "gives a larger difference, that difference is the bound. This is an assumption "
    "about encoders, not a theorem. It leads to a tolerance of {} nats.",
    "sampled": "For drawn codes: q(z|x) is the Gaussian whose mean and standard "
    "deviation the encoder returns, both with an error of the same size (tolerance {} "
    "nats). The verdict is about a lower bound on the margin. This bound is too high "
    "for at most three in ten million draws.",
    "round_trip": "For reconstructions: the decoder sees only the code, and the "
    "teacher is smooth at the scale of rounding. This was tested on some samples. Four "
    "times the largest change in the loss of a sample is the tolerance of {} nats.",
}
_ASSUMED_OF_CODES = (
    "For the diagnosis: q(z|x) is the Gaussian whose mean and standard deviation the "
    "encoder returns. The bounds on drawn codes hold with the confidence in the table, "
    "over the draws. The bound on the decoder's outputs is an estimate."
)
_NOT_SAID = (
    "“Inconclusive” does not prove collapse. A healthy code may vary in ways that the "
    "witness does not read.",
    "A latent mean that varies, or is certified, does not prove a useful code. The "
    "noise of the posterior may hide all of its variation. The diagnosis addresses "
    "this.",
    "The report says nothing about samples that were not scored. For the population "
    "that they were drawn from, use skvaecert.bounds and "
    "information.population_information.",
    "The report says nothing about the quality of reconstructions or generated "
    "samples, and proves nothing about single latent dimensions. Some of them may be "
    "unused.",
    "The statements are about the encoder as computed here, with these versions. An "
    "encoder that turns rounding errors of its input into large outputs is not "
    "constant as computed.",
    "Pictures prove nothing.",
)
_PACKAGES = (
    "skvaecert",
    "numpy",
    "scipy",
    "scikit-learn",
    "torch",
    "skorch",
    "matplotlib",
)
# Maximum numbers of samples in the pictures, and in the picture of reconstructions.
_MOST_DRAWN = 2000
_MOST_RECONSTRUCTED = 10
_DPI = 180
_MOST_NAMES = 100
# Color alone carries no meaning: cards also have words, symbols or dashed borders.
_STYLE = """
:root { color-scheme: light; }
body { font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 50rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #767676; }
h3 { margin: 0 0 .25rem; font-size: 1.05rem; }
.card { border: 1px solid #767676; border-left: .5rem solid #767676; margin: 1rem 0;
  padding: .75rem 1rem; border-radius: .25rem; break-inside: avoid; }
.card p { margin: .25rem 0; }
.verdict { font-weight: 700; text-transform: uppercase; letter-spacing: .04em; }
.informative, .certified { border-left-color: #0b5d3b; }
.informative .verdict, .certified .verdict { color: #0b5d3b; }
.varies { border-left-color: #0b4a8a; } .varies .verdict { color: #0b4a8a; }
.collapsed, .constant { border-left-color: #8a1020; }
.collapsed .verdict, .constant .verdict { color: #8a1020; }
.ignored { border-left-color: #7a4b00; }
.undecided, .inconclusive { border-left: .5rem dashed #7a4b00; }
.ignored .verdict, .undecided .verdict, .inconclusive .verdict { color: #7a4b00; }
.diagnosis .verdict { font-size: 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { border: 1px solid #767676; padding: .3rem .6rem; text-align: left;
  vertical-align: top; overflow-wrap: normal; }
th { font-weight: 600; } tbody th { min-width: 8rem; } thead th { background: #eee; }
td { white-space: nowrap; }
figure { margin: 1.5rem 0; break-inside: avoid; }
img { max-width: min(100%, 40rem); height: auto; display: block; }
figcaption { color: #444; font-size: .95rem; }
pre { background: #f4f4f4; border: 1px solid #767676; padding: .75rem; overflow-x: auto;
  font-size: .875rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; overflow-wrap: anywhere; }
@media print { body { max-width: none; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""


def write_report(
    certifier: Any,
    X: ArrayLike,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    teacher_proba: ArrayLike | None = None,
    image_shape: tuple[int, int, int] | None = None,
    n_draws: int = 8,
    confidence: float = 0.95,
) -> Path:
    """Diagnose and certify samples, and write the results to one HTML file.

    The file begins with the diagnosis and its picture. The certificates of each kind
    and all values follow. Then come pictures of the contributions of samples and
    clusters, the latent means, the reconstructions and the training. The file ends with
    the assumptions, the limits of the statements, and the parameters, versions and
    SHA-256 of the samples needed to reproduce the report. If a part could not be
    computed, the file gives the reason. It contains no script and loads nothing.

    Parameters
    ----------
    certifier : CollapseCertifier
        Fitted.
    X : array-like of shape (n_samples, n_features)
        Samples, preferably held out. The pictures show at most 2,000 of them.
    path : str or path-like
        File to write. An existing file is replaced in one step. Its folder must exist.
    title : str or None, default=None
        Title of the page. If None, it is "Report on" and the class of the encoder.
    teacher_proba : array-like of shape (n_samples, n_components), default=None
        Teacher's posteriors of `X`. If None, the fitted teacher computes them.
    image_shape : (channels, height, width) or None, default=None
        Shape of samples that are images with 1 or 3 channels. If None, it is that of
        the encoder.
    n_draws : int, default=8
        As in :meth:`skvaecert.CollapseCertifier.certify`.
    confidence : float, default=0.95
        As in :meth:`skvaecert.CollapseCertifier.certify`.

    Returns
    -------
    pathlib.Path
        Path of the file.

    Raises
    ------
    ValueError
        If the certifier is of another class or not fitted, or if no kind of certificate
        can be computed for these samples. Then nothing is written.
    ImportError
        If matplotlib is not installed.

    Warns
    -----
    UnstableEncoderWarning, KnownSamplesWarning
        Like `certify` and `diagnose`. The report contains them too.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.report import write_report
    >>> X = np.unique(load_iris().data, axis=0)
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X[::2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_report(certifier, X[1::2], Path(folder) / "report.html")
    ...     "Informative: " in path.read_text(encoding="utf-8")
    True
    """
    _check_certifier(certifier)
    findings = _compute_findings(certifier, X, teacher_proba, n_draws, confidence)
    name = type(certifier.estimator_).__name__
    page = _page(
        f"Report on {name}" if title is None else str(title),
        [
            _diagnosis(name, findings),
            _certificates(findings),
            _values(findings),
            _pictures(certifier, X, teacher_proba, image_shape),
            _assumptions(certifier, findings),
            _provenance(certifier, X, teacher_proba),
        ],
        n_samples=count_samples(X),
    )
    return _write(Path(path), page)


@dataclass(frozen=True)
class _Findings:
    """Diagnosis, certificates by kind, reasons for missing results, and warnings."""

    diagnosis: Diagnosis | None
    certificates: Mapping[str, Certificate]
    missing: Mapping[str, str]
    warnings: list[str]


def _check_certifier(certifier: Any) -> None:
    if not hasattr(certifier, "certify"):
        raise ValueError(
            f"certifier must be a CollapseCertifier, got {type(certifier).__name__}. "
            "For a pipeline that ends in one, pass its last step, and the samples that "
            "the steps before it return."
        )
    check_is_fitted(certifier)


def _compute_findings(
    certifier: Any,
    X: ArrayLike,
    teacher_proba: ArrayLike | None,
    n_draws: int,
    confidence: float,
) -> _Findings:
    options: dict[str, Any] = {
        "teacher_proba": teacher_proba,
        "n_draws": n_draws,
        "confidence": confidence,
    }
    attempts = {
        kind: partial(certifier.certify, X, kind=kind, **options) for kind in _QUESTIONS
    }
    diagnose = partial(certifier.diagnose, X, teacher_proba=teacher_proba)
    # Record the warnings for the page, and issue them again below.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, errors = _try_all({_DIAGNOSIS: diagnose} | attempts)
    for warning in caught:
        warn_user(warning.message)
    diagnosis = found.pop(_DIAGNOSIS, None)
    if not found:
        # kind="mean" requires least, so its error explains most.
        raise errors["mean"]
    # Several certificates cause the same warning: list it once.
    messages = list(dict.fromkeys(str(warning.message) for warning in caught))
    missing = {name: str(error) for name, error in errors.items()}
    return _Findings(diagnosis, found, missing, messages)


def _try_all(
    attempts: Mapping[str, Callable[[], Any]],
) -> tuple[dict[str, Any], dict[str, Exception]]:
    """Return results and errors by name. A foreign encoder can raise any error."""
    found, errors = {}, {}
    for name, attempt in attempts.items():
        try:
            found[name] = attempt()
        except Exception as error:
            errors[name] = error
    return found, errors


def _page(title: str, sections: Iterable[str], n_samples: int) -> str:
    # Texts in the page may come from a stranger's model: it must load and run nothing.
    now = datetime.now(UTC)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{n_samples:,} samples, examined <time datetime="{now:%Y-%m-%dT%H:%M:%SZ}">{
        now:%Y-%m-%d
%H:%M} UTC</time> by skvaecert {escape(_version("skvaecert"))}. All information is in
nats (natural logarithms).</p>
</header>
<main>
{"".join(sections)}</main>
</body>
</html>
"""


def _section(heading: str, content: str) -> str:
    name = heading.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{heading}</h2>\n'
        f"{content}</section>\n"
    )


def _list(items: Iterable[str]) -> str:
    return (
        "<ul>\n" + "".join(f"<li>{escape(item)}</li>\n" for item in items) + "</ul>\n"
    )


def _diagnosis(name: str, findings: _Findings) -> str:
    found = findings.diagnosis
    if found is None:
        content = _empty_card(_DIAGNOSIS_QUESTION, findings.missing[_DIAGNOSIS])
    else:
        content = _card(
            _DIAGNOSIS_QUESTION, found.state, str(found), f"diagnosis {found.state}"
        ) + _bracket(name, found)
    return _section(_DIAGNOSIS.capitalize(), content)


def _certificates(findings: _Findings) -> str:
    cards = (
        _certificate_card(kind, findings)
        if kind in findings.certificates
        else _empty_card(question, findings.missing[kind])
        for kind, question in _QUESTIONS.items()
    )
    warned = ""
    if findings.warnings:
        warned = f"<h3>Warnings</h3>\n{_list(findings.warnings)}"
    return _section("Certificates", "".join(cards) + warned)


def _certificate_card(kind: str, findings: _Findings) -> str:
    certificate = findings.certificates[kind]
    verdict = certificate.verdict
    # A varying mean is not a good sign if noise hides it from all drawn codes.
    found = findings.diagnosis
    may_be_hidden = found is None or found.state == "collapsed"
    is_plain = kind == "mean" and verdict != "constant" and may_be_hidden
    look = "" if is_plain else verdict
    return _card(_QUESTIONS[kind], verdict, str(certificate), look)


def _card(question: str, verdict: str, text: str, look: str) -> str:
    """Return a box in the style `look`. If that is empty, the box has no symbol."""
    symbol = f'<span aria-hidden="true">{_SYMBOLS[verdict]}</span> ' if look else ""
    return (
        f'<div class="card {look}">\n<h3>{question}</h3>\n'
        f'<p class="verdict">{symbol}{verdict}</p>\n<p>{escape(text)}</p>\n</div>\n'
    )


def _empty_card(question: str, reason: str) -> str:
    return (
        f'<div class="card">\n<h3>{question}</h3>\n'
        f'<p class="verdict">not computed</p>\n<p>{escape(reason)}</p>\n</div>\n'
    )


def _values(findings: _Findings) -> str:
    certificates = findings.certificates
    rows = (
        (label, [_certificate_field(field, one) for one in certificates.values()])
        for field, label in _FIELDS.items()
    )
    kinds = [kind.replace("_", " ") for kind in certificates]
    tables = [_table("Fields of the certificates", kinds, rows)]
    if findings.diagnosis is not None:
        rows = (
            (label, [value]) for label, value in _diagnosis_fields(findings.diagnosis)
        )
        tables.insert(0, _table("Fields of the diagnosis", ["value"], rows))
    note = "<p>n/a: unknown, or this kind of certificate has no such value.</p>\n"
    return _section("Values", note + "".join(tables))


def _table(
    caption: str, columns: Iterable[str], rows: Iterable[tuple[str, Iterable[str]]]
) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ["field", *columns])
    body = "".join(
        f'<tr><th scope="row">{label}</th>'
        + "".join(f"<td>{escape(value)}</td>" for value in values)
        + "</tr>\n"
        for label, values in rows
    )
    return (
        # The tabindex lets the keyboard scroll a table that is wider than the page.
        f'<div class="wide" role="region" aria-label="{caption}" tabindex="0">\n'
        f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _diagnosis_fields(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    """Yield labels and values of a diagnosis."""
    codes, decoder = diagnosis.information, diagnosis.decoder
    kl = diagnosis.kl_per_dimension
    values = {
        "state": diagnosis.state,
        "information of drawn codes, at least (nats)": codes and codes.low,
        "information of drawn codes, at most (nats)": codes and codes.high,
        "the largest possible on these samples (nats)": codes and codes.limit,
        "confidence of these bounds": codes and str(codes.confidence),
        "negligible up to (nats)": diagnosis.negligible,
        "information of outputs about the code, at most, estimated (nats)": decoder
        and decoder.high,
        "mean KL to the prior (nats)": None if kl is None else float(kl.sum()),
        "active units": f"{diagnosis.active_units} of {diagnosis.latent_dim}",
        "kl_weight at which a linear VAE collapses": diagnosis.threshold,
    }
    for label, value in values.items():
        yield label, _formatted(value)


def _certificate_field(field: str, certificate: Certificate) -> str:
    drawn = certificate.confidence is not None
    # Without draws, both ends of the interval repeat the margin. The bound on the
    # dispersion is 0 for other kinds.
    exists = {
        "margin_low": drawn,
        "margin_high": drawn,
        "dispersion_bound": certificate.kind == "mean",
    }
    value = getattr(certificate, field) if exists.get(field, True) else None
    # As text, since four digits would turn 0.99999 into 1.
    return _formatted(str(value) if field == "confidence" and drawn else value)


def _formatted(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pictures(
    certifier: Any,
    X: ArrayLike,
    teacher_proba: ArrayLike | None,
    image_shape: tuple[int, int, int] | None,
) -> str:
    n_samples = count_samples(X)
    n_drawn = min(n_samples, _MOST_DRAWN)
    # Evenly spaced, since samples are often sorted by class.
    index = np.unique(np.linspace(0, n_samples - 1, n_drawn).astype(np.intp))
    samples = take_samples(X, index)
    proba = None if teacher_proba is None else take_samples(teacher_proba, index)
    drawn: dict[str, Any] = {"X": samples, "teacher_proba": proba}
    note = f" Shown: {len(index):,} samples." if len(index) < n_samples else ""
    figures = [
        _contributions(certifier, drawn, note),
        _components(certifier, drawn, note),
        _latent_map(certifier, drawn, note),
        _reconstructions(certifier, samples, image_shape),
        _history(certifier),
    ]
    return _section("Pictures", "".join(figures))


def _bracket(name: str, diagnosis: Diagnosis) -> str:
    if diagnosis.information is None:
        return ""

    def draw(figure: Figure) -> str:
        display = InformationBracketDisplay.from_diagnoses(
            {name: diagnosis}, ax=figure.subplots()
        )
        return (
            "Bar of the information of a drawn code about its sample: "
            f"{display.labels_[0].get_text()}; at most "
            f"{display.limit[0]:.3g} nats are possible on these samples."
        )

    caption = (
        "Information of a drawn code about its sample. It lies between the ends of the "
        "full and of the hatched bar. The hatched bar may be as narrow as a line."
    )
    return _figure("the information of drawn codes", draw, caption, (5.4, 2.3))


def _contributions(certifier: Any, drawn: dict[str, Any], note: str) -> str:
    def draw(figure: Figure) -> str:
        ax = figure.subplots()
        display = ContributionDisplay.from_estimator(certifier, **drawn, ax=ax)
        return (
            "Histogram of the contributions of samples to the margin: mean "
            f"{display.margin:.3g} nats, {display.share_below:.1%} of samples below 0."
        )

    caption = (
        "Contribution of each sample to the margin of the latent means. For samples "
        "below 0, the witness predicts the teacher's posterior worse than the average "
        f"posterior does.{note}"
    )
    return _figure("contributions of samples", draw, caption)


def _components(certifier: Any, drawn: dict[str, Any], note: str) -> str:
    def draw(figure: Figure) -> str:
        display = ContributionDisplay.from_estimator(
            certifier, **drawn, ax=figure.subplots(), kind="components"
        )
        values = np.asarray(display.component_contributions)
        return (
            f"Bars of the contributions of {len(values)} teacher's clusters, from "
            f"{values.min():.3g} to {values.max():.3g} nats."
        )

    caption = (
        "Contribution of each cluster of the teacher to the margin of the latent "
        "means, and the contribution if the witness were the teacher. A single bar "
        f"proves nothing.{note}"
    )
    return _figure("contributions of clusters", draw, caption)


def _latent_map(certifier: Any, drawn: dict[str, Any], note: str) -> str:
    def draw(figure: Figure) -> str:
        ax = figure.subplots()
        display = LatentMapDisplay.from_estimator(certifier, **drawn, ax=ax)
        return (
            f"Scatter plot of {len(display.component)} latent means, marked by "
            f"{len(display.points_)} clusters of the teacher, with a line for each "
            "direction in which the witness reads a cluster."
        )

    caption = (
        "Latent means, in the two principal directions of the space that the witness "
        "reads. Color and marker show the teacher's cluster. Lines point where the "
        f"witness reads each cluster.{note}"
    )
    return _figure("the latent means", draw, caption, (5.4, 4.6))


def _reconstructions(
    certifier: Any, samples: Any, image_shape: tuple[int, int, int] | None
) -> str:
    if not hasattr(certifier, "inverse_transform"):
        return ""

    def draw(figure: Figure) -> str:
        display = ReconstructionDisplay.from_estimator(
            certifier,
            samples,
            n_samples=_MOST_RECONSTRUCTED,
            image_shape=image_shape,
            ax=figure.subplots(),
        )
        if display.image_shape is not None:
            # Two rows of images would leave most of a higher figure empty.
            figure.set_size_inches(5.4, 1.4)
        low, high = display.error.min(), display.error.max()
        return (
            f"{len(display.error)} samples above their reconstructions; root mean "
            f"square error {low:.3g} to {high:.3g}."
        )

    caption = "Samples, and below them the decoder's output for their latent means."
    return _figure("reconstructions", draw, caption, (5.4, 4.4))


def _history(certifier: Any) -> str:
    history = getattr(certifier.estimator_, "history_", None)
    if not history:
        return ""

    def draw(figure: Figure) -> str:
        ax = figure.subplots()
        MarginHistoryDisplay(history).plot(ax)
        # On given axes, the display draws no legend.
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        first, last = history[0]["margin"], history[-1]["margin"]
        return (
            f"Margin after each of {len(history)} epochs: {first:.3g} nats after the "
            f"first, {last:.3g} after the last."
        )

    caption = (
        "Margin during training, on the training samples. A constant mean is at 0 or "
        "below."
    )
    return _figure("the training", draw, caption, (5.4, 3.2))


def _figure(
    what: str,
    draw: Callable[[Figure], str],
    caption: str,
    size: tuple[float, float] = (5.4, 3.8),
) -> str:
    """Return a picture for the page. A foreign model may fail to give its values."""
    from matplotlib.figure import Figure

    # Without pyplot, which would keep the figure open.
    figure = Figure(figsize=size, layout="constrained")
    try:
        alt = draw(figure)
    except Exception as error:
        return f"<p>Not drawn: {what}. {escape(str(error))}</p>\n"
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, facecolor="white")
    data = b64encode(stream.getvalue()).decode("ascii")
    width, height = (round(_DPI * inches) for inches in figure.get_size_inches())
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


def _assumptions(certifier: Any, findings: _Findings) -> str:
    # That of the mean, if it could be computed.
    mean = next(iter(findings.certificates.values()))
    assumed = [
        "The statements are only about the samples of this report. With the fixed "
        "witness, “mean” states the same whether or not encoder and teacher were "
        "trained on these samples. “sampled”, “round trip” and fitted witnesses reject "
        "samples of fit.",
        f"{_teacher_name(certifier)} determines which differences between samples "
        f"count. Its information on these samples, {mean.teacher_information:.3g} "
        "nats, is the largest possible margin.",
        _WITNESSES.get(certifier.witness_.name, certifier.witness_.name),
        _ASSUMED_OF_CODES,
        *(
            _ASSUMED[kind].format(f"{one.tolerance:.2g}")
            for kind, one in findings.certificates.items()
        ),
    ]
    return _section("What was assumed", _list(assumed)) + _section(
        "What this does not say", _list(_NOT_SAID)
    )


def _teacher_name(certifier: Any) -> str:
    if certifier.teacher_ is None:
        return "The array of posteriors passed as teacher_proba"
    return f"The teacher, a fitted {type(certifier.teacher_).__name__},"


def _provenance(certifier: Any, X: ArrayLike, teacher_proba: ArrayLike | None) -> str:
    """Return the section on how to reproduce the report."""
    facts = {"Samples": _shape_and_digest(X)}
    if teacher_proba is not None:
        facts["Posteriors"] = _shape_and_digest(teacher_proba)
    names = getattr(certifier, "feature_names_in_", None)
    if names is not None:
        more = len(names) - _MOST_NAMES
        shown = ", ".join(map(str, names[:_MOST_NAMES]))
        facts["Features"] = shown + (f" and {more} more" if more > 0 else "")
    seeds = {
        name: value
        for name, value in certifier.get_params().items()
        if name.endswith("random_state")
    }
    facts["Seeds"] = ", ".join(f"{name}={value!r}" for name, value in seeds.items())
    facts["Versions"] = ", ".join(
        [
            f"Python {platform.python_version()}",
            *(f"{name} {_version(name)}" for name in _PACKAGES),
        ]
    )
    facts["Machine"] = f"{platform.system()}, {platform.machine()}"
    items = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>\n" for name, value in facts.items()
    )
    # Otherwise scikit-learn shortens long descriptions.
    code = certifier.__repr__(N_CHAR_MAX=10**9)
    return _section(
        "How to reproduce it",
        "<p>Fit this on the training samples, which are not part of this report:"
        f'</p>\n<pre tabindex="0"><code>{escape(code)}</code></pre>\n'
        f"<dl>\n{items}</dl>\n",
    )


def _shape_and_digest(X: ArrayLike) -> str:
    """Return the shape and the SHA-256 of an array, as in a saved certificate."""
    # One sample suffices: X may be on disk and too large to be read at once.
    shape = (count_samples(X), np.asarray(take_samples(X, slice(0, 1))).shape[1])
    return f"shape {shape}; SHA-256 of the values: {digest_samples(X)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _write(path: Path, page: str) -> Path:
    """Write to a temporary file first, so that the file is always complete."""
    # A random name, because two processes may write the same report.
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_text(page, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return path
