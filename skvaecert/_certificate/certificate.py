"""The certificate: what is said of an encoder, in values, sentences and tables."""

import dataclasses
import html
import json
import math
from dataclasses import dataclass

__all__ = ["Certificate"]

_COLOURS = {"certified": "seagreen", "inconclusive": "goldenrod", "constant": "crimson"}

_UNITS = dict.fromkeys(
    [
        "margin",
        "teacher_information",
        "alignment_loss",
        "tolerance",
        "safety_margin",
        "margin_low",
        "margin_high",
        "information_bound",
    ],
    " nats",
)


@dataclass(frozen=True)
class Certificate:
    """Verdict on constant collapse of an encoder mean, with the values behind it.

    `str` gives a sentence, notebooks show a table, :meth:`to_json` gives a record.

    Attributes
    ----------
    verdict : {"certified", "inconclusive", "constant"}
        "certified": the margin exceeds safety margin plus tolerance, so the mean is
        not constant on these samples. "constant": the means are equal to within
        rounding, on samples that the teacher tells apart. "inconclusive": neither was
        shown; this does not prove collapse.
    margin : float
        G = I_T - A, nats, at most `teacher_information`.
    teacher_information : float
        I_T on these samples, nats.
    alignment_loss : float
        A on these samples, nats.
    relative_margin : float
        G / I_T, at most 1; nan if the teacher information is 0.
    tolerance : float
        What rounding could have added to the margin, nats.
    safety_margin : float
        tau, the margin that the user asked for on top, nats.
    dispersion_bound : float
        Certified lower bound on `dispersion`; 0 for kinds that give none.
    dispersion : float
        Root mean square distance of the means from their average, in latent units;
        that of the prior is sqrt(latent_dim).
    witness : str
        The witness that read the code. "raw" is the fixed simplex of the papers;
        "procrustes" and "linear" were fitted on other samples, which proves as much
        but is not the papers' certificate; "teacher" reads reconstructions.
    n_samples : int
        Number of samples, without those of weight 0.
    n_components : int
        K.
    latent_dim : int
        d.
    kind : {"mean", "sampled", "round_trip"}
        What is certified: that the mean is not constant; that codes drawn from q(z|x)
        carry information about x; that encoder and decoder together pass it on.
    confidence : float or None
        Confidence level of the interval from `margin_low` to `margin_high`, over the
        draws of codes; None where nothing is drawn.
    margin_low, margin_high : float
        The Monte-Carlo interval of a sampled margin, nats; else the margin itself.
    information_bound : float or None
        Upper bound on the information that codes carry about these samples: the
        smaller of the mean KL(q(z|x) || N(0, I)) and log n, nats; None unless `kind`
        is "sampled".

    See Also
    --------
    certify : Makes a certificate from arrays.
    CollapseCertifier : Makes certificates for estimators.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert import certify
    >>> from skvaecert.simplex import analytic_code, simplex_vertices
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> vertices = simplex_vertices(2, 1)
    >>> code = analytic_code(teacher_proba, vertices, 1.0)
    >>> print(certify(teacher_proba, code, vertices, 1.0))
    Certified: on these 2 samples the encoder mean is not constant; margin 0.37 of at
    most 0.37 nats (100 %). The means' distance from their average is 1.10 (root mean
    square), certified to be at least 0.46.
    """

    verdict: str
    margin: float
    teacher_information: float
    alignment_loss: float
    relative_margin: float
    tolerance: float
    safety_margin: float
    dispersion_bound: float
    dispersion: float
    witness: str
    n_samples: int
    n_components: int
    latent_dim: int
    kind: str = "mean"
    confidence: float | None = None
    margin_low: float = math.nan
    margin_high: float = math.nan
    information_bound: float | None = None

    def __str__(self) -> str:
        sentence = {
            "certified": self._certified_sentence,
            "constant": self._constant_sentence,
            "inconclusive": self._inconclusive_sentence,
        }[self.verdict]()
        samples = f"on these {self.n_samples} samples"
        if self.kind != "round_trip" and self.witness != "raw":
            # Not the papers' certificate, whose witness is fitted on nothing.
            samples += f", by a {self.witness} witness fitted on others,"
        return f"{self.verdict.capitalize()}: {samples} {sentence}"

    def _certified_sentence(self) -> str:
        share = f"{self.relative_margin:.0%}".replace("%", " %")
        margin = (
            f"margin {_short(self.margin)} of at most "
            f"{_short(self.teacher_information)} nats ({share})."
        )
        if self.kind == "round_trip":
            return f"encoder and decoder together pass input on; {margin}"
        if self.kind == "sampled":
            return (
                f"a drawn code carries at least {_short(self.margin_low)} nats about "
                f"its input and at most {_short(self.information_bound)} (lower bound: "
                f"{self._interval()})."
            )
        return (
            f"the encoder mean is not constant; {margin} "
            "The means' distance from their average is "
            f"{_short(self.dispersion)} (root mean square), certified to be at least "
            f"{_short(self.dispersion_bound)}."
        )

    def _constant_sentence(self) -> str:
        what = {
            "mean": "the latent means are equal to within rounding: the encoder mean "
            "has collapsed.",
            "sampled": "the posterior q(z|x) is the same to within rounding: it has "
            "collapsed.",
            "round_trip": "the reconstructions are equal to within rounding.",
        }[self.kind]
        return (
            f"{what} The means' distance from their average is {self.dispersion:.1e} "
            f"(root mean square); the margin is {_short(self.margin)} nats."
        )

    def _inconclusive_sentence(self) -> str:
        needed = self.safety_margin + self.tolerance
        what = {
            "mean": "so the encoder mean is not certified",
            "sampled": f"by five standard errors ({self._interval()}), so no "
            "information in drawn codes is certified",
            "round_trip": "so it is not certified that input comes through",
        }[self.kind]
        return (
            f"the margin is {_short(self.margin)} nats, not above the "
            f"{_short(needed)} needed, {what}. {self._likely_reason()}"
        )

    def _interval(self) -> str:
        if self.confidence is None:
            return ""
        low, high = _short(self.margin_low), _short(self.margin_high)
        share = f"{100 * self.confidence:g} %"
        return f"{share} interval over draws: {low} to {high}"

    def _likely_reason(self) -> str:
        distance = _short(self.dispersion)
        if self.teacher_information <= self.safety_margin + self.tolerance:
            return (
                "The teacher tells these samples apart by only "
                f"{_short(self.teacher_information)} nats: no code could do better."
            )
        # A tenth of the prior's width in every dimension.
        if self.dispersion < 0.1 * math.sqrt(self.latent_dim):
            return (
                f"The latent means hardly vary: {distance} (root mean square "
                f"distance) where the prior has {math.sqrt(self.latent_dim):.2g}."
            )
        reader = {
            "mean": "but not in the way the teacher's components ask",
            "sampled": "but drawn codes do not show it",
            "round_trip": "but the decoder does not show it to the teacher",
        }[self.kind]
        return (
            f"That does not prove collapse: the latent means vary by {distance} (root "
            f"mean square distance), {reader}."
        )

    def to_dict(self) -> dict[str, str | float | int | None]:
        """Return the fields by name.

        Returns
        -------
        dict
            Plain Python values, in the order of the attributes.
        """
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the fields as a JSON object, with null for what is not finite.

        Returns
        -------
        str
            One line of standard JSON.
        """
        return json.dumps({k: _finite(v) for k, v in self.to_dict().items()})

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{name.replace('_', ' ')}</th>"
            f"<td>{html.escape(_short(value))}{_UNITS.get(name, '')}</td></tr>"
            for name, value in self.to_dict().items()
        )
        return (
            f"<div style='border-left:4px solid {_COLOURS[self.verdict]};"
            f"padding-left:1em'><p>{html.escape(str(self))}</p>"
            f"<table>{rows}</table></div>"
        )


def _short(value: str | float | int | None) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 0.995 <= abs(value) < 100 else f"{value:.2g}"


def _finite(value: str | float | int | None) -> str | float | int | None:
    return value if not isinstance(value, float) or math.isfinite(value) else None
