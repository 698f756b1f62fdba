"""A fitted certifier's report: one HTML file with verdicts, numbers and pictures."""

import os
import platform
import uuid
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import _num_samples, check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert._estimator import warn_user
from skvaecert._samples import digest_samples, take_samples
from skvaecert.plotting import (
    ContributionDisplay,
    InformationBracketDisplay,
    LatentMapDisplay,
    MarginHistoryDisplay,
    ReconstructionDisplay,
)
from skvaecert.plotting._style import image_shape_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_report"]

_QUESTIONS = {
    "mean": "Does the latent mean depend on the input?",
    "sampled": "Do drawn codes carry information on the input?",
    "round_trip": "Do reconstructions still show what the teacher sees?",
}
_SYMBOLS = {"certified": "&#10003;", "inconclusive": "?", "constant": "&#10007;"}
# Fields of a certificate, and what they are called.
_NUMBERS = {
    "verdict": "verdict",
    "margin": "margin (nats)",
    "margin_low": "low end of its interval over draws (nats)",
    "margin_high": "high end of its interval over draws (nats)",
    "confidence": "confidence of the interval",
    "information_bound": "upper bound on the information (nats)",
    "teacher_information": "teacher information, the most a margin can be (nats)",
    "relative_margin": "margin / teacher information",
    "alignment_loss": "alignment loss (nats)",
    "tolerance": "tolerance: what rounding could have added (nats)",
    "safety_margin": "safety margin: what was asked for on top (nats)",
    "dispersion": "distance of the means from their average (latent units)",
    "dispersion_bound": "that distance, certified to be at least (latent units)",
    "witness": "witness",
    "n_samples": "rows",
    "n_components": "teacher components",
    "latent_dim": "latent dimensions",
}
_WITNESSES = {
    "raw": "The witness that reads the code is the fixed simplex, which is fitted on "
    "nothing.",
    "procrustes": "The witness that reads the code is the simplex, turned, shifted and "
    "scaled to half of the rows of fit: not the papers' certificate, but it proves as "
    "much about other rows.",
    "linear": "The witness that reads the code is a softmax of a linear map, fitted on "
    "half of the rows of fit: not the papers' certificate, but it proves as much about "
    "other rows.",
}
_ASSUMED = {
    "mean": "Each latent mean is right to 32 machine epsilons of float32 at magnitude "
    "max(1, |mean|), to 8 of 16 bits where all values of a dimension fit in those, or "
    "to what encoding some of the rows twice has shown, if that is more. This is an "
    "assumption about encoders, not a theorem; it makes a tolerance of {} nats.",
    "sampled": "For drawn codes: q(z|x) is the Gaussian whose mean and deviation the "
    "encoder returns, both right to the same rounding (tolerance {} nats). The verdict "
    "asks for five standard errors over draws, which luck exceeds three times in ten "
    "million.",
    "round_trip": "For reconstructions: the teacher is smooth at the scale of "
    "rounding. That was tried on some rows, and four times the most that the loss of "
    "one changed is the tolerance of {} nats.",
}
_NOT_SAID = (
    "“Inconclusive” is no proof of collapse: a healthy code may vary in ways that the "
    "witness does not read.",
    "“Not constant” is not “useful”: means may differ by less than the posterior's "
    "noise. The question on drawn codes is about that.",
    "Nothing is said of rows that were not scored. For the population that they were "
    "drawn from there are the confidence bounds of skvaecert.bounds.",
    "Nothing is said of single latent dimensions, of which some may be unused, nor of "
    "how good reconstructions or samples are.",
    "The statements are about the encoder as computed here, on these versions: one "
    "that turns rounding errors of its input into large outputs is not constant as "
    "computed.",
    "Pictures show, and prove nothing.",
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
# Rows that are drawn, where there are more.
_DRAWN_ROWS = 2000
_SHOWN_ROWS = 10
_DPI = 180
_MOST_NAMES = 100
_STYLE = """
:root { color-scheme: light; }
body { font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 50rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #767676; }
h3 { margin: 0 0 .25rem; font-size: 1.05rem; }
.card { border: 1px solid #767676; border-left: .5rem solid #767676; margin: 1rem 0;
  padding: .75rem 1rem; border-radius: .25rem; break-inside: avoid; }
.card p { margin: .25rem 0; }
.certified { border-left-color: #0b5d3b; } .constant { border-left-color: #8a1020; }
.inconclusive { border-left: .5rem dashed #7a4b00; }
.verdict { font-weight: 700; text-transform: uppercase; letter-spacing: .04em; }
.certified .verdict { color: #0b5d3b; } .constant .verdict { color: #8a1020; }
.inconclusive .verdict { color: #7a4b00; }
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
    """Certify rows and write what came out to an HTML file that needs no other.

    The file holds the three kinds of certificates, and for those that cannot be had
    the reason; their numbers; pictures of the information bracket, of what rows and
    components contribute, of latent means, of reconstructions and of the training,
    where there are any; what was assumed and what is not said; and parameters,
    versions and the SHA-256 of the rows, to make it again. It has no script and loads
    nothing.

    Parameters
    ----------
    certifier : CollapseCertifier
        Fitted.
    X : array-like of shape (n_samples, n_features)
        Rows, best such as were not in `fit`. At most 2,000 of them are drawn.
    path : str or path-like
        The file, which is replaced as a whole if there is one. Its folder must exist.
    title : str or None, default=None
        Of the page; "Report on ..." with the encoder's class when None.
    teacher_proba : array-like of shape (n_samples, n_components), default=None
        Posteriors to use in place of the teacher's.
    image_shape : (channels, height, width) or None, default=None
        For rows that are images of 1 or 3 channels; that of a CertifiedVAE when None.
    n_draws : int, default=8
        As in :meth:`skvaecert.CollapseCertifier.certify`.
    confidence : float, default=0.95
        As in :meth:`skvaecert.CollapseCertifier.certify`.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        If the certifier is none or not fitted, or no kind of certificate can be made
        of these rows; then nothing is written.
    ImportError
        If matplotlib is missing.

    Warns
    -----
    UnstableEncoderWarning
        As `certify`; it stands in the report too.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.report import write_report
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X[::2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_report(certifier, X[1::2], Path(folder) / "report.html")
    ...     "is not constant" in path.read_text(encoding="utf-8")
    True
    """
    _check_certifier(certifier)
    findings = _find(certifier, X, teacher_proba, n_draws, confidence)
    shape = image_shape or image_shape_of(certifier)
    name = type(certifier.estimator_).__name__
    page = _page(
        f"Report on {name}" if title is None else str(title),
        [
            _verdicts(findings),
            _numbers(findings.certificates),
            _pictures(certifier, X, teacher_proba, findings, shape),
            _assumptions(certifier, findings),
            _provenance(certifier, X, teacher_proba),
        ],
        n_samples=_num_samples(X),
    )
    return _write(Path(path), page)


@dataclass(frozen=True)
class _Findings:
    """Certificates by kind, why others are missing, and what was warned of."""

    certificates: Mapping[str, Certificate]
    missing: Mapping[str, str]
    warnings: list[str]


def _check_certifier(certifier: Any) -> None:
    if not hasattr(certifier, "certify"):
        raise ValueError(
            f"certifier must be a CollapseCertifier, got {type(certifier).__name__}. "
            "Of a pipeline that ends in one, give the last step, and rows as the steps "
            "before it return them."
        )
    check_is_fitted(certifier)


def _find(
    certifier: Any, X: ArrayLike, teacher_proba: ArrayLike | None, *drawing: Any
) -> _Findings:
    certificates, errors = {}, {}
    n_draws, confidence = drawing
    drawn = {"n_draws": n_draws, "confidence": confidence}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for kind in _QUESTIONS:
            given = {"kind": kind, "teacher_proba": teacher_proba, **drawn}
            # An encoder of others may fail in any way.
            try:
                certificates[kind] = certifier.certify(X, **given)
            except Exception as error:
                errors[kind] = error
    for warning in caught:
        warn_user(warning.message)
    if not certificates:
        raise errors["mean"]
    told = list(dict.fromkeys(str(warning.message) for warning in caught))
    return _Findings(certificates, {k: str(e) for k, e in errors.items()}, told)


def _page(title: str, sections: Iterable[str], n_samples: int) -> str:
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
<p>{n_samples:,} rows, certified <time datetime="{now:%Y-%m-%dT%H:%M:%SZ}">{
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


def _verdicts(findings: _Findings) -> str:
    cards = (
        _card(question, findings.certificates[kind])
        if kind in findings.certificates
        else _empty_card(question, findings.missing[kind])
        for kind, question in _QUESTIONS.items()
    )
    warned = ""
    if findings.warnings:
        warned = f"<h3>Warnings</h3>\n{_list(findings.warnings)}"
    return _section("Verdicts", "".join(cards) + warned)


def _card(question: str, certificate: Certificate) -> str:
    verdict = certificate.verdict
    return (
        f'<div class="card {verdict}">\n<h3>{question}</h3>\n'
        f'<p class="verdict"><span aria-hidden="true">{_SYMBOLS[verdict]}</span> '
        f"{verdict}</p>\n<p>{escape(str(certificate))}</p>\n</div>\n"
    )


def _empty_card(question: str, reason: str) -> str:
    return (
        f'<div class="card">\n<h3>{question}</h3>\n'
        f'<p class="verdict">not computed</p>\n<p>{escape(reason)}</p>\n</div>\n'
    )


def _numbers(certificates: Mapping[str, Certificate]) -> str:
    kinds = "".join(
        f'<th scope="col">{kind.replace("_", " ")}</th>' for kind in certificates
    )
    rows = "".join(_number_row(field, certificates.values()) for field in _NUMBERS)
    return _section(
        "Numbers",
        "<p>A column for each kind; n/a is what a kind does not have.</p>\n"
        '<div class="wide" role="region" aria-label="Table of numbers" tabindex="0">\n'
        "<table>\n<caption>Fields of the certificates</caption>\n"
        f'<thead><tr><th scope="col">number</th>{kinds}</tr></thead>'
        f"\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n",
    )


def _number_row(field: str, certificates: Iterable[Certificate]) -> str:
    cells = "".join(f"<td>{escape(_value(field, one))}</td>" for one in certificates)
    return f'<tr><th scope="row">{_NUMBERS[field]}</th>{cells}</tr>\n'


def _value(field: str, certificate: Certificate) -> str:
    drawn = certificate.confidence is not None
    is_told = {
        "margin_low": drawn,
        "margin_high": drawn,
        "dispersion_bound": certificate.kind == "mean",
    }
    return _told(getattr(certificate, field) if is_told.get(field, True) else None)


def _told(value: Any) -> str:
    if value is None:
        return "n/a"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _pictures(
    certifier: Any,
    X: ArrayLike,
    teacher_proba: ArrayLike | None,
    findings: _Findings,
    image_shape: tuple[int, int, int] | None,
) -> str:
    n_samples = _num_samples(X)
    index = np.unique(
        np.linspace(0, n_samples - 1, min(n_samples, _DRAWN_ROWS)).astype(np.intp)
    )
    rows = take_samples(X, index)
    proba = None if teacher_proba is None else take_samples(teacher_proba, index)
    given: dict[str, Any] = {"X": rows, "teacher_proba": proba}
    few = f" Drawn are {len(index):,} of the rows." if len(index) < n_samples else ""
    figures = [
        _bracket(findings.certificates),
        _contributions(certifier, few, given),
        _components(certifier, few, given),
        _map(certifier, few, given),
        _reconstructions(certifier, rows, image_shape),
        _history(certifier),
    ]
    return _section("Pictures", "".join(figures))


def _bracket(certificates: Mapping[str, Certificate]) -> str:
    sampled, mean = certificates.get("sampled"), certificates.get("mean")
    if sampled is None:
        return ""
    means = {} if mean is None else {"this model": mean}

    def draw(ax: "Axes") -> str:
        InformationBracketDisplay.from_certificates(
            {"this model": sampled}, means, ax=ax
        )
        return (
            f"Bar from {sampled.margin:.3g} to {_told(sampled.information_bound)} nats"
            f"; teacher information {sampled.teacher_information:.3g} nats"
            + (f"; margin of the means {mean.margin:.3g} nats." if mean else ".")
        )

    caption = (
        "Information of drawn codes: it is at least the left end, at most the right."
    )
    return _figure("the information bracket", draw, caption, (5.4, 2.6))


def _contributions(certifier: Any, few: str, given: dict[str, Any]) -> str:
    def draw(ax: "Axes") -> str:
        shown = ContributionDisplay.from_estimator(certifier, **given, ax=ax)
        return (
            "Histogram of what rows contribute to the margin: mean "
            f"{shown.margin:.3g} nats, {shown.share_below:.1%} of rows below 0."
        )

    caption = (
        "What each row adds to the margin of the means. Of rows below 0 the witness "
        f"says the wrong component.{few}"
    )
    return _figure("contributions of rows", draw, caption)


def _components(certifier: Any, few: str, given: dict[str, Any]) -> str:
    def draw(ax: "Axes") -> str:
        shown = ContributionDisplay.from_estimator(
            certifier, **given, ax=ax, kind="components"
        )
        values = np.asarray(shown.component_contributions)
        return (
            f"Bars of what {len(values)} teacher components contribute, from "
            f"{values.min():.3g} to {values.max():.3g} nats."
        )

    caption = (
        "What each teacher component adds to the margin of the means, beside the most "
        f"that the teacher itself would add. One bar alone proves nothing.{few}"
    )
    return _figure("contributions of components", draw, caption)


def _map(certifier: Any, few: str, given: dict[str, Any]) -> str:
    def draw(ax: "Axes") -> str:
        shown = LatentMapDisplay.from_estimator(certifier, **given, ax=ax)
        return (
            f"Scatter plot of {len(shown.component)} latent means, marked by "
            f"{len(shown.points_)} teacher components, with an arrow for each "
            "direction that the witness asks for."
        )

    caption = (
        "Latent means, in the two principal directions of what the witness sees. "
        "Colour and marker tell the teacher's component; arrows point where the "
        f"witness wants each.{few}"
    )
    return _figure("the latent means", draw, caption, (5.4, 4.6))


def _reconstructions(
    certifier: Any, rows: Any, image_shape: tuple[int, int, int] | None
) -> str:
    if not hasattr(certifier, "inverse_transform"):
        return ""

    def draw(ax: "Axes") -> str:
        shown = ReconstructionDisplay.from_estimator(
            certifier, rows, n_rows=_SHOWN_ROWS, image_shape=image_shape, ax=ax
        )
        return (
            f"{len(shown.error)} rows above, their reconstructions below; root mean "
            f"square difference {shown.error.min():.3g} to {shown.error.max():.3g}."
        )

    caption = "Rows, and below them what the decoder makes of their latent means."
    size = (5.4, 1.4) if image_shape else (5.4, 4.4)
    return _figure("reconstructions", draw, caption, size)


def _history(certifier: Any) -> str:
    history = getattr(certifier.estimator_, "history_", None)
    if not history:
        return ""

    def draw(ax: "Axes") -> str:
        MarginHistoryDisplay.from_history(history, ax=ax)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        first, last = history[0]["margin"], history[-1]["margin"]
        return (
            f"Margin after each of {len(history)} epochs: {first:.3g} nats after the "
            f"first, {last:.3g} after the last."
        )

    caption = (
        "Margin during the training, on its own rows; at 0 or below is a constant."
    )
    return _figure("the training", draw, caption, (5.4, 3.2))


def _figure(
    what: str,
    draw: Callable[["Axes"], str],
    caption: str,
    size: tuple[float, float] = (5.4, 3.8),
) -> str:
    """Draw a picture into the page; a model of others may fail to give its numbers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    try:
        alt = draw(figure.subplots())
    except Exception as error:
        return f"<p>Not drawn, {what}: {escape(str(error))}</p>\n"
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, facecolor="white")
    data = b64encode(stream.getvalue()).decode("ascii")
    width, height = (round(_DPI * inches) for inches in size)
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
    )


