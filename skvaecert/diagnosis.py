"""Has a VAE collapsed? One call that answers, from arrays (theory sections 15 to 18).

Four things are brought together: what drawn codes carry, from both sides; whether the
mean varies; what the decoder makes of the code; and the kl_weight at which collapse is
to be expected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.record import as_html, as_json
from skvaecert._certificate.sums import MeanSums, check_shapes
from skvaecert._estimator import warn_user
from skvaecert._samples import take_samples
from skvaecert.diagnostics import active_units, kl_per_dimension
from skvaecert.forecast import collapse_threshold
from skvaecert.information import (
    InformationBracket,
    OutputInformation,
    OutputSums,
    check_output,
    code_information,
)
from skvaecert.metrics import SpreadSums
from skvaecert.simplex import (
    Floats,
    check_codes,
    check_number,
    check_real,
    check_sample_weight,
    check_teacher_proba,
    prior_matched_scale,
    simplex_vertices,
)
from skvaecert.witnesses import LinearWitness, simplex_of, simplex_witness

__all__ = ["Diagnosis", "diagnose"]

_COLORS = {
    "informative": "seagreen",
    "collapsed": "crimson",
    "ignored": "darkorange",
    "undecided": "goldenrod",
}
# Codes that are decoded: a share of the draws, but at least so many, and in groups.
_DECODED_SHARE, _LEAST_DECODED = 0.1, 1000
_LEAST_GROUPS, _MOST_IN_GROUP = 16, 256
_OPTIONS = {
    # None for an estimator whose loss is not known.
    "likelihood": ("gaussian", "bernoulli", None),
    "reduction": ("sum", "mean"),
}
# Reconstructions whose error is so many times the variance of X have other units.
_OTHER_UNITS = 1.5


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Whether a VAE has collapsed, with the values behind the answer.

    `str` gives a short paragraph, notebooks show a table, :meth:`to_json` gives a
    record. A diagnosis is neither true nor false: ask for its `state`.

    Attributes
    ----------
    state : {"informative", "collapsed", "ignored", "undecided"}
        "collapsed": drawn codes carry at most `negligible` nats about these samples.
        "ignored": the decoder's outputs carry at most `negligible` nats about the code.
        "informative": drawn codes carry more than `negligible` nats. "undecided": none
        of these was shown. The first that applies.
    information : InformationBracket or None
        What drawn codes carry about these samples, from both sides; None without
        standard deviations.
    mean : Certificate or None
        Whether the mean varies. Without a teacher, its `witness` is "none" and its
        `verdict` "varies", "constant" or "inconclusive".
    decoder : OutputInformation or None
        What the decoder's outputs carry about the code, at most; None if that was not
        measured.
    threshold : float or None
        The `kl_weight` at which a linear VAE collapses altogether on these data, from
        :func:`skvaecert.forecast.collapse_threshold`; None without data.
    kl_per_dimension : ndarray of shape (latent_dim,) or None
        KL to the prior, nats; None without standard deviations.
    active_units : int
        Number of dimensions whose mean has a variance of at least 0.01.
    advice : str
        What to do next, in one sentence.
    negligible : float
        The line below which information counts as none, nats.
    n_samples : int
        Number of samples, without those of weight 0.
    latent_dim : int
        d.

    See Also
    --------
    diagnose : Makes a diagnosis from arrays.
    CollapseCertifier.diagnose : Makes a diagnosis of a fitted estimator.
    """

    state: str
    information: InformationBracket | None
    mean: Certificate | None
    decoder: OutputInformation | None
    threshold: float | None
    kl_per_dimension: Floats | None
    active_units: int
    advice: str
    negligible: float
    n_samples: int
    latent_dim: int

    def __bool__(self) -> bool:
        raise TypeError(
            "A Diagnosis is neither true nor false. Compare diagnosis.state, for "
            "example with 'collapsed'."
        )

    def __str__(self) -> str:
        """Say what was found and what to do, in plain sentences."""
        found = f"{self.state.capitalize()}: {_told_of_codes(self)}"
        others = [_told_of_decoder(self), _told_of_mean(self.mean), self.advice]
        return " ".join([found, *filter(None, others)])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name.

        Returns
        -------
        dict
            Plain Python values, in the order of the attributes; results are dicts, too.
        """
        return dataclasses.asdict(self) | {
            "kl_per_dimension": _as_list(self.kl_per_dimension)
        }

    def to_json(self) -> str:
        """Return the fields as a JSON object, with null for what is not finite.

        Returns
        -------
        str
            One line of standard JSON.
        """
        return as_json(self.to_dict())

    def _repr_html_(self) -> str:
        return as_html(str(self), _table(self), _COLORS[self.state])


def diagnose(
    mean: ArrayLike,
    std: ArrayLike | None = None,
    *,
    decode: Callable[[Any], Any] | None = None,
    X: ArrayLike | None = None,
    teacher_proba: ArrayLike | None = None,
    witness: Any = None,
    sample_weight: ArrayLike | None = None,
    likelihood: str = "gaussian",
    noise_variance: float | None = None,
    reduction: str = "sum",
    kl_weight: float | None = None,
    negligible: float = 0.05,
    confidence: float = 0.999999,
    n_draws: int = 40_000,
    random_state: int | np.random.Generator | None = None,
) -> Diagnosis:
    """Tell whether a VAE has collapsed, from the posteriors of some samples.

    With the bracket [low, high] of the information of drawn codes, and U the most that
    the decoder's outputs carry about the code, the state is::

        "collapsed"      if high <= negligible, else
        "ignored"        if U and three standard errors <= negligible, else
        "informative"    if low > negligible, else
        "undecided"

    Parameters
    ----------
    mean : array-like of shape (n_samples, latent_dim)
        Means of the posteriors q(z|x_i).
    std : array-like of shape (n_samples, latent_dim), default=None
        Their standard deviations, above 0: exp(log_variance / 2). Log-variances raise
        an error, unless all of them are above 0: then nothing tells them from standard
        deviations. Without `std` the state is "undecided".
    decode : callable, default=None
        Takes codes, an array of shape (n_codes, latent_dim), and returns the means of
        the likelihood, an array of shape (n_codes, ...); for "bernoulli" probabilities,
        not logits. It must see nothing but the codes: no label, no earlier values.
    X : array-like of shape (n_samples, ...), default=None
        The same samples, in the units of the outputs; for the noise variance and the
        threshold.
    teacher_proba : array-like of shape (n_samples, n_components), default=None
        Posteriors of a teacher, for a witness to read off the mean.
    witness : AlignmentLoss or None, default=None
        What reads them: the loss that a model was trained with. None for the fixed
        simplex at the prior-matched scale of these posteriors. It needs
        n_components - 1 <= latent_dim, and posteriors that are not all uniform; else
        they are left aside.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights; uniform when None. A sample of weight 0 does not count. The threshold
        is that of all others alike.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        The likelihood of the decoder.
    noise_variance : float or None, default=None
        Variance of the Gaussian likelihood, if the loss fixes it: 1/2 for a sum of
        squared errors without a factor. None if it is learned; then it is the mean
        squared error of reconstructing `X` from drawn codes.
    reduction : {"sum", "mean"}, default="sum"
        Whether the loss sums the reconstruction over features or averages it.
    kl_weight : float or None, default=None
        Weight of the KL term in the loss, at least 0, for the advice.
    negligible : float, default=0.05
        Information that counts as none, nats, above 0.
    confidence : float, default=0.999999
        Probability with which the bracket holds, in (0, 1).
    n_draws : int, default=40000
        Codes drawn for the bracket, in all. A tenth of that, at least 1000, is drawn
        for the decoder.
    random_state : int, numpy.random.Generator or None, default=None
        Seed of the draws; different ones each time when None.

    Returns
    -------
    Diagnosis
        State, values and advice.

    Raises
    ------
    ValueError
        If an argument is not valid, what the decoder's measurement needs is missing, or
        no code could carry more than `negligible` nats about so few samples.

    Warns
    -----
    UserWarning
        If the decoder was not measured, because its outputs are not in the units of
        `X`, or worse than a constant.

    See Also
    --------
    CollapseCertifier.diagnose : The same of a fitted estimator.
    skvaecert.information.code_information : The bracket.
    skvaecert.information.output_information : What the decoder passes on.
    skvaecert.forecast.collapse_threshold : The threshold.

    Notes
    -----
    The bracket is about the samples given, and holds with probability `confidence`
    over the draws. "Ignored" rests on an estimate. Means may vary, and a witness may
    read them, while the noise of the posterior hides all of it: such a code has
    collapsed. Means may also be constant, and the standard deviations tell samples
    apart: such a code is informative.

    References
    ----------
    Theory sections 15 to 18.

    Examples
    --------
    The means vary by a hundredth of the noise:

    >>> import numpy as np
    >>> from skvaecert import diagnose
    >>> mean = np.random.default_rng(0).normal(size=(450, 2))
    >>> diagnose(0.01 * mean, np.ones((450, 2)), random_state=0).state
    'collapsed'
    >>> print(diagnose(mean, np.full((450, 2), 0.1), random_state=0))
    Informative: ...
    """
    return diagnose_codes(
        Codes(np.asarray(mean), std, sample_weight),
        X=X,
        teacher_proba=teacher_proba,
        witness=witness,
        likelihood=likelihood,
        noise_variance=noise_variance,
        reduction=reduction,
        kl_weight=kl_weight,
        decode=decode,
        negligible=negligible,
        confidence=confidence,
        n_draws=n_draws,
        random_state=random_state,
    )


@dataclass(frozen=True)
class Codes:
    """Posteriors of samples: means, and standard deviations if there are any.

    Another batch moves a mean, and logarithms of standard deviations, by `moved`.
    """

    mean: NDArray[Any]
    std: ArrayLike | None
    sample_weight: ArrayLike | None = None
    moved: float = 0.0

    @property
    def proba(self) -> Floats:
        """Weights that sum to 1."""
        return check_sample_weight(self.sample_weight, len(self.mean))

    def counted(self, X: Any) -> Any:
        """Return the samples of weight above 0."""
        counting = self.proba > 0
        return X if counting.all() else take_samples(X, np.flatnonzero(counting))

    def reproducible(self, found: InformationBracket) -> InformationBracket:
        """Subtract what an encoder may have made up that moves its own codes.

        Rounding, as in section 16, of the size that was seen.
        """
        latent_dim, squared = self.mean.shape[1], self.moved**2
        narrowest = float(np.min(np.asarray(self.std), where=self._counts, initial=1))
        made_up = np.log1p(squared / latent_dim / narrowest**2) / 2 + squared
        rounding = max(found.rounding, latent_dim * float(made_up))
        low = max(0.0, found.low - (rounding - found.rounding))
        low_by = found.low_by if low > 0 else "zero"
        return replace(found, low=low, rounding=rounding, low_by=low_by)

    @property
    def _counts(self) -> NDArray[np.bool_]:
        return (self.proba > 0)[:, np.newaxis]

    def draw(
        self, n_draws: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """Draw samples, and a code of each, in the precision of the means."""
        origin = generator.choice(len(self.mean), size=n_draws, p=self.proba)
        noise = generator.standard_normal((n_draws, self.mean.shape[1]))
        code = self.mean[origin] + np.asarray(self.std)[origin] * noise
        is_small = self.mean.dtype == np.float32
        return origin, code.astype(np.float32 if is_small else np.float64)


def diagnose_codes(
    codes: Codes,
    *,
    X: ArrayLike | None = None,
    teacher_proba: ArrayLike | None = None,
    witness: Any = None,
    likelihood: str = "gaussian",
    noise_variance: float | None = None,
    reduction: str = "sum",
    kl_weight: float | None = None,
    **settings: Any,
) -> Diagnosis:
    """Diagnose posteriors, of which it may be known how far another batch moves them.

    The arguments are those of :func:`diagnose`.
    """
    n_samples = len(check_codes("mean", codes.mean))
    if X is not None:
        X = _check_samples(X, n_samples)
    return diagnosis_of(
        codes,
        lambda information: _certificate(codes, teacher_proba, witness, information),
        Loss(likelihood, noise_variance, reduction, kl_weight),
        X=X,
        **settings,
    )


@dataclass(frozen=True)
class Loss:
    """What is known of the loss that a VAE was trained with.

    A noise variance that was learned counts for the decoder and not for the threshold.
    """

    likelihood: str | None
    noise_variance: float | None = None
    reduction: str = "sum"
    kl_weight: float | None = None
    has_learned_variance: bool = False

    def threshold(self, X: Any) -> float | None:
        """Return the kl_weight at which a linear VAE collapses on these data."""
        if self.likelihood is None:
            return None
        fixed = None if self.has_learned_variance else self.noise_variance
        return collapse_threshold(
            X,
            likelihood=self.likelihood,
            noise_variance=fixed,
            reduction=self.reduction,
        )


def diagnosis_of(
    codes: Codes,
    certificate: Callable[[InformationBracket | None], Certificate],
    loss: Loss,
    *,
    decode: Callable[[Any], Any] | None = None,
    X: Any = None,
    negligible: float = 0.05,
    confidence: float = 0.999999,
    n_draws: int = 40_000,
    random_state: int | np.random.Generator | None = None,
) -> Diagnosis:
    """Bring together what codes, certificate and decoder tell."""
    check_number("negligible", negligible, above=0)
    _check_loss(loss)
    information = decoder = kl = None
    if codes.std is not None:
        found = code_information(
            codes.mean,
            codes.std,
            sample_weight=codes.sample_weight,
            confidence=confidence,
            n_draws=n_draws,
            random_state=random_state,
        )
        _check_negligible(negligible, found)
        information = codes.reproducible(found)
        kl = kl_per_dimension(codes.mean, codes.std, codes.sample_weight)
        if decode is not None:
            decoder = _measured(codes, loss, decode, X, n_draws, random_state)
    threshold = None if X is None else loss.threshold(codes.counted(X))
    mean = replace(certificate(information), information=information)
    state = _state(information, decoder, negligible)
    return Diagnosis(
        state=state,
        information=information,
        mean=mean,
        decoder=decoder,
        threshold=threshold,
        kl_per_dimension=kl,
        active_units=active_units(codes.mean, sample_weight=codes.sample_weight),
        advice=_advice(state, information, mean, loss, threshold),
        negligible=float(negligible),
        n_samples=mean.n_samples,
        latent_dim=mean.latent_dim,
    )


def _state(
    information: InformationBracket | None,
    decoder: OutputInformation | None,
    negligible: float,
) -> str:
    if information is None:
        return "undecided"
    if information.high <= negligible:
        return "collapsed"
    if decoder is not None and decoder.high <= negligible:
        return "ignored"
    return "informative" if information.low > negligible else "undecided"


def _certificate(
    codes: Codes,
    teacher_proba: ArrayLike | None,
    loss: Any,
    information: InformationBracket | None,
) -> Certificate:
    witness, proba = _witness(codes, teacher_proba, loss)
    sums = MeanSums(witness).update(proba, codes.mean, codes.sample_weight)
    if codes.std is not None:
        sums.codes.update(codes.mean, codes.std, codes.sample_weight)
        sums.codes.known = information
    return sums.certificate(latent_noise=codes.moved)


def _witness(
    codes: Codes, teacher_proba: ArrayLike | None, loss: Any
) -> tuple[LinearWitness, Floats]:
    """Return the witness of a loss, or else the fixed simplex, and what it is to read.

    If there can be none: one component, of probability 1, which nothing can be read of.
    """
    n_samples, latent_dim = codes.mean.shape
    if loss is not None:
        if teacher_proba is None:
            raise ValueError(
                "teacher_proba must be given with witness: the posteriors that it is "
                "to read off the mean."
            )
        witness = simplex_witness(*simplex_of(loss))
        check_shapes(codes.mean, np.asarray(teacher_proba), witness.weights.shape)
        return witness, check_teacher_proba(teacher_proba, n_samples)
    if teacher_proba is not None:
        proba = check_teacher_proba(teacher_proba, n_samples)
        n_components = proba.shape[1]
        scale = prior_matched_scale(proba, codes.sample_weight)
        if 1 < n_components <= latent_dim + 1 and scale > 0:
            vertices = simplex_vertices(n_components, latent_dim)
            return simplex_witness(vertices, scale), proba
    nothing = LinearWitness(np.zeros((1, latent_dim)), np.zeros(1), "none")
    return nothing, np.ones((n_samples, 1))


def _measured(
    codes: Codes,
    loss: Loss,
    decode: Callable[[Any], Any],
    X: Any,
    n_draws: int,
    random_state: int | np.random.Generator | None,
) -> OutputInformation | None:
    """Measure what the decoder makes of drawn codes."""
    likelihood = loss.likelihood or "gaussian"
    learned = likelihood == "gaussian" and loss.noise_variance is None
    if learned and X is None:
        raise ValueError(
            "noise_variance or X must be given with decode for likelihood='gaussian': "
            "without the noise of the outputs, nothing says how much they carry. "
            "TrainedEncoder compares them with an X of floats only."
        )
    sums, spread = OutputSums(likelihood), SpreadSums()
    n_decoded = max(_LEAST_DECODED, int(_DECODED_SHARE * n_draws))
    origin, code = codes.draw(n_decoded, np.random.default_rng(random_state))
    for group, output in _decoded(decode, code):
        output = check_output(likelihood, output, name="decode")
        target = _targets(X, origin[group], output.shape) if learned else None
        sums.add(output, target)
        if target is not None:
            spread.update(target, np.ones(len(target)))
    if learned and sums.mean_squared_error > _OTHER_UNITS * spread.variance.mean():
        warn_user(
            "The decoder was not measured: its outputs for drawn codes are off by "
            f"{sums.mean_squared_error:.3g} (mean square), and the variance of X is "
            f"only {spread.variance.mean():.3g}. Return outputs in the units of X, or "
            "set noise_variance."
        )
        return None
    return sums.information(loss.noise_variance)


def _decoded(
    decode: Callable[[Any], Any], codes: NDArray[Any]
) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """Decode as many codes at a time as networks like, and yield smaller groups."""
    n_calls = -(-len(codes) // _MOST_IN_GROUP)
    n_groups = -(-_LEAST_GROUPS // n_calls)
    for part in np.array_split(np.arange(len(codes)), n_calls):
        output = check_real("decode", decode(codes[part]))
        _check_outputs(len(output), len(part))
        for group in np.array_split(np.arange(len(part)), n_groups):
            yield part[group], output[group]


def _targets(X: Any, origin: NDArray[np.intp], shape: tuple[int, ...]) -> Floats:
    target = np.asarray(take_samples(X, origin), dtype=np.float64)
    target = target.reshape(len(target), -1)
    if target.shape != shape:
        raise ValueError(
            f"decode must return outputs of the shape of X, {target.shape} for so many "
            f"codes, got {shape}."
        )
    return target


def _advice(
    state: str,
    information: InformationBracket | None,
    mean: Certificate,
    loss: Loss,
    threshold: float | None,
) -> str:
    if information is None:
        return "Pass the standard deviations of the posteriors too."
    if state == "collapsed":
        advice = _advice_on_collapse(loss, threshold)
        if mean.verdict == "constant":
            advice += " An escape_report says whether training can move such a mean."
        return advice
    if state == "ignored":
        return (
            "Make the decoder smaller, take other inputs away from it, or train on: it "
            "hardly uses the code."
        )
    if state == "informative":
        return _advice_on_mean(mean)
    if information.rounding > information.high - information.estimate:
        return (
            f"Encode in higher precision: rounding alone may make "
            f"{_at_most(information.rounding)} nats, because the standard deviations "
            "are as small as the errors of the means."
        )
    return "Draw more codes: a larger n_draws makes the bracket narrower."


def _advice_on_collapse(loss: Loss, threshold: float | None) -> str:
    if loss.reduction == "mean":
        return (
            "Sum the reconstruction over features: an average multiplies kl_weight by "
            "their number."
        )
    align = (
        "train on with the alignment loss (CertifiedVAE with warm_start=True and a "
        "larger alignment_weight, or skvaecert.objectives.AlignmentLoss in a loop of "
        "your own)"
    )
    if threshold is None or loss.kl_weight is None or loss.kl_weight < threshold:
        return f"Lower kl_weight, or {align}."
    return (
        f"Lower kl_weight from {loss.kl_weight:g} to below {threshold:.3g}, at which a "
        f"linear VAE collapses on these data, or {align}."
    )


def _advice_on_mean(mean: Certificate) -> str:
    if mean.verdict == "constant":
        return (
            "Use drawn codes or the standard deviations downstream: the mean alone "
            "carries nothing."
        )
    if mean.certified or mean.witness == "none":
        return "There is nothing to mend."
    if mean.reason == "teacher":
        return (
            "Nothing is wrong with the code. To have it certified, use a teacher that "
            "tells these samples apart."
        )
    if mean.reason == "noise":
        return (
            "Put modules into evaluation mode, or encode in higher precision: rounding "
            "or another batch may move the means too far for a certificate."
        )
    return (
        "Nothing is wrong with the code. The witness does not read the teacher off it, "
        "as expected where the training did not align it, or only on other samples."
    )


def _told_of_codes(d: Diagnosis) -> str:
    samples = f"about these {d.n_samples:,} samples"
    if d.information is None:
        return f"without standard deviations, nothing shows what codes carry {samples}."
    if d.state == "collapsed":
        high = _at_most(d.information.high)
        return f"drawn codes carry at most {high} nats {samples}."
    told = str(d.information)
    return told[0].lower() + told[1:]


def _told_of_decoder(d: Diagnosis) -> str:
    """Say what comes through the decoder, where that is less than what goes in."""
    if d.decoder is None or d.information is None:
        return ""
    if d.decoder.high >= d.information.high:
        return ""
    passed = f"{_at_most(d.decoder.high)} nats about the code"
    return f"The decoder's output carries at most {passed} (estimated)."


def _told_of_mean(mean: Certificate | None) -> str:
    if mean is None:
        return ""
    noise = mean.dispersion_in_noise
    by = "" if noise is None else f" by {noise:.2g} times the posterior's noise"
    read = (
        f" and the witness reads {mean.margin:.2f} of at most "
        f"{mean.teacher_information:.2f} nats about the teacher's groups off it"
    )
    return {
        "certified": f"The mean varies{by},{read}.",
        "varies": f"The mean varies{by}.",
        "constant": "The mean is constant to within rounding.",
        "inconclusive": "It was not shown whether the mean varies.",
    }[mean.verdict]


def _table(d: Diagnosis) -> list[tuple[str, str]]:
    rows = []
    if d.information is not None and d.kl_per_dimension is not None:
        confidence = f"confidence {d.information.confidence:.9g}"
        rows = [
            ("codes", f"{d.information} ({confidence})"),
            ("KL to the prior", f"{d.kl_per_dimension.sum():.3g} nats"),
        ]
    rows += [
        ("mean", "" if d.mean is None else str(d.mean)),
        ("active units", f"{d.active_units} of {d.latent_dim}"),
    ]
    if d.decoder is not None:
        passed = f"At most {_at_most(d.decoder.high)} nats about the code (estimated)."
        rows.append(("outputs", passed))
    if d.threshold is not None:
        rows.append(("threshold of kl_weight", f"{d.threshold:.3g}"))
    return [*rows, ("negligible", f"{d.negligible:g} nats")]


def _at_most(value: float) -> str:
    """Round up: what is said must not be more than what was shown."""
    digits = 3 if value < 0.1 else 2
    if not math.isfinite(value):
        return "any number of"
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _as_list(values: Floats | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _check_samples(X: Any, n_samples: int) -> Any:
    samples = X if hasattr(X, "shape") else np.asarray(X)
    if tuple(samples.shape[:1]) != (n_samples,):
        raise ValueError(
            f"X must have the {n_samples} samples of mean, got shape "
            f"{tuple(samples.shape)}."
        )
    return samples.reshape(n_samples, -1) if len(samples.shape) > 2 else samples


def _check_outputs(n_outputs: int, n_codes: int) -> None:
    if n_outputs != n_codes:
        raise ValueError(
            f"decode must return an output for each code, got {n_outputs} for "
            f"{n_codes}."
        )


def _check_loss(loss: Loss) -> None:
    for name, allowed in _OPTIONS.items():
        given = getattr(loss, name)
        if given not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {given!r}.")
    if loss.noise_variance is not None:
        check_number("noise_variance", loss.noise_variance, above=0)
    if loss.kl_weight is not None:
        check_number("kl_weight", loss.kl_weight, least=0)


def _check_negligible(negligible: float, information: InformationBracket) -> None:
    if negligible >= information.limit:
        raise ValueError(
            f"negligible must be below {information.limit:.3g} nats, the most that any "
            f"code can carry about these {information.n_samples} samples, got "
            f"{negligible:g}. Give more samples."
        )
