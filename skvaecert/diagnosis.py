"""Has a VAE collapsed? The answer from arrays, in one call (theory sections 15 to 18).

A diagnosis combines four results: the information of drawn codes, bounded from both
sides; whether the mean varies; what the decoder's outputs carry about the code; and the
kl_weight at which collapse is to be expected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

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
# Number of codes that are decoded: this share of the draws, but at least so many.
_DECODED_SHARE, _LEAST_DECODED = 0.1, 1000
# Least number of groups for the jackknife, and most codes in one call of the decoder.
_LEAST_GROUPS, _MOST_IN_CALL = 16, 256
_OPTIONS = {
    # None stands for an estimator whose loss is not known.
    "likelihood": ("gaussian", "bernoulli", None),
    "reduction": ("sum", "mean"),
}
# If the error of reconstructions exceeds the variance of X by this factor, they are
# taken to have other units than X.
_OTHER_UNITS = 1.5


# Without ==, since the comparison of arrays has no single truth value.
@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Whether a VAE has collapsed, with the values behind the answer.

    `str` returns a short paragraph, :meth:`to_json` a record, and notebooks show a
    table. A diagnosis has no truth value: use its `state`.

    Attributes
    ----------
    state : {"informative", "collapsed", "ignored", "undecided"}
        The first of these that applies. "collapsed": drawn codes carry at most
        `negligible` nats about these samples. "ignored": the decoder's outputs carry at
        most `negligible` nats about the code. "informative": drawn codes carry more
        than `negligible` nats. "undecided": none of these was shown.
    information : InformationBracket or None
        The information of drawn codes about these samples, bounded from both sides.
        None without standard deviations.
    mean : Certificate or None
        Whether the mean varies. Without a teacher, its `witness` is "none" and its
        `verdict` "varies", "constant" or "inconclusive".
    decoder : OutputInformation or None
        Estimated upper bound on what the decoder's outputs carry about the code. None
        if it was not measured.
    threshold : float or None
        The `kl_weight` at which all directions of a linear VAE collapse on these data,
        from :func:`skvaecert.forecast.collapse_threshold`. None without data.
    kl_per_dimension : ndarray of shape (latent_dim,) or None
        KL to the prior, nats. None without standard deviations.
    active_units : int
        Number of dimensions whose mean has a variance of at least 0.01.
    advice : str
        What to do next, in one or two sentences.
    negligible : float
        Information up to this value counts as none, nats.
    n_samples : int
        Number of samples, without those of weight 0.
    latent_dim : int
        d.

    See Also
    --------
    diagnose : Compute a diagnosis from arrays.
    CollapseCertifier.diagnose : Compute a diagnosis of a fitted estimator.
    """

    state: Literal["informative", "collapsed", "ignored", "undecided"]
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
        # Otherwise every diagnosis would be true, also that of a collapsed VAE.
        raise TypeError(
            "A Diagnosis has no truth value. Compare diagnosis.state, for example with "
            "'collapsed'."
        )

    def __str__(self) -> str:
        """Return what was found and what to do, in plain sentences."""
        found = f"{self.state.capitalize()}: {_codes_finding(self)}"
        others = [_decoder_finding(self), _mean_finding(self.mean), self.advice]
        return " ".join([found, *filter(None, others)])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name.

        Returns
        -------
        dict
            Plain Python values, in the order of the attributes. `information`, `mean`
            and `decoder` are dicts as well, or None.
        """
        # `asdict` keeps arrays, which JSON does not have.
        return dataclasses.asdict(self) | {
            "kl_per_dimension": _as_list(self.kl_per_dimension)
        }

    def to_json(self) -> str:
        """Return the fields as a JSON object, with null for values that are not finite.

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
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
    noise_variance: float | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    kl_weight: float | None = None,
    negligible: float = 0.05,
    confidence: float = 0.999999,
    n_draws: int = 40_000,
    random_state: int | np.random.Generator | None = None,
) -> Diagnosis:
    """Diagnose whether a VAE has collapsed, from the posteriors of some samples.

    Let [low, high] be the bracket of the information of drawn codes, and U the
    estimated upper bound on the information of the decoder's outputs about the code.
    The state is::

        "collapsed"      if high <= negligible, else
        "ignored"        if U plus three standard errors <= negligible, else
        "informative"    if low > negligible, else
        "undecided"

    Parameters
    ----------
    mean : array-like of shape (n_samples, latent_dim)
        The latent means: means of the encoder's posteriors q(z|x_i).
    std : array-like of shape (n_samples, latent_dim), default=None
        The posterior standard deviations, above 0: exp(log_variance / 2). If
        log-variances are passed, there is an error, unless all of them are above 0 and
        cannot be told from standard deviations. Without `std` the state is "undecided".
    decode : callable, default=None
        Takes codes, an array of shape (n_codes, latent_dim), and returns the means of
        the likelihood, an array of shape (n_codes, ...). For "bernoulli" these are
        probabilities, not logits. It must depend on the codes only, not on a label or
        on earlier values of the output.
    X : array-like of shape (n_samples, ...), default=None
        The same samples, in the units of the decoder's outputs. They are used for the
        noise variance and the threshold.
    teacher_proba : array-like of shape (n_samples, n_components), default=None
        The teacher's posteriors, which a witness reads off the latent mean.
    witness : AlignmentLoss or None, default=None
        The witness: the alignment loss that a model was trained with. If None, it is
        the fixed simplex at the prior-matched scale of `teacher_proba`. This requires
        n_components - 1 <= latent_dim and posteriors that are not all uniform.
        Otherwise `teacher_proba` is not used.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample; uniform when None. Samples with weight 0 are
        left out. The threshold gives all other samples the same weight.
    likelihood : {"gaussian", "bernoulli"}, default="gaussian"
        The likelihood of the decoder.
    noise_variance : float or None, default=None
        Variance of the Gaussian likelihood if the loss fixes it, for example 1/2 for a
        sum of squared errors without a factor. None if it is learned. Then it is the
        mean squared error of reconstructing `X` from drawn codes.
    reduction : {"sum", "mean"}, default="sum"
        Whether the loss sums the reconstruction over features or averages it.
    kl_weight : float or None, default=None
        Weight of the KL term in the loss, at least 0. It is used for the advice.
    negligible : float, default=0.05
        Information up to this value counts as none, nats, above 0.
    confidence : float, default=0.999999
        Probability with which the bracket holds, in (0, 1).
    n_draws : int, default=40000
        Total number of codes drawn for the bracket. A tenth of it, but at least 1000
        codes, is drawn for the decoder.
    random_state : int, numpy.random.Generator or None, default=None
        Determines random number generation for the draws. Pass an int for reproducible
        output across multiple function calls.

    Returns
    -------
    Diagnosis
        State, values and advice.

    Raises
    ------
    ValueError
        If an argument is not valid, if `decode` is given without `X` or
        `noise_variance` for the Gaussian likelihood, or if no code could carry more
        than `negligible` nats about so few samples.

    Warns
    -----
    UserWarning
        If the decoder was not measured, because its outputs are not in the units of
        `X`, or worse than a constant.

    See Also
    --------
    CollapseCertifier.diagnose : Compute a diagnosis of a fitted estimator.
    skvaecert.information.code_information : Compute the bracket.
    skvaecert.information.output_information : Compute U.
    skvaecert.forecast.collapse_threshold : Compute the threshold.

    Notes
    -----
    The bracket is about the given samples, and holds with probability `confidence` over
    the draws. "Ignored" is based on an estimate. Latent means may vary, and a witness
    may read clusters off them, although the posterior's noise hides all of it. Such a
    code has collapsed. Latent means may also be constant, although the standard
    deviations tell samples apart. Such a code is informative.

    References
    ----------
    Theory sections 15 to 18.

    Examples
    --------
    In the first example, the means vary by a hundredth of the noise:

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
    """Posteriors of samples: latent means, and standard deviations if there are any.

    `moved` is the root mean square change of the means, and of the logarithms of the
    standard deviations, in another batch.
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
        has_weight = self.proba > 0
        return X if has_weight.all() else take_samples(X, np.flatnonzero(has_weight))

    def reproducible(self, found: InformationBracket) -> InformationBracket:
        """Subtract the information that an encoder may add by moving its own codes.

        The changes between batches count like rounding errors in theory section 16.
        """
        # The formula of section 16, with u_j^2 = moved^2 / d and h_j = moved.
        latent_dim, squared = self.mean.shape[1], self.moved**2
        # `initial` limits the deviation to 1, which can only raise the correction.
        narrowest = float(np.min(np.asarray(self.std), where=self._weighted, initial=1))
        made_up = np.log1p(squared / latent_dim / narrowest**2) / 2 + squared
        rounding = max(found.rounding, latent_dim * float(made_up))
        # The assumed rounding is subtracted from `low` already.
        low = max(0.0, found.low - (rounding - found.rounding))
        low_by = found.low_by if low > 0 else "zero"
        return replace(found, low=low, rounding=rounding, low_by=low_by)

    @property
    def _weighted(self) -> NDArray[np.bool_]:
        return (self.proba > 0)[:, np.newaxis]

    def draw(
        self, n_draws: int, generator: np.random.Generator
    ) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """Draw samples and a code for each, in the precision of the means."""
        origin = generator.choice(len(self.mean), size=n_draws, p=self.proba)
        noise = generator.standard_normal((n_draws, self.mean.shape[1]))
        code = self.mean[origin] + np.asarray(self.std)[origin] * noise
        # Torch layers in float32 refuse codes in float64.
        is_single = self.mean.dtype == np.float32
        return origin, code.astype(np.float32 if is_single else np.float64)


