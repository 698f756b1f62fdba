"""Kinds of certificates: what is asked of encoder, decoder and teacher, row by row."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, gen_batches, indexable

from skvaecert._certificate import (
    Certificate,
    CertificateSums,
    RoundTripSums,
    SampledSums,
    rounded,
)
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.metrics import collapse_margin
from skvaecert.simplex import Floats, temper
from skvaecert.witnesses import LinearWitness, fit_strength

__all__ = [
    "Calibration",
    "Kind",
    "MeanKind",
    "Models",
    "PartialCertificate",
    "Repeated",
    "RoundTripKind",
    "SampledKind",
    "Softness",
    "calibrate",
    "digest_rows",
    "fingerprint_rows",
    "is_stored",
    "take_rows",
]

# Rows that are encoded a second time, to see how far their means are to be trusted.
_REPEATED_ROWS = 255
# Means that differ by more between two batches come from no deterministic encoder.
_UNSTABLE = 1e-3
# What a teacher is softened by, to read blurred reconstructions (theory section 7).
_TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_FLOORS = (0.0, 1e-3, 1e-2, 1e-1)
# Rows that are read at a time where nothing else is done with them.
_READ_ROWS = 2**12
# Rounding was tried with one draw of it; another may do a little more.
_CAUTION = 4.0
# Rows that may be equal to some of the fit by chance, beside one in a hundred.
_FEW_ROWS = 2


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
class Softness:
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
    softness: Softness | Exception


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

    def softened() -> Softness:
        if not has_teacher:
            raise ValueError(
                'teacher must be fitted for kind="round_trip", which shows it '
                "reconstructions: this certifier was fitted with teacher_proba."
            )
        output = models.decode(models.encode(X))
        return _best_softness(proba, models.read(output))

    return Calibration(rows, _result_or_error(tempered), _result_or_error(softened))


def _tempered(witness: LinearWitness, codes: Floats, proba: Floats) -> LinearWitness:
    strength = fit_strength(witness.logits(codes), proba)
    return witness.tempered(proba.mean(axis=0), strength)


def _best_softness(proba: Floats, round_trip_proba: Floats) -> Softness:
    """Return the temperature and floor with the largest margin."""

    def margin(softness: Softness) -> float:
        return collapse_margin(softness(proba), np.log(softness(round_trip_proba)))

    return max((Softness(*s) for s in product(_TEMPERATURES, _FLOORS)), key=margin)


def _result_or_error(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        # Its frames would keep the rows of the fit in memory.
        return error.with_traceback(None)


class Kind(Protocol):
    """Collects what a certificate needs to know of rows, and makes it."""

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""

    def merge(self, other: Any) -> None:
        """Add the rows that another one has seen."""

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""


class MeanKind:
    """The latent mean is not constant."""

    def __init__(self, witness: LinearWitness) -> None:
        self.sums = CertificateSums(witness)
        self.repeated = Repeated()

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""
        means = models.encode(X)
        posterior = models.posterior(X, proba, len(means))
        self.sums.update(posterior, means, weight)
        self.repeated.compare(means, X, models.encode)

    def merge(self, other: "MeanKind") -> None:
        """Add the rows that another one has seen."""
        self.sums.merge(other.sums)
        self.repeated.merge(other.repeated)

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""
        self.repeated.warn_if_unstable()
        return self.sums.certificate(
            safety_margin=safety_margin, latent_noise=self.repeated.moved
        )


class SampledKind:
    """Codes drawn from q(z|x) carry information on x."""

    def __init__(
        self,
        witness: LinearWitness,
        n_draws: int,
        confidence: float,
        generator: np.random.Generator,
        part: int | None,
    ) -> None:
        self.confidence = confidence
        self.repeated = Repeated()
        self.sums = SampledSums(witness, n_draws, generator, part)

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""
        mean, deviation = models.distribution(X)
        posterior = models.posterior(X, proba, len(mean))
        self.sums.update(posterior, mean, deviation, weight)
        both = _side_by_side(mean, deviation)
        again = models.distribution
        self.repeated.compare(both, X, lambda rows: _side_by_side(*again(rows)))

    def merge(self, other: "SampledKind") -> None:
        """Add the rows that another one has seen."""
        if self.confidence != other.confidence:
            raise ValueError(
                "parts must have the same confidence, got "
                f"{self.confidence} and {other.confidence}."
            )
        self.sums.merge(other.sums)
        self.repeated.merge(other.repeated)

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""
        self.repeated.warn_if_unstable()
        return self.sums.certificate(
            safety_margin=safety_margin,
            confidence=self.confidence,
            latent_noise=self.repeated.moved,
        )


class RoundTripKind:
    """Encoder and decoder together pass on what the teacher sees."""

    def __init__(self, softness: Softness, shape: tuple[int, int]) -> None:
        self.softness = softness
        self.sums = RoundTripSums(*shape)
        self._shift = 0.0

    def add(
        self,
        models: Models,
        X: ArrayLike,
        proba: ArrayLike | None,
        weight: ArrayLike | None,
    ) -> None:
        """Add rows."""
        if proba is not None:
            raise ValueError(
                'teacher_proba must be left out for kind="round_trip": the same '
                "teacher must see rows and reconstructions."
            )
        means = models.encode(X)
        target = self.softness(models.posterior(X, None, len(means)))
        output = models.decode(means)
        witness = self.softness(models.read(output))
        self.sums.update(target, witness, means, output, weight)
        self._try_rounding(models, X, target, witness)

    def merge(self, other: "RoundTripKind") -> None:
        """Add the rows that another one has seen."""
        self.sums.merge(other.sums)
        self._shift = max(self._shift, other._shift)

    def conclude(self, safety_margin: float) -> Certificate:
        """Make the certificate."""
        shift = _CAUTION * self._shift
        return self.sums.certificate(safety_margin=safety_margin, shift=shift)

    def _try_rounding(
        self, models: Models, X: ArrayLike, target: Floats, witness: Floats
    ) -> None:
        """Reconstruct some rows in other company, round, and see what it changes."""
        index = _other_company(len(target))
        rows, generator = take_rows(X, index), np.random.default_rng(0)
        means = models.encode(rows)
        # In the precision of the means, which others than float64 would hide.
        output = models.decode(rounded(means, np.maximum(np.abs(means), 1), generator))
        # Outputs near 0 carry the error of the terms that cancelled.
        largest = np.maximum(np.abs(output).max(axis=1), _largest(rows, len(output)))
        output = rounded(output, largest[:, np.newaxis], generator)
        again = self.softness(models.read(output))
        change = np.abs(np.log(again) - np.log(witness[index]))
        shift = float((target[index] * change).sum(axis=1).max())
        self._shift = max(self._shift, shift)


class Repeated:
    """How far latent means move when some samples are encoded in another batch."""

    def __init__(self) -> None:
        self.moved = 0.0
        self._largest = 1.0

    def compare(
        self,
        means: NDArray[np.floating],
        X: ArrayLike,
        encode: Callable[[ArrayLike], NDArray[np.floating]],
    ) -> None:
        """Encode some rows again."""
        index = _other_company(len(means))
        again = encode(take_rows(X, index))
        moved = float(np.linalg.norm(again - means[index], axis=1).max())
        self.moved = max(self.moved, moved)
        self._largest = max(self._largest, float(np.abs(means).max()))

    def merge(self, other: "Repeated") -> None:
        """Add what another one has seen."""
        self.moved = max(self.moved, other.moved)
        self._largest = max(self._largest, other._largest)

    def warn_if_unstable(self) -> None:
        """Warn if means moved by more than rounding explains."""
        if self.moved > _UNSTABLE * self._largest:
            warnings.warn(
                UnstableEncoderWarning(
                    f"The encoder moved the mean of a row by {self.moved:.2g} when the "
                    "row came in another batch. Put modules into evaluation mode "
                    "(dropout, batch normalisation) and return means, not drawn codes. "
                    "The difference is counted as noise, so nothing will be certified "
                    "by it."
                ),
                stacklevel=5,
            )


@dataclass(frozen=True, repr=False)
class PartialCertificate:
    """What a certificate needs to know of some of the rows: sums of them, and no rows.

    Made by :meth:`CollapseCertifier.partial_certificate`, on as many machines as one
    likes; merged in any order; small to send.

    Attributes
    ----------
    parts : frozenset of int
        The parts that it is made of.
    n_samples : int
        Their rows.
    n_known : int
        How many of these were used to fit what reads them, where that must not be.
    origin : str
        Tells which fit of a certifier it comes from.
    safety_margin : float
        tau, nats.
    collected : Kind
        The sums.

    See Also
    --------
    CollapseCertifier.partial_certificate : Makes one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X)
    >>> first = certifier.partial_certificate(X[:50], part=0)
    >>> first.merge(certifier.partial_certificate(X[50:], part=1)).certificate().verdict
    'certified'
    """

    parts: frozenset[int]
    n_samples: int
    n_known: int
    origin: str
    safety_margin: float
    collected: Kind

    def merge(self, *others: "PartialCertificate") -> "PartialCertificate":
        """Return what is known of the rows of this one and of others together.

        Parameters
        ----------
        *others : PartialCertificate
            Of other parts, by the same fitted certifier or copies of it.

        Returns
        -------
        PartialCertificate
            A new one; none of those given changes.

        Raises
        ------
        ValueError
            If a part is in two of them, which would count its rows twice, or if they
            were not made by one fitted certifier with the same parameters: codes of
            two collapsed encoders differ.
        """
        collected = copy.deepcopy(self.collected)
        merged = replace(self, collected=collected)
        for other in others:
            merged._check_mergeable(other)
            collected.merge(other.collected)
            merged = replace(
                merged,
                parts=merged.parts | other.parts,
                n_samples=merged.n_samples + other.n_samples,
                n_known=merged.n_known + other.n_known,
            )
        return merged

    def certificate(self) -> Certificate:
        """Make the certificate of all rows.

        Returns
        -------
        Certificate
            The same as of one pass over the rows, to within the tolerance; for
            "sampled" with other draws.

        Raises
        ------
        ValueError
            If there are no rows, or if they were used to fit what reads them.

        Warns
        -----
        UnstableEncoderWarning
            As :meth:`CollapseCertifier.certify`.
        """
        if self.n_known > max(_FEW_ROWS, self.n_samples // 100):
            raise ValueError(
                "X must be rows that the witness was not fitted on, got "
                f"{self.n_known} of {self.n_samples} rows that were in fit: on those "
                "it would find variation that means nothing. Certify rows that were "
                "held out."
            )
        return self.collected.conclude(self.safety_margin)

    def __repr__(self) -> str:
        """Say how much is in it."""
        n_parts = len(self.parts)
        return f"<PartialCertificate of {self.n_samples} rows in {n_parts} part(s)>"

    def _check_mergeable(self, other: "PartialCertificate") -> None:
        twice = self.parts & other.parts
        if twice:
            raise ValueError(
                f"part must be another one in all that is merged, got {min(twice)} "
                "twice: its rows would count twice."
            )
        own, theirs = (
            (part.origin, type(part.collected), part.safety_margin)
            for part in (self, other)
        )
        if own != theirs:
            raise ValueError(
                "parts must be made by one fitted certifier, or copies of it, with the "
                "same kind and safety_margin. Send the fitted certifier to the "
                "workers, or load it from one file there; do not fit it on each."
            )


def _other_company(n_samples: int) -> NDArray[np.intp]:
    """Return an odd lot in random order: no block, no symmetry, not all places kept."""
    if n_samples == 1:
        return np.zeros(1, dtype=np.intp)
    order = 1 + np.random.default_rng(0).permutation(n_samples - 1)
    return order[: max(1, min(2 * n_samples // 3, _REPEATED_ROWS))]


def _side_by_side(mean: Floats, deviation: Floats) -> Floats:
    """Return means and logarithms of deviations in one array."""
    if not (np.isfinite(mean).all() and (deviation > 0).all()):
        raise ValueError(
            "estimator must have an encode that returns finite means, and standard "
            "deviations above 0, of the same rows at each call."
        )
    return np.hstack([mean, np.log(np.asarray(deviation, dtype=np.float64))])


def _largest(X: Any, n_samples: int) -> Floats:
    """Return the largest magnitude in each row; 0 for what holds no numbers."""
    try:
        rows = np.abs(np.asarray(X, dtype=np.float64)).reshape(n_samples, -1)
    except (TypeError, ValueError):
        return np.zeros(n_samples)
    return np.asarray(rows.max(axis=1))


def take_rows(X: ArrayLike, index: NDArray[np.intp] | slice) -> Any:
    """Return some rows of anything that scikit-learn can index."""
    if is_stored(X):
        return _read_stored(X, index)
    (indexable_X,) = indexable(X)
    return _safe_indexing(indexable_X, index)


def is_stored(X: Any) -> bool:
    """Tell arrays in chunks, of zarr, dask or h5py, which have to be read."""
    return hasattr(X, "chunks") and hasattr(X, "__array__")


def _read_stored(X: Any, index: NDArray[np.intp] | slice) -> NDArray[Any]:
    if isinstance(index, slice):
        return np.asarray(X[index])
    # Files are read in their order, and h5py takes no other.
    order = np.argsort(index)
    return np.asarray(X[index[order]])[np.argsort(order)]


def fingerprint_rows(X: ArrayLike) -> NDArray[np.uint64]:
    """Return a number for each row, the same for equal rows only, in all likelihood."""
    try:
        rows = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError):
        return np.zeros(0, dtype=np.uint64)
    digests = (blake2b(row.tobytes(), digest_size=8).digest() for row in rows + 0.0)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)


def digest_rows(X: ArrayLike) -> str | None:
    """Return the SHA-256 of a table of numbers, in a form that does not depend on it.

    Hashed are the line ``skvaecert rows 1 DTYPE N_SAMPLES N_FEATURES``, with its
    newline, and the numbers row after row, little-endian: float32 where `X` is, float64
    otherwise.
    """
    digest = sha256()
    try:
        table = X if hasattr(X, "shape") else np.asarray(X)
        n_samples = table.shape[0]
        for piece in gen_batches(n_samples, _READ_ROWS):
            rows = np.asarray(take_rows(table, piece))
            dtype = "<f4" if rows.dtype == np.float32 else "<f8"
            if piece.start == 0:
                n_features = rows.shape[1]
                name = np.dtype(dtype).name
                line = f"skvaecert rows 1 {name} {n_samples} {n_features}\n"
                digest.update(line.encode())
            digest.update(np.ascontiguousarray(rows, dtype=dtype).data)
    except (TypeError, ValueError, IndexError):
        return None
    return digest.hexdigest()
