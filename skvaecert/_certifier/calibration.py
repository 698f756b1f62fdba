"""What the samples of `fit` tell about reading others: a witness and its softness."""

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

# Witnesses that are fitted after the encoder (theory section 8).
WITNESS_FITS = {"procrustes": fit_procrustes, "linear": fit_linear}

# Most samples that strength and tempering are chosen on.
_MOST_CALIBRATED = 2000

# Settings by which a teacher is softened, to read blurred reconstructions (section 7).
_TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
# A floor of 0 would leave the loss of a drawn code without a limit.
_FLOORS = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Tempering:
    """Temperature and floor by which a teacher's posteriors are softened once more."""

    temperature: float
    floor: float

    def __call__(self, proba: Floats) -> Floats:
        """Soften posteriors."""
        return temper(np.log(proba), self.temperature, self.floor)


@dataclass(frozen=True)
class Calibration:
    """What was fitted for the kinds "sampled" and "round_trip", and on which samples.

    Errors stand for what could not be fitted: they are raised if the kind is asked for.
    """

    rows: NDArray[np.uint64]
    witness: LinearWitness | Exception
    tempering: Tempering | Exception

    def leave_out_known(self, samples: EncodedSamples) -> tuple[EncodedSamples, int]:
        """Give those that a witness was fitted or tempered on weight 0; count them."""
        known = np.isin(fingerprint_samples(samples.X), self.rows)
        if not known.any():
            return samples, 0
        weight = check_weight(samples.weight, len(known))
        n_known = int((known & (weight > 0)).sum())
        return replace(samples, weight=np.where(known, 0.0, weight)), n_known


def split_for_witness(
    witness: str, n_samples: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the samples that fit or temper a witness, and those that it certifies."""
    order = np.random.default_rng(0).permutation(n_samples)
    if witness not in WITNESS_FITS:
        return order[:_MOST_CALIBRATED], np.arange(n_samples)
    fitted, others = np.array_split(order, 2)
    return fitted, np.sort(others if len(others) else fitted)


def calibrate(samples: EncodedSamples, witness: LinearWitness) -> Calibration:
    """Temper the witness for drawn codes, soften the teacher for reconstructions."""
    fitted, _ = split_for_witness(witness.name, len(samples.means))
    few = fitted[:_MOST_CALIBRATED]
    some, proba = samples.again(few), samples.posterior[few]
    return Calibration(
        fingerprint_samples(take_samples(samples.X, fitted)),
        _result_or_error(lambda: _tempered_witness(some, proba, witness)),
        _result_or_error(lambda: _best_tempering(some, proba)),
    )


def _tempered_witness(
    samples: EncodedSamples, proba: Floats, witness: LinearWitness
) -> LinearWitness:
    """Return q ~ mean T exp(s (A z + b)), s fitted to drawn codes (section 6)."""
    mean, deviation = samples.distribution
    codes = mean + deviation * _noise(mean)
    if witness.name in WITNESS_FITS:
        # A strength found on the samples of the witness would trust it too much.
        half = len(codes) // 2
        witness = WITNESS_FITS[witness.name](codes[:half], proba[:half])
        codes, proba = codes[half:], proba[half:]
    strength = fit_strength(witness.logits(codes), proba)
    return witness.tempered(proba.mean(axis=0), strength)


def _best_tempering(samples: EncodedSamples, proba: Floats) -> Tempering:
    """Return temperature and floor with the largest margin of decoded codes."""
    if samples.teacher is None:
        raise ValueError(
            'teacher must be fitted for kind="round_trip", which shows it '
            "reconstructions: this certifier was fitted with teacher_proba."
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
        # Its frames would keep the samples of the fit in memory.
        return error.with_traceback(None)


def result_or_raise(value: Any) -> Any:
    if isinstance(value, Exception):
        # Without the frames of earlier calls, or it would grow with each.
        raise value.with_traceback(None)
    return value