def diagnose_codes(
    codes: Codes,
    *,
    X: ArrayLike | None = None,
    teacher_proba: ArrayLike | None = None,
    witness: Any = None,
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian",
    noise_variance: float | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    kl_weight: float | None = None,
    **settings: Any,
) -> Diagnosis:
    """Diagnose posteriors that may be known to change with the batch.

    The other arguments are those of :func:`diagnose`.
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
    """What is known about the loss that a VAE was trained with.

    A learned noise variance is used for the decoder, but not for the threshold, which
    is that of a VAE that learns its own.
    """

    likelihood: Literal["gaussian", "bernoulli"] | None
    noise_variance: float | None = None
    reduction: Literal["sum", "mean"] = "sum"
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
    """Combine the results on codes, mean and decoder to a diagnosis."""
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
            decoder = _decoder_information(
                codes, loss, decode, X, n_draws, random_state
            )
    threshold = None if X is None else loss.threshold(codes.counted(X))
    # The certificate must not show another bracket than the diagnosis.
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
) -> Literal["informative", "collapsed", "ignored", "undecided"]:
    if information is None:
        return "undecided"
    # The first state that applies, in the order of theory section 17.
    if information.high <= negligible:
        return "collapsed"
    # `high` includes three standard errors, because the bound is an estimate.
    if decoder is not None and decoder.high <= negligible:
        return "ignored"
    return "informative" if information.low > negligible else "undecided"


def _certificate(
    codes: Codes,
    teacher_proba: ArrayLike | None,
    alignment_loss: Any,
    information: InformationBracket | None,
) -> Certificate:
    witness, proba = _witness(codes, teacher_proba, alignment_loss)
    sums = MeanSums(witness).update(proba, codes.mean, codes.sample_weight)
    if codes.std is not None:
        sums.codes.update(codes.mean, codes.std, codes.sample_weight)
        # The bracket of the diagnosis, so that it is not computed again.
        sums.codes.known = information
    return sums.certificate(latent_noise=codes.moved)


def _witness(
    codes: Codes, teacher_proba: ArrayLike | None, alignment_loss: Any
) -> tuple[LinearWitness, Floats]:
    """Return the witness of a loss, or the fixed simplex, and the posteriors it reads.

    Without usable posteriors, return a witness and posteriors of a single component,
    which carry no information. The test of a constant mean needs no more.
    """
    n_samples, latent_dim = codes.mean.shape
    if alignment_loss is not None:
        if teacher_proba is None:
            raise ValueError(
                "teacher_proba must be given with witness, which reads it off the "
                "latent mean, got None."
            )
        witness = simplex_witness(*simplex_of(alignment_loss))
        check_shapes(codes.mean, np.asarray(teacher_proba), witness.weights.shape)
        return witness, check_teacher_proba(teacher_proba, n_samples)
    if teacher_proba is not None:
        proba = check_teacher_proba(teacher_proba, n_samples)
        n_components = proba.shape[1]
        scale = prior_matched_scale(proba, codes.sample_weight)
        # The simplex needs K - 1 dimensions, and uniform posteriors have scale 0.
        if 1 < n_components <= latent_dim + 1 and scale > 0:
            vertices = simplex_vertices(n_components, latent_dim)
            return simplex_witness(vertices, scale), proba
    nothing = LinearWitness(np.zeros((1, latent_dim)), np.zeros(1), "none")
    return nothing, np.ones((n_samples, 1))


def _decoder_information(
    codes: Codes,
    loss: Loss,
    decode: Callable[[Any], Any],
    X: Any,
    n_draws: int,
    random_state: int | np.random.Generator | None,
) -> OutputInformation | None:
    """Estimate what the decoder's outputs carry about drawn codes."""
    likelihood = loss.likelihood or "gaussian"
    # An unknown variance is measured as a loss would learn it (theory section 17).
    is_measured = likelihood == "gaussian" and loss.noise_variance is None
    if is_measured and X is None:
        raise ValueError(
            "noise_variance or X must be given with decode for likelihood='gaussian', "
            "because the information of the outputs depends on their noise. In "
            "TrainedEncoder, X must be an array of floats. For token ids, leave out "
            "the decoder."
        )
    sums, spread = OutputSums(likelihood), SpreadSums()
    n_decoded = max(_LEAST_DECODED, int(_DECODED_SHARE * n_draws))
    origin, code = codes.draw(n_decoded, np.random.default_rng(random_state))
    for group, output in _decoded(decode, code):
        output = check_output(likelihood, output, name="decode")
        target = _targets(X, origin[group], output.shape) if is_measured else None
        sums.add(output, target)
        if target is not None:
            spread.update(target, np.ones(len(target)))
    # The variance of X is the error of the best constant output.
    if is_measured and sums.mean_squared_error > _OTHER_UNITS * spread.variance.mean():
        warn_user(
            "The decoder was not measured, because its outputs do not seem to have the "
            "units of X: the mean squared error of reconstructions from drawn codes is "
            f"{sums.mean_squared_error:.3g}, and the variance of X is only "
            f"{spread.variance.mean():.3g}. Return outputs in the units of X, or pass "
            "noise_variance."
        )
        return None
    return sums.information(loss.noise_variance)


