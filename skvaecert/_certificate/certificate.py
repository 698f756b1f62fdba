"""The certificate of an encoder: values, sentences and a table for notebooks."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Literal

from skvaecert._certificate.record import as_html, as_json
from skvaecert.information import InformationBracket, information_sentence

__all__ = ["Certificate"]

_COLORS = {
    "certified": "seagreen",
    "varies": "steelblue",
    "inconclusive": "goldenrod",
    "constant": "crimson",
}

_UNITS = dict.fromkeys(
    [
        "margin",
        "teacher_information",
        "alignment_loss",
        "tolerance",
        "safety_margin",
        "margin_low",
        "margin_high",
        "mean_entropy",
    ],
    " nats",
)


@dataclass(frozen=True)
class Certificate:
    """Verdict on constant collapse of an encoder mean, with the values behind it.

    `str` returns a few sentences, :meth:`to_json` a record, and notebooks show a table.
    A certificate has no truth value: use its `verdict`, or `certified`.

    Attributes
    ----------
    verdict : {"certified", "varies", "constant", "inconclusive"}
        "certified": the margin exceeds safety margin plus tolerance. For the kind
        "mean", the mean is then not constant on these samples, and the witness reads
        the teacher's clusters off it.
        "varies", for the kind "mean" only: the mean is not constant, because the means
        spread by more than `latent_noise`, but the witness does not read the clusters
        off it. "constant": the means are equal to within rounding, on samples that the
        teacher tells apart; for the kind "sampled" the posteriors, for "round_trip" the
        posteriors or the reconstructions. "inconclusive": nothing was shown.
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
        tau, nats: the margin must exceed the tolerance by more than this.
    dispersion_bound : float
        Lower bound on `dispersion` that follows from the margin; 0 unless `kind` is
        "mean".
    dispersion : float
        Root mean square distance of the means from their average, in latent units. For
        codes drawn from the prior it is sqrt(latent_dim).
    witness : {"raw", "procrustes", "linear", "teacher", "none"}
        The witness that read the code. "raw" is the fixed simplex of the papers.
        "procrustes" and "linear" were fitted on other samples, which proves as much
        but is not the papers' certificate. "teacher" reads reconstructions. "none"
        stands for no teacher and no witness.
    n_samples : int
        Number of samples, without those of weight 0.
    n_components : int
        K; 1 without a teacher.
    latent_dim : int
        d.
    kind : {"mean", "sampled", "round_trip"}
        What is certified. "mean": the mean is not constant. "sampled": codes drawn from
        q(z|x) tell the teacher's clusters apart. "round_trip": reconstructions still
        show the clusters.
    confidence : float or None
        Confidence level of the interval from `margin_low` to `margin_high`, over the
        draws of codes; None if no codes are drawn.
    margin_low, margin_high : float
        Confidence interval of the margin of drawn codes, nats. Both are equal to the
        margin if no codes are drawn.
    mean_entropy : float
        H(mean T), nats: the uncertainty about the teacher's cluster without a code.
    latent_noise : float
        Root mean square error that rounding, or another batch, may have left in the
        latent means, in latent units. "certified" and "varies" assume that it is not
        larger. 0 for "round_trip".
    dispersion_in_noise : float or None
        Root mean square distance of the means from their average, each dimension in
        units of the posterior's noise, the root of its mean variance. None if the
        encoder returns no standard deviations.
    information : InformationBracket or None
        The information of drawn codes about these samples, bounded from both sides.
        None if the encoder returns no standard deviations.
    reason : str
        Why the margin is not enough. "teacher": it does not tell these samples apart.
        "noise": the encoder is not exact enough. "safety margin": the margin exceeds
        the tolerance, but not by the safety margin. "draws": too few codes were drawn.
        "shared draws": the margin vanishes if all samples share their draws.
        "witness": it does not read the clusters off the code. Empty if the margin is
        enough.

    See Also
    --------
    certify : Compute a certificate from arrays.
    CollapseCertifier : Compute certificates of estimators.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert import certify
    >>> from skvaecert.simplex import analytic_code, simplex_vertices
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> vertices = simplex_vertices(2, 1)
    >>> code = analytic_code(teacher_proba, vertices, 1.0)
    >>> print(certify(teacher_proba, code, vertices, 1.0))
    Certified: on these 2 samples the encoder mean is not constant, and the witness
    reads the teacher's clusters off it: margin 0.37 of at most 0.37 nats (100 %). The
    means' distance from their average is 1.10 (root mean square).
    """

    verdict: Literal["certified", "varies", "constant", "inconclusive"]
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
    kind: Literal["mean", "sampled", "round_trip"] = "mean"
    confidence: float | None = None
    margin_low: float = math.nan
    margin_high: float = math.nan
    mean_entropy: float = math.nan
    latent_noise: float = 0.0
    dispersion_in_noise: float | None = None
    information: InformationBracket | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        # Otherwise every certificate would be true, whatever its verdict.
        raise TypeError(
            "A Certificate has no truth value. Use certificate.certified, or compare "
            "certificate.verdict."
        )

    @property
    def certified(self) -> bool:  # numpydoc ignore=RT01
        """Whether the verdict is "certified"."""
        return self.verdict == "certified"

    @property
    def accuracy(self) -> float | None:  # numpydoc ignore=RT01
        """Lower bound on the chance to guess the teacher's cluster from a drawn code.

        max(exp(-h), 1 - h / (2 log 2)) with h = H(mean T) - G, where G is `margin_low`
        less the tolerance. If a cluster is drawn from the teacher's posterior, the best
        guess is right with at least this probability, on average over these samples
        (theory section 14). None unless `kind` is "sampled".
        """
        if self.kind != "sampled":
            return None
        unknown = self.mean_entropy - self._margin_shown
        return max(math.exp(-unknown), 1 - unknown / (2 * math.log(2)))

    @property
    def _margin_shown(self) -> float:
        """The margin that may be called "at least".

        Drawn codes cannot carry more about the clusters than about the samples, so the
        upper end of the bracket limits it.
        """
        # `margin_low` covers the draws only, and the tolerance covers rounding.
        shown = max(0.0, self.margin_low - self.tolerance)
        return shown if self.information is None else min(shown, self.information.high)

    def __str__(self) -> str:
        """Return what was shown, in plain sentences."""
        finding = _FINDINGS[self.kind](self)
        return f"{self.verdict.capitalize()}: {_samples(self)} {finding}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name.

        Returns
        -------
        dict
            Plain Python values, in the order of the attributes. `information` is a dict
            as well, or None.
        """
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the fields as a JSON object, with null for values that are not finite.

        Returns
        -------
        str
            One line of standard JSON.
        """
        return as_json(self.to_dict())

    def _repr_html_(self) -> str:
        fields = self.to_dict() | {"information": self._bracket_text}
        values = (
            (name.replace("_", " "), _short(value) + _UNITS.get(name, ""))
            for name, value in fields.items()
        )
        return as_html(str(self), values, _COLORS[self.verdict])

    @property
    def _bracket_text(self) -> str | None:
        found = self.information
        if found is None:
            return None
        return f"{_short(found.low)} to {_short(found.high)} nats"


def _samples(c: Certificate) -> str:
    many = f"on these {c.n_samples:,} samples"
    samples = "on this sample" if c.n_samples == 1 else many
    if c.kind != "round_trip" and c.witness in ("procrustes", "linear"):
        # Not the papers' certificate, whose witness is fitted on nothing.
        samples += f", by a {c.witness} witness fitted on others,"
    return samples


def _mean_finding(c: Certificate) -> str:
    sentences = {
        "certified": _mean_certified,
        "varies": _mean_varies,
        "constant": _mean_constant,
        "inconclusive": _mean_inconclusive,
    }[c.verdict](c)
    return " ".join([*sentences, *_codes_finding(c)])


def _mean_certified(c: Certificate) -> list[str]:
    return [
        "the encoder mean is not constant, and the witness reads the teacher's "
        f"clusters off it: margin {_short(c.margin)} of at most "
        f"{_short(c.teacher_information)} nats ({_percent(c.relative_margin)}).",
        f"The means' distance from their average is {_short(c.dispersion)} (root mean "
        f"square){_in_noise(c)}.",
    ]


def _mean_varies(c: Certificate) -> list[str]:
    return [
        "the encoder mean is not constant. The means' distance from their average is "
        f"{_short(c.dispersion)} (root mean square){_in_noise(c)}; rounding or another "
        f"batch explains {_short(c.latent_noise)}.",
        *_why_not(c, "The witness does not read the teacher's clusters off it"),
    ]


def _mean_constant(c: Certificate) -> list[str]:
    return [
        "the latent means are equal to within rounding. Their distance from their "
        f"average is {c.dispersion:.1e} (root mean square)."
    ]


def _mean_inconclusive(c: Certificate) -> list[str]:
    return [
        "it was not shown that the means vary, nor that they are equal. Their distance "
        f"from their average is {_short(c.dispersion)} (root mean square); rounding or "
        f"another batch explains {_short(c.latent_noise)}.",
        *_why_not(c, "The mean is not certified"),
    ]


def _sampled_finding(c: Certificate) -> str:
    if c.verdict == "certified":
        sentence = (
            f"a drawn code carries at least {_at_least(c._margin_shown)} of at most "
            f"{_short(c.teacher_information)} nats about the teacher's clusters "
            f"({_interval(c)}). The best guess of the cluster from it is right in at "
            # Rounded down, like all values after "at least".
            f"least {math.floor(100 * (c.accuracy or 0.0))} % of cases."
        )
    elif c.verdict == "constant":
        sentence = (
            "the encoder's posterior q(z|x) is the same to within rounding. The means' "
            f"distance from their average is {c.dispersion:.1e} (root mean square)."
        )
    else:
        sentence = " ".join(
            _why_not(c, "it was not shown that drawn codes tell clusters apart")
        )
    return " ".join([sentence, *_codes_finding(c)])


def _round_trip_finding(c: Certificate) -> str:
    codes = "the means" if c.confidence is None else "drawn codes"
    if c.verdict == "certified":
        return (
            f"the reconstructions of {codes} still show the teacher's clusters: the "
            f"teacher reads at least {_at_least(c._margin_shown)} of at most "
            f"{_short(c.teacher_information)} nats off them{_interval(c, ' (', ')')}."
        )
    if c.verdict == "constant":
        return "reconstructions do not depend on the sample, to within rounding."
    return " ".join(
        _why_not(c, "it was not shown that reconstructions keep the teacher's clusters")
    )


_FINDINGS = {
    "mean": _mean_finding,
    "sampled": _sampled_finding,
    "round_trip": _round_trip_finding,
}


def _why_not(c: Certificate, what: str) -> list[str]:
    """Return what the margin lacks, and why; nothing without a teacher."""
    if c.witness == "none":
        return []
    needed, margin = c.safety_margin + c.tolerance, _short(c.margin)
    lacks = f"{what}: the margin is {margin} nats"
    # A larger margin is not enough either if it may be due to the draws of codes.
    if c.margin <= needed:
        lacks += f", not above the {_short(needed)} needed"
    return [f"{lacks}{_interval(c, ' (', ')')}.", _reason_text(c)]


def _reason_text(c: Certificate) -> str:
    return {
        "teacher": "The teacher information on these samples is only "
        f"{_short(c.teacher_information)} nats, and no code can have a greater margin."
        if c.n_samples > 1
        else "A single sample cannot be told apart from others.",
        "noise": "The encoder is not exact enough: rounding or another batch "
        f"{_moved(c)}, which can produce a margin of that size.",
        "safety margin": f"Rounding may explain {_short(c.tolerance)} nats of the "
        f"margin, and the safety margin is {_short(c.safety_margin)} nats.",
        "draws": "The draws may have produced it by chance. Increase n_draws to find "
        "out.",
        "shared draws": "It vanishes if all samples share their draws, so it may be "
        "due to chance. Increase n_draws to find out.",
        "witness": "This does not prove collapse: "
        + (
            "reconstructions may differ in a way that the teacher does not read."
            if c.kind == "round_trip"
            else "the code may vary in a way that the witness does not read."
        ),
    }[c.reason]


def _codes_finding(c: Certificate) -> list[str]:
    """Return what drawn codes carry, if the encoder returns standard deviations."""
    if c.information is None:
        return []
    hidden = ""
    # What the mean shows is at least the margin. The noise hides the part of it that
    # drawn codes cannot carry.
    if c.kind == "mean" and c.information.high < c.margin:
        hidden = " The posterior's noise hides the rest of what the mean shows."
    about = "the sample" if c.n_samples == 1 else "the samples"
    return [information_sentence(c.information, about) + hidden]


def _moved(c: Certificate) -> str:
    if c.kind == "round_trip":
        return f"may change what the teacher reads by {_short(c.tolerance)} nats"
    return f"may move its means by {_short(c.latent_noise)} (root mean square)"


def _in_noise(c: Certificate) -> str:
    if c.dispersion_in_noise is None:
        return ""
    return f", {_short(c.dispersion_in_noise)} times the posterior's noise"


def _interval(c: Certificate, before: str = "", after: str = "") -> str:
    if c.confidence is None:
        return ""
    low, high = _at_least(c.margin_low), _at_most(c.margin_high)
    # With fewer digits, 99.99999 % would be printed as 100 %.
    share = f"{100 * c.confidence:.9g} %"
    return f"{before}{share} interval over draws: {low} to {high}{after}"


def _percent(share: float | None) -> str:
    return f"{share:.0%}".replace("%", " %")


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    # 0.995 is the least value that two decimals print as 1.00.
    return f"{value:.2f}" if 0.995 <= abs(value) < 100 else f"{value:.2g}"


def _at_least(value: float) -> str:
    """Round down, so that the printed bound still holds."""
    return _rounded(value, ROUND_FLOOR)


def _at_most(value: float) -> str:
    return _rounded(value, ROUND_CEILING)


def _rounded(value: float, rounding: str) -> str:
    """Round to the digits of `_short`."""
    # Zero has no logarithm, and infinity and NaN have no decimals.
    if not value or not math.isfinite(value):
        return _short(value)
    # Decimals are exact, but a float times a power of 10 may round across the bound.
    size = abs(value)
    digits = 2 if 0.995 <= size < 100 else 1 - math.floor(math.log10(size))
    step = Decimal(10) ** -digits
    return _short(float(Decimal(value).quantize(step, rounding)))
