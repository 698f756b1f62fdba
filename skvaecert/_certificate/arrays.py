"""Certificates of arrays, whole or in batches."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.sums import CertificateSums, check_shapes
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

    The margin G = I_T - A compares the alignment loss of the fixed simplex witness
    with what the best constant student pays on the same rows. The tolerance is the
    sum of what rounding could have added to G,

    - in the arithmetic of the margin itself (`summation_error`), and
    - in the latent means, as the encoder computed them (`noise_margin`).

    Parameters
    ----------
    teacher_proba : array-like of shape (n_samples, n_components)
        T, every entry above 0, rows summing to 1.
    latent_mean : array-like of shape (n_samples, latent_dim)
        The encoder means, taken to be computed in float32, or in 16 bits in those
        coordinates that fit in that (see `rounding_noise`).
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights, normalised to sum 1; uniform when None.
    safety_margin : float, default=0.0
        tau, nats, at least 0: the margin has to be above it.
    latent_noise : float, default=0.0
        Root mean square error of the latent means, in latent units, if it is known
        to be more than rounding in their dtype, for example from computing them
        twice.

    Returns
    -------
    Certificate
        The verdict and the numbers behind it.

    Raises
    ------
    ValueError
        If an array or number is not valid.

    Notes
    -----
    The statement is about the means as they are given: an encoder that turns
    rounding errors of its input into large outputs is not constant as computed.

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
    simplex = np.asarray(vertices, dtype=np.float64)
    means, posteriors = np.asanyarray(latent_mean), np.asanyarray(teacher_proba)
    check_shapes(means, posteriors, simplex.shape)
    sums = CertificateSums(simplex_witness(simplex, scale))
    sums.update(posteriors, means, sample_weight)
    return sums.certificate(safety_margin=safety_margin, latent_noise=latent_noise)


def certify_batches(
    batches: Iterable[tuple[ArrayLike, ...]],
    vertices: ArrayLike,
    scale: float,
    *,
    safety_margin: float = 0.0,
    latent_noise: float = 0.0,
) -> Certificate:
    """Certify latent means that come in batches, reading each once.

    The same as :func:`certify` on all rows together, to within the tolerance, in memory
    that does not grow with their number.

    Parameters
    ----------
    batches : iterable of (teacher_proba, latent_mean) or with sample_weight
        Arrays as :func:`certify` takes them, for some of the rows. Weights, or 1 for
        each row where a batch has none, count across batches.
    vertices : array-like of shape (n_components, latent_dim)
        S, from :func:`skvaecert.simplex.simplex_vertices`.
    scale : float
        beta, above 0.
    safety_margin : float, default=0.0
        tau, nats, at least 0: the margin has to be above it.
    latent_noise : float, default=0.0
        Root mean square error of the latent means, as in :func:`certify`.

    Returns
    -------
    Certificate
        The verdict on all rows together.

    Raises
    ------
    ValueError
        If an array or number is not valid, or there are no rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skvaecert import certify_batches
    >>> from skvaecert.simplex import analytic_code, simplex_vertices
    >>> vertices = simplex_vertices(2, 1)
    >>> rows = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    >>> batches = ((proba, analytic_code(proba, vertices, 1.0)) for proba in rows)
    >>> certify_batches(batches, vertices, 1.0).verdict
    'certified'
    """
    sums = CertificateSums(simplex_witness(vertices, scale))
    for batch in batches:
        sums.update(*batch)
    return sums.certificate(safety_margin=safety_margin, latent_noise=latent_noise)
