"""The parts of a fitted estimator that a diagnosis needs: codes, decoder, loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skvaecert._certifier.encoded import EncodedSamples, last_step
from skvaecert._certifier.kinds import MeanKind, SampledKind, Stability
from skvaecert._samples import is_sequence, take_samples
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.diagnosis import Codes, Loss

__all__ = ["codes_of", "model_of"]


def codes_of(
    pieces: Sequence[EncodedSamples], is_gaussian: bool, weight: ArrayLike | None
) -> tuple[Codes, Stability]:
    """Return the posteriors of all samples, or their means, and their stability."""
    # Without sums, because only the stability of the codes is needed.
    kind = SampledKind(None) if is_gaussian else MeanKind(None)
    for piece in pieces:
        kind.encode_again(piece)
    kind.finish()
    found = [piece.distribution if is_gaussian else (piece.means,) for piece in pieces]
    mean, *std = map(np.concatenate, zip(*found, strict=True))
    codes = Codes(mean, std[0] if std else None, weight, kind.stability.moved)
    return codes, kind.stability


def model_of(estimator: Any, X: Any, given: Loss) -> tuple[Loss, Any, Any]:
    """Return the loss, the decoder, and the samples in the units of its outputs."""
    # In a pipeline, the likelihood of the last step is in the units of its own input.
    encoder, X = last_step(estimator, X)
    decode = getattr(encoder, "inverse_transform", None)
    return _own_loss(encoder) or given, decode, X if _is_numeric(X) else None


def _own_loss(encoder: Any) -> Loss | None:
    if not isinstance(encoder, CertifiedVAE):
        return None
    criterion = encoder.net_.criterion_
    return Loss(
        criterion.likelihood,
        encoder.noise_variance_,
        # With another objective, kl_weight multiplies another term than the KL.
        kl_weight=criterion.kl_weight if encoder.objective is None else None,
        has_learned_variance=True,
    )


def _is_numeric(X: Any) -> bool:
    """Return whether samples can be compared with outputs of a decoder."""
    if is_sequence(X):
        return False
    try:
        return bool(np.asarray(take_samples(X, slice(0, 1)), dtype=np.float64).size)
    except (TypeError, ValueError):
        return False
