"""Scores of fitted certifiers and VAEs in scikit-learn's form, without labels."""

from __future__ import annotations

from copy import copy
from inspect import signature
from typing import Any, Literal, Self

from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.utils.metadata_routing import UNCHANGED, MetadataRequest

from skvaecert.model_selection._scored import Scored

__all__ = [
    "SCORES",
    "CertificateScorer",
    "certificate_scorers",
    "certified_scorer",
    "elbo_scorer",
    "lower_bound_scorer",
    "margin_scorer",
    "reconstruction_scorer",
    "relative_margin_scorer",
    "sampled_information_scorer",
]


# Each public method of Scored is a score.
SCORES = sorted(name for name in vars(Scored) if not name.startswith("_"))


class CertificateScorer:
    """A score of a fitted certifier or VAE, for `scoring` in scikit-learn.

    Call it as ``scorer(estimator, X)``. Greater is better. Scores are finite: a score
    without a value is `LOWEST_SCORE`. There is one object for each score:

    - `certified_scorer`: 1.0 if the latent mean is certified on the samples, else 0.0.
      Samples that a witness was fitted on are left out.
    - `margin_scorer`: the margin G = I_T - A in nats, at most the teacher information.
      Below 0, its order means little: a constant mean can reach 0, and a healthy code
      that was trained without alignment may have less. The margin rises with the
      alignment weight, so a search that maximizes only the margin chooses the largest
      weight of its grid. Choose with :class:`BestCertified` or
      :class:`SmallestCertifyingWeight`.
    - `relative_margin_scorer`: G / I_T, at most 1, the share of the teacher information
      that is reached. It ranks all of 0.1 nats above half of 2 nats, so use it if the
      teacher is the same for all candidates.
    - `lower_bound_scorer`: a lower confidence bound on the margin of the population, in
      nats. Options are `bound`, a function of :mod:`skvaecert.bounds`
      (:func:`~skvaecert.bounds.betting_bound` by default), and its `confidence` and
      `floor`. See the guarantee below.
    - `elbo_scorer`: the mean evidence lower bound in nats per sample, as in
      :meth:`CertifiedVAE.score`, for a :class:`CertifiedVAE` as encoder. It is a
      density of the samples that the VAE receives, so compare only candidates whose
      earlier steps are the same.
    - `reconstruction_scorer`: minus the share of variance that reconstructions x' of
      the latent means leave unexplained, at most 0, for encoders with an
      `inverse_transform`. A decoder that returns the mean sample scores about -1::

          - sum_ij (x_ij - x'_ij)^2 / sum_ij (x_ij - mean x_j)^2

    - `sampled_information_scorer`: the margin of drawn codes, a lower bound on I(x; z)
      in nats, as in ``certify(X, kind="sampled")``. On samples of the fit, which
      `certify` leaves out, it is a training score and too high. The option `n_draws` is
      the number of codes per sample. It requires a :class:`CollapseCertifier`, whose
      fit tempers the witness, around an encoder that has a method `encode`.
    - `certificate_scorers`: a dict of all these scores that the estimator supports.

    Parameters
    ----------
    score : {"certified", "margin", "relative_margin", "lower_bound", "elbo", \
            "reconstruction", "sampled_information", "all"}
        Name of the score.
    **options : dict
        The options described above.

    Raises
    ------
    ValueError
        If there is no such score.
    TypeError
        If the score has no such option.

    See Also
    --------
    BestCertified : Chooses a candidate of a search by these scores.

    Notes
    -----
    *Guarantee of the lower bound.* Consider one fitted model and one test fold, whose
    samples are drawn independently and not used in a fit. With probability `confidence`
    or more over this draw, the score is at most the margin of the population. The mean
    over folds is no such bound, and neither is the score of the best of several
    candidates. Bound the chosen model on samples that were not used in the search
    (theory section 13).

    *Several scores.* scikit-learn requires the same names from all candidates, and
    cannot continue after an error in a scorer that returns several scores. So use
    `certificate_scorers` for encoders of one kind.

    *References.* Theory sections 2, 6 and 13; arXiv:2605.05813, arXiv:2605.18224.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import KFold, cross_val_score
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.model_selection import (
    ...     CertificateScorer, certificate_scorers, margin_scorer)
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, max_epochs=50, device="cpu",
    ...     random_state=0)
    >>> scores = certificate_scorers(CollapseCertifier(vae).fit(X), X)
    >>> scores["certified"], scores["margin"] > scores["lower_bound"] > 0
    (1.0, True)
    >>> folds = KFold(3, shuffle=True, random_state=0)
    >>> bool((cross_val_score(vae, X, scoring=margin_scorer, cv=folds) > 0.5).all())
    True
    >>> CertificateScorer("lower_bound", confidence=0.99)
    CertificateScorer('lower_bound', confidence=0.99)
    """

    def __init__(
        self,
        score: Literal[
            "certified",
            "margin",
            "relative_margin",
            "lower_bound",
            "elbo",
            "reconstruction",
            "sampled_information",
            "all",
        ],
        **options: Any,
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"score must be one of {SCORES}, got {score!r}.")
        try:
            # Raise now: inside a search, an error would only become a NaN score.
            signature(getattr(Scored, score)).bind(None, **options)
        except TypeError as error:
            raise TypeError(f"options of the score {score!r}: {error}.") from None
        self.score = score
        self.options = options
        self._aliases: dict[str, bool | str | None] = {
            "teacher_proba": None,
            "sample_weight": None,
        }

    def __call__(
        self,
        estimator: Any,
        X: ArrayLike,
        y: Any = None,
        *,
        teacher_proba: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        """Score a fitted estimator on samples.

        Parameters
        ----------
        estimator : fitted estimator
            A :class:`CollapseCertifier` or :class:`CertifiedVAE`, a Pipeline that ends
            one, or a search over one, which has a `best_estimator_`.
        X : array-like of shape (n_samples, n_features)
            Samples. The steps before the certifier transform them.
        y : Ignored
            Not used, present for API consistency by convention.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Teacher's posteriors of `X`. If None, the fitted teacher computes them.
        sample_weight : array-like of shape (n_samples,), default=None
            Individual weights for each sample. If None, the samples are equally
            weighted. Not supported by "lower_bound".

        Returns
        -------
        float or dict of float
            The score, or for "all" a dict of scores by name.

        Raises
        ------
        TypeError
            If the estimator is of another kind, or has no such score.
        """
        scored = Scored(estimator, X, teacher_proba, sample_weight)
        value = getattr(scored, self.score)(**self.options)
        return value if isinstance(value, dict) else float(value)

    def __repr__(self) -> str:
        """Return the call that makes this scorer."""
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"CertificateScorer({self.score!r}{options})"

    def set_score_request(
        self,
        *,
        teacher_proba: bool | str | None = UNCHANGED,
        sample_weight: bool | str | None = UNCHANGED,
    ) -> Self:
        """Return a copy that requests metadata, which a search splits with the folds.

        The method returns a copy because scorers such as `margin_scorer` are shared.

        Parameters
        ----------
        teacher_proba, sample_weight : bool, str or None, default=UNCHANGED
            As in scikit-learn's metadata routing: True to request it, False to ignore
            it, a str to request it under this name, None to raise an error if it is
            passed to the search. A parameter that you do not pass keeps its value.

        Returns
        -------
        CertificateScorer
            The copy.

        Raises
        ------
        RuntimeError
            If metadata routing is not enabled, so that nothing would be routed.
        """
        if not get_config().get("enable_metadata_routing"):
            raise RuntimeError(
                "Metadata routing is not enabled. Enable it first: "
                "sklearn.set_config(enable_metadata_routing=True)."
            )
        other = copy(self)
        requested = {"teacher_proba": teacher_proba, "sample_weight": sample_weight}
        changed = {k: v for k, v in requested.items() if v != UNCHANGED}
        other._aliases = self._aliases | changed
        other.get_metadata_routing()  # raises now if an alias is not valid
        return other

    def get_metadata_routing(self) -> MetadataRequest:
        """Return the metadata that this scorer requests; called by scikit-learn.

        Returns
        -------
        MetadataRequest
            The requests for the method `score`.
        """
        request = MetadataRequest(owner=repr(self))
        for name, alias in self._aliases.items():
            request.score.add_request(param=name, alias=alias)
        return request


certified_scorer = CertificateScorer("certified")
margin_scorer = CertificateScorer("margin")
relative_margin_scorer = CertificateScorer("relative_margin")
lower_bound_scorer = CertificateScorer("lower_bound")
elbo_scorer = CertificateScorer("elbo")
reconstruction_scorer = CertificateScorer("reconstruction")
sampled_information_scorer = CertificateScorer("sampled_information")
certificate_scorers = CertificateScorer("all")
