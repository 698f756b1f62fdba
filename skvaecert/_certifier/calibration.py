"""What samples of the fit tell on how to read others: strength and tempering."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline

from skvaecert.metrics import collapse_margin
from skvaecert.simplex import Floats, temper
from skvaecert.witnesses import LinearWitness, fit_strength

__all__ = ["Calibration", "Models", "Tempering", "calibrate"]


def result_or_raise(value: Any) -> Any:
    if isinstance(value, Exception):
        # A new one, or its traceback would grow with each call.
        raise value.with_traceback(None)
    return value


# What a teacher is softened by, to read blurred reconstructions (theory section 7).
_TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

_FLOORS = (0.0, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Models:
    """A fitted encoder and a way to ask for posteriors."""

    estimator: Any
    encode: Callable[[ArrayLike], NDArray[np.floating]]
    posterior: Callable[[ArrayLike, ArrayLike | None, int | None], Floats]

    def distribution(self, X: ArrayLike) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of q(z|x)."""
        estimator = getattr(self.estimator, "best_estimator_", self.estimator)
        if isinstance(estimator, Pipeline):
            X, estimator = estimator[:-1].transform(X), estimator[-1]
        if not hasattr(estimator, "encode"):
            raise ValueError(
                "estimator must have a method encode(X), which returns means and "
                f'standard deviations of q(z|x), for kind="sampled"; '
                f"{type(estimator).__name__} has none. Use CertifiedVAE, or wrap the "
                "model in one that has."
            )
        mean, deviation = estimator.encode(X)
        return np.asarray(mean), np.asarray(deviation)

    def decode(self, means: ArrayLike) -> NDArray[np.floating]:
        """Return reconstructions."""
        if not hasattr(self.estimator, "inverse_transform"):
            raise ValueError(
                "estimator must have an inverse_transform, its decoder, for "
                f'kind="round_trip"; {type(self.estimator).__name__} has none.'
            )
        return np.asarray(self.estimator.inverse_transform(means))

    def read(self, output: NDArray[np.floating]) -> Floats:
        """Show reconstructions to the teacher."""
        with warnings.catch_warnings():
            # They are arrays, also where rows came in a table with names.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            return self.posterior(output, None, len(output))


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
    """What rows of `fit` say on how to read others."""

    rows: NDArray[np.uint64]
    witness: LinearWitness | Exception
    tempering: Tempering | Exception


def calibrate(
    models: Models,
    witness: LinearWitness,
    X: ArrayLike,
    proba: Floats,
    rows: NDArray[np.uint64],
    *,
    refit: Callable[..., LinearWitness] | None,
    has_teacher: bool,
) -> Calibration:
    """Temper the witness for drawn codes, soften the teacher for reconstructions."""

    def tempered() -> LinearWitness:
        mean, deviation = models.distribution(X)
        generator = np.random.default_rng(0)
        codes = mean + deviation * generator.standard_normal(mean.shape)
        if refit is None:
            return _tempered(witness, codes, proba)
        # A strength found on the rows of the fit would trust it too much.
        half = len(codes) // 2
        reader = refit(codes[:half], proba[:half])
        return _tempered(reader, codes[half:], proba[half:])

    def softened() -> Tempering:
        if not has_teacher:
            raise ValueError(
                'teacher must be fitted for kind="round_trip", which shows it '
                "reconstructions: this certifier was fitted with teacher_proba."
            )
        output = models.decode(models.encode(X))
        return _best_tempering(proba, models.read(output))

    return Calibration(rows, _result_or_error(tempered), _result_or_error(softened))


def _tempered(witness: LinearWitness, codes: Floats, proba: Floats) -> LinearWitness:
    strength = fit_strength(witness.logits(codes), proba)
    return witness.tempered(proba.mean(axis=0), strength)


def _best_tempering(proba: Floats, round_trip_proba: Floats) -> Tempering:
    """Return the temperature and floor with the largest margin."""

    def margin(tempering: Tempering) -> float:
        return collapse_margin(tempering(proba), np.log(tempering(round_trip_proba)))

    return max((Tempering(*s) for s in product(_TEMPERATURES, _FLOORS)), key=margin)


def _result_or_error(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        # Its frames would keep the rows of the fit in memory.
        return error.with_traceback(None)