def _decoded(
    decode: Callable[[Any], Any], codes: NDArray[Any]
) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """Decode in calls of a moderate size, and yield the smaller groups of each call.

    The jackknife needs several groups, also if there is only one call.
    """
    n_calls = -(-len(codes) // _MOST_IN_CALL)
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
            f"decode must return outputs of the shape of X, here {target.shape}, got "
            f"{shape}."
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
        return "Pass the standard deviations of the posteriors as well."
    if state == "collapsed":
        advice = _advice_on_collapse(loss, threshold)
        if mean.verdict == "constant":
            advice += " An escape_report shows whether training can move such a mean."
        return advice
    if state == "ignored":
        return (
            "The decoder hardly uses the code: make it smaller, remove its other "
            "inputs, or train further."
        )
    if state == "informative":
        return _advice_on_mean(mean)
    # More draws cannot narrow the part of the bracket that is due to rounding.
    if information.rounding > information.high - information.estimate:
        return (
            "Encode in higher precision: rounding alone may account for "
            f"{_at_most(information.rounding)} nats, because the standard deviations "
            "are as small as the errors of the means."
        )
    return "Draw more codes: a larger n_draws makes the bracket narrower."


def _advice_on_collapse(loss: Loss, threshold: float | None) -> str:
    if loss.reduction == "mean":
        return (
            "Sum the reconstruction loss over features: an average multiplies the "
            "effective kl_weight by their number."
        )
    align = (
        "train further with the alignment loss (CertifiedVAE with warm_start=True and "
        "a larger alignment_weight, or skvaecert.objectives.AlignmentLoss in your own "
        "loop)"
    )
    # Below the threshold of a linear VAE, the number would explain nothing.
    if threshold is None or loss.kl_weight is None or loss.kl_weight < threshold:
        return f"Lower kl_weight, or {align}."
    return (
        f"Lower kl_weight from {loss.kl_weight:g} to well below {threshold:.3g}, at "
        f"which a linear VAE collapses on these data, or {align}."
    )


def _advice_on_mean(mean: Certificate) -> str:
    if mean.verdict == "constant":
        return (
            "Use drawn codes or the standard deviations downstream: the mean alone "
            "carries nothing."
        )
    if mean.certified or mean.witness == "none":
        return "The VAE has not collapsed on these samples."
    if mean.reason == "teacher":
        return (
            "Nothing is wrong with the code. To certify it, use a teacher that tells "
            "these samples apart."
        )
    if mean.reason == "noise":
        return (
            "Set modules to evaluation mode, or encode in higher precision: rounding "
            "or another batch may move the means too far for a certificate."
        )
    return (
        "Nothing is wrong with the code. The witness does not read the teacher's "
        "clusters off it, which is expected if the model was trained without "
        "alignment, or aligned on other samples only."
    )


def _codes_finding(d: Diagnosis) -> str:
    samples = f"about these {d.n_samples:,} samples"
    if d.information is None:
        return f"without standard deviations, nothing shows what codes carry {samples}."
    if d.state == "collapsed":
        high = _at_most(d.information.high)
        return f"drawn codes carry at most {high} nats {samples}."
    sentence = str(d.information)
    return sentence[0].lower() + sentence[1:]


def _decoder_finding(d: Diagnosis) -> str:
    """Return what the decoder passes on, if it is less than the codes carry."""
    if d.decoder is None or d.information is None:
        return ""
    if d.decoder.high >= d.information.high:
        return ""
    passed = f"{_at_most(d.decoder.high)} nats about the code"
    return f"The decoder's output carries at most {passed} (estimated)."


def _mean_finding(mean: Certificate | None) -> str:
    if mean is None:
        return ""
    noise = mean.dispersion_in_noise
    by = "" if noise is None else f" by {noise:.2g} times the posterior's noise"
    read = (
        f" and the witness reads {mean.margin:.2f} of at most "
        f"{mean.teacher_information:.2f} nats about the teacher's clusters off it"
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
    """Round up, so that the printed bound still holds."""
    digits = 3 if value < 0.1 else 2
    if not math.isfinite(value):
        return "any number of"
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _as_list(values: Floats | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _check_samples(X: Any, n_samples: int) -> Any:
    # Arrays on disk must not be read as a whole here.
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
            f"decode must return one output for each code, got {n_outputs} outputs for "
            f"{n_codes} codes."
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
            f"{negligible:g}. Pass more samples."
        )
