"""Witness and teacher for drawn codes and reconstructions, tuned on samples of `fit`.

Sections are those of the theory page.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skvaecert._certifier.encoded import EncodedSamples, read
from skvaecert._samples import fingerprint_samples, take_samples
from skvaecert.metrics import collapse_margin
from skvaecert.simplex import Floats, check_weight, temper
from skvaecert.witnesses import (
    LinearWitness,
    fit_linear,
    fit_procrustes,
    fit_strength,
)

__all__ = [
    "WITNESS_FITS",
    "Calibration",
    "Tempering",
    "calibrate",
    "result_or_raise",
    "split_for_witness",
]

# Witnesses that are fitted after the encoder (section 8).
WITNESS_FITS = {"procrustes": fit_procrustes, "linear": fit_linear}

# Maximum number of samples on which strength and tempering are chosen.
_MOST_CALIBRATED = 2000

# Settings that soften a teacher, to read blurred reconstructions (section 7).
_TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# With a floor of 0 the loss of a drawn code would be unbounded.
_FLOORS = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Tempering:
    """Temperature and floor that soften a teacher's posteriors further."""

    temperature: float
    floor: float

    def __call__(self, proba: Floats) -> Floats:
        """Soften posteriors."""
        return temper(np.log(proba), self.temperature, self.floor)


@dataclass(frozen=True)
class Calibration:
    """Results of the fits for the kinds "sampled" and "round_trip".

    `rows` are fingerprints of the samples that were used. A fit that failed is stored
    as its error, which is raised when the kind is certified.
    """

    rows: NDArray[np.uint64]
    witness: LinearWitness | Exception
    tempering: Tempering | Exception

    def leave_out_known(self, samples: EncodedSamples) -> tuple[EncodedSamples, int]:
        """Set the weight of samples that were used in these fits to 0; count them."""
        known = np.isin(fingerprint_samples(samples.X), self.rows)
        if not known.any():
            return samples, 0
        weight = check_weight(samples.weight, len(known))
        n_known = int((known & (weight > 0)).sum())
        return replace(samples, weight=np.where(known, 0.0, weight)), n_known


def split_for_witness(
    witness: str, n_samples: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the indices of samples to fit a witness on, and of those to certify."""
    # A fixed seed: fit, calibration and certificate must split the samples alike.
    order = np.random.default_rng(0).permutation(n_samples)
    if witness not in WITNESS_FITS:
        return order[:_MOST_CALIBRATED], np.arange(n_samples)
    fitted, others = np.array_split(order, 2)
    # A single sample is in both parts. It has no teacher information, nor a margin.
    return fitted, np.sort(others if len(others) else fitted)


def calibrate(samples: EncodedSamples, witness: LinearWitness) -> Calibration:
    """Temper the witness for drawn codes and the teacher for reconstructions."""
    fitted, _ = split_for_witness(witness.name, len(samples.means))
    few = fitted[:_MOST_CALIBRATED]
    some, proba = samples.subset(few), samples.posterior[few]
    return Calibration(
        # All samples that the witness was fitted on, not only the few used here.
        fingerprint_samples(take_samples(samples.X, fitted)),
        _result_or_error(lambda: _tempered_witness(some, proba, witness)),
        _result_or_error(lambda: _best_tempering(some, proba)),
    )


def _tempered_witness(
    samples: EncodedSamples, proba: Floats, witness: LinearWitness
) -> LinearWitness:
    """Return q ~ mean T exp(s (A z + b)), with s fitted to drawn codes (section 6)."""
    mean, deviation = samples.distribution
    codes = mean + deviation * _noise(mean)
    if witness.name in WITNESS_FITS:
        # On the samples of the witness itself, the strength would be too large.
        half = len(codes) // 2
        witness = WITNESS_FITS[witness.name](codes[:half], proba[:half])
        codes, proba = codes[half:], proba[half:]
    strength = fit_strength(witness.logits(codes), proba)
    return witness.tempered(proba.mean(axis=0), strength)


def _best_tempering(samples: EncodedSamples, proba: Floats) -> Tempering:
    """Return the temperature and floor with the largest margin of decoded codes."""
    if samples.teacher is None:
        raise ValueError(
            'teacher must be fitted for kind="round_trip", to predict posteriors of '
            "reconstructions, but this certifier was fitted with teacher_proba. Fit it "
            "without teacher_proba."
        )
    codes = samples.drawn(_noise(samples.codes[0]))
    round_trip = read(samples.teacher, samples.decoded(codes))

    def margin(tempering: Tempering) -> float:
        return collapse_margin(tempering(proba), np.log(tempering(round_trip)))

    return max((Tempering(*s) for s in product(_TEMPERATURES, _FLOORS)), key=margin)


def _noise(mean: NDArray[Any]) -> Floats:
    return np.random.default_rng(0).standard_normal(mean.shape)


def _result_or_error(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        # Without frames, which would keep the samples of the fit in memory.
        return error.with_traceback(None)


def result_or_raise(value: Any) -> Any:
    if isinstance(value, Exception):
        # Without the frames of earlier calls, which would accumulate.
        raise value.with_traceback(None)
    return value