def _assumptions(certifier: Any, findings: _Findings) -> str:
    mean = next(iter(findings.certificates.values()))
    assumed = [
        "The statements are about the rows of this report, and about no others. "
        "Whether encoder and teacher have seen them in training makes no difference to "
        "what “mean” says with the fixed witness; “sampled”, “round trip” and fitted "
        "witnesses refuse rows of fit.",
        f"{_teacher_told(certifier)} decides which differences between rows count: "
        f"{mean.teacher_information:.3g} nats of them. That of the rows scored is what "
        "margins are measured against.",
        _WITNESSES.get(certifier.witness_.name, certifier.witness_.name),
        *(
            _ASSUMED[kind].format(f"{one.tolerance:.2g}")
            for kind, one in findings.certificates.items()
        ),
    ]
    return _section("What was assumed", _list(assumed)) + _section(
        "What this does not say", _list(_NOT_SAID)
    )


def _teacher_told(certifier: Any) -> str:
    if certifier.teacher_ is None:
        return "The array of posteriors that was given as teacher_proba"
    return f"The teacher, a fitted {type(certifier.teacher_).__name__},"


def _provenance(certifier: Any, X: ArrayLike, teacher_proba: ArrayLike | None) -> str:
    """Tell what it takes to make the report again."""
    facts = {"Rows": _rows_told(X)}
    if teacher_proba is not None:
        facts["Posteriors given"] = _rows_told(teacher_proba)
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
    told = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>\n" for name, value in facts.items()
    )
    # The whole of it: scikit-learn cuts long ones otherwise.
    code = certifier.__repr__(N_CHAR_MAX=10**9)
    return _section(
        "How to make it again",
        "<p>Fit this on the rows of the training, which are not part of this report:"
        f'</p>\n<pre tabindex="0"><code>{escape(code)}</code></pre>\n'
        f"<dl>\n{told}</dl>\n",
    )


def _rows_told(X: ArrayLike) -> str:
    """Tell shape and SHA-256 of an array, the latter as a saved certificate has it."""
    shape = (_num_samples(X), np.asarray(take_samples(X, slice(0, 1))).shape[1])
    return f"shape {shape}; SHA-256 of the numbers: {digest_samples(X)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _write(path: Path, page: str) -> Path:
    """Write to a file of another name first: one that has this name is whole."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        unfinished.write_text(page, encoding="utf-8", newline="\n")
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    return path
