"""The tolerance of a margin: how much rounding can add to it.

Two kinds of rounding error can lift the margin of a constant code above 0. One is in
the arithmetic of the margin itself (:func:`summation_error`). The other is in the
encoder, whose rounding makes a constant code vary (:func:`noise_margin`). Theory
sections 2 and 5.
"""

from __future__ import annotations

import math

import numpy as np

from skvaecert.metrics import MarginSums, dispersion_bound
from skvaecert.witnesses import LinearWitness

__all__ = ["noise_margin", "noise_needed", "summation_error"]


def summation_error(
    alignment: MarginSums, witness: LinearWitness, mean_norm: float
) -> float:
    r"""Bound the error of the computed margin, given teacher and codes.

    With u = 2^-53, products and sums of n and K terms in any order are off by a
    factor within 1 +- (n + K + 4) u, the normalizations of T and p included, and the
    mean teacher by the same. A logit a_k . z_i + b_k is off by at most
    (d + 2) u (||a_k|| ||z_i|| + |b_k|), which moves log q by at most twice that;
    log-sum-exp over K terms adds (K + 3 + 2 log K) u, and each logarithm its own
    u |log|. Summed with weights, where C = -sum p T log q, H = -sum mean T log mean T,
    and a, b are the largest ||a_k||, |b_k|::

        error <= 2 u [(n + K + 8) (C + H + 1) + (d + 2) (a sum_i p_i ||z_i|| + b)]

    The returned bound is twice that, which leaves room for the terms of second order.
    """
    n_components, latent_dim = witness.weights.shape
    entropies = alignment.cross_entropy + alignment.mean_entropy + 1
    terms = (alignment.n_samples + n_components + 8) * entropies
    largest = float(np.linalg.norm(witness.weights, axis=1).max()) * mean_norm
    logits = (latent_dim + 2) * (largest + float(np.abs(witness.bias).max()))
    # NumPy's eps is 2 u, so that this is twice the bound of the docstring.
    return float(2 * np.finfo(np.float64).eps * (terms + logits))


def noise_margin(noise: float, force: float, witness: LinearWitness) -> float:
    r"""Bound the margin that noise around a constant code can fake.

    Let the codes be c + delta_i with sum_i p_i ||delta_i||^2 <= u^2, and let the
    witness read the mean teacher off some code z. Its log-likelihood is concave in the
    code, and the forces f_i at z average to 0. So for any c (theory section 5)::

        G <= sum_i p_i <f_i(z), c + delta_i - z> <= f_rms u

    Without such a z, with m = ||mean T - q(c)||, the forces at c, and Pinsker's
    inequality in the form KL(mean T || q) >= m^2::

        G <= -KL(mean T || q(c)) + sum_i p_i <f_i(c), delta_i>
          <= -m^2 + u sqrt(f_rms^2 + a^2 m^2)      with a the gain of the witness
          <= f_rms u + (a u / 2)^2.
    """
    if witness.reads_all:
        return force * noise
    gain = witness.gain
    # A product, because a power of Python floats raises when it overflows.
    return force * noise + (gain * noise) * (gain * noise) / 4


def noise_needed(margin: float, force: float, witness: LinearWitness) -> float:
    """Solve the bound of :func:`noise_margin` for the noise: a certified dispersion."""
    if witness.reads_all:
        return dispersion_bound(margin, force)
    if margin <= 0:
        return 0.0
    # The root u of f u + (a u / 2)^2 = G (theory section 8), without cancellation.
    return 2 * margin / (force + math.hypot(force, witness.gain * math.sqrt(margin)))
