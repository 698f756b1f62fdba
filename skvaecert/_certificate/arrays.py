"""Certificates of arrays: posteriors and latent means from any framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import ArrayLike

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.sums import MeanSums, check_shapes
from skvaecert.simplex import check_real
from skvaecert.witnesses import simplex_witness

__all__ = ["certify", "certify_batches"]


def certify(
    teacher_proba: ArrayLike,
    latent_mean: ArrayLike,
    vertices: ArrayLike,
    scale: float,
    *,
    sample_weight: ArrayLike | None = None,
    safety_margin: float = 0.0,
    latent_noise: float = 0.0,
) -> Certificate:
    """Certify that latent means are not constant: G > safety margin + tolerance.

    The margin is G = I_T - A. A is the alignment loss of the fixed simplex witness. I_T
    is the teacher information: no constant code has a smaller alignment loss on the
    same samples. The tolerance bounds what rounding could have added to G, both in the
    arithmetic of the margin and in the latent means as the encoder computed them.

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, the teacher's posteriors: every value above 0, each row sums to 1.
    latent_mean : array-like of shape (n_samples, latent_dim)
        The latent means. They are assumed to be computed in float32, also if their
        dtype is float64, and in 16 bits if a coordinate fits in 16 bits.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Individual weights for each sample, normalized to sum 1; uniform when None. A
        sample with weight 0, or at most 2^-52 of the largest weight, is left out, also
        of `n_samples`.
    safety_margin : float, default=0.0
        tau, nats, at least 0: the margin must exceed the tolerance by more than this.
    latent_noise : float, default=0.0
        Root mean square error of the latent means, in latent units. Set it if the error
        is known to be larger than that of rounding, for example from encoding twice.

    Returns
    -------
    Certificate
        The verdict and the values behind it.

    Raises
    ------
    ValueError
        If an argument is not valid.

    Notes
    -----
    The certificate is about the means that are passed. An encoder that turns rounding
    errors of its input into large outputs is not constant as computed.

    References
    ----------
    Theory sections 2 and 5; arXiv:2605.05813, arXiv:2605.18224.

    Examples
    --------
    No constant code is certified, not even the best one.

    >>> import numpy as np
    >>> from skvaecert import certify
    >>> from skvaecert.simplex import simplex_vertices
    >>> teacher_proba = np.array([[0.9, 0.1], [0.1, 0.9]])
    >>> certify(teacher_proba, np.zeros((2, 1)), simplex_vertices(2, 1), 1.0).verdict
    'constant'
    """
    means = check_real("latent_mean", latent_mean)
    posteriors = check_real("teacher_proba", teacher_proba)
    # First, because the error of `simplex_witness` would not name the shape that fits.
    check_shapes(means, posteriors, check_real("vertices", vertices).shape)
    return certify_batches(
        [(posteriors, means, sample_weight)],
        vertices,
        scale,
        safety_margin=safety_margin,
        latent_noise=latent_noise,
    )


def certify_batches(
    batches: Iterable[tuple[Any, ...]],
    vertices: ArrayLike,
    scale: float,
    *,
    safety_margin: float = 0.0,
    latent_noise: float = 0.0,
) -> Certificate:
    """Certify latent means that are passed in batches.

    The result is that of :func:`certify` on all samples together, to within the
    tolerance. Each batch is read once, and memory does not grow with the number of
    samples.

    Parameters
    ----------
    batches : iterable of tuples
        (teacher_proba, latent_mean) or (teacher_proba, latent_mean, sample_weight), as
        in :func:`certify`, for some of the samples. Weights are relative to those of
        all batches; in a batch without weights, each sample has weight 1.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.
    safety_margin : float, default=0.0
        tau, nats, at least 0: the margin must exceed the tolerance by more than this.
    latent_noise : float, default=0.0
        Root mean square error of the latent means, as in :func:`certify`.

    Returns
    -------
    Certificate
        The verdict on all samples together.

    Raises
    ------
    ValueError
        If an argument is not valid, or there are no samples.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert import certify_batches
    >>> from skvaecert.simplex import analytic_code, simplex_vertices
    >>> vertices = simplex_vertices(2, 1)
    >>> probas = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    >>> batches = ((proba, analytic_code(proba, vertices, 1.0)) for proba in probas)
    >>> certify_batches(batches, vertices, 1.0).verdict
    'certified'
    """
    sums = MeanSums(simplex_witness(vertices, scale))
    for batch in batches:
        sums.update(*batch)
    return sums.certificate(safety_margin=safety_margin, latent_noise=latent_noise)
