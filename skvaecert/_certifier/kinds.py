"""Kinds of certificates, and what each computes with encoder, decoder and teacher.

All kinds encode some samples again in another batch, and a few of them once more after
all samples are read, because an encoder may change meanwhile. The difference that this
makes counts against the margin.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from skvaecert._certificate.certificate import Certificate
from skvaecert._certificate.sums import (
    MeanSums,
    RoundTripSums,
    SampledSums,
    check_draws,
)
from skvaecert._certifier.calibration import Calibration, Tempering, result_or_raise
from skvaecert._certifier.encoded import (
    EncodedSamples,
    decode,
    fitted_encoder,
    read,
)
from skvaecert._estimator import warn_user
from skvaecert._rounding import rounded
from skvaecert.exceptions import UnstableEncoderWarning
from skvaecert.simplex import Floats
from skvaecert.witnesses import LinearWitness

__all__ = [
    "Kind",
    "MeanKind",
    "RoundTripKind",
    "SampledKind",
    "Stability",
    "make_kind",
    "seed_of",
]

# Maximum number of samples of a piece that are encoded a second time.
_MOST_REPEATED = 255

# Samples of a piece that are kept to be encoded at the end, and number of such pieces.
_MOST_KEPT, _MOST_PIECES = 16, 8

# If few samples are kept, they are encoded repeatedly: noise may repeat by chance.
_ENCODED_AT_END, _MOST_REPETITIONS = 64, 8

# A deterministic encoder does not move means by more than this between two batches.
_UNSTABLE = 1e-3

# The effect of rounding is measured with one draw; another may have a larger effect.
_ROUNDING_FACTOR = 4.0


class Kind(ABC):
    """A certificate in progress: samples are added in batches, then it is concluded."""

    def __init__(self, sums: Any) -> None:
        self.sums = sums
        self.stability = Stability()

    @abstractmethod
    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and compute the codes of some of them again."""

    @abstractmethod
    def codes(self, samples: EncodedSamples) -> NDArray[np.floating]:
        """Return the values that must not depend on the batch."""

    def distances(
        self,
        samples: EncodedSamples,
        before: NDArray[np.floating],
        after: NDArray[np.floating],
    ) -> Floats:
        """Return how far the codes of each sample moved."""
        return np.asarray(np.linalg.norm(after - before, axis=1))

    def encode_again(self, samples: EncodedSamples) -> None:
        """Compute the codes of some samples again, and keep a few for the end."""
        places = samples.weighted
        if not len(places):
            return
        before = self.codes(samples)
        index = places[_shuffled_subset(len(places))]
        self.compare(samples.subset(index), before[index])
        self.stability.record(0.0, float(np.abs(before[places]).max()))
        self.keep(samples, before)

    def keep(self, samples: EncodedSamples, before: NDArray[np.floating]) -> None:
        """Keep a few samples, to be encoded again at the end."""
        kept = samples.weighted[:_MOST_KEPT]
        if len(kept):
            self.stability.keep(samples.subset(kept), before[kept])

    def compare(self, again: EncodedSamples, before: NDArray[np.floating]) -> None:
        moved = self.distances(again, before, self.codes(again))
        self.stability.record(float(moved.max()))

    def finish(self) -> None:
        """Encode the kept samples once more, after all samples are read."""
        for samples, before in self.stability.pop_kept():
            n_samples = len(before)
            # A batch with one sample only, since its mean must not depend on others.
            # The sample is there twice, because batch statistics need two.
            # A set, because both places are the same if one sample is kept.
            for place in {0, n_samples // 2}:
                index = np.array([place, place])
                self.compare(samples.subset(index), before[index])
            n_repetitions = max(1, _ENCODED_AT_END // n_samples)
            for repetition in range(min(_MOST_REPETITIONS, n_repetitions)):
                # Samples are drawn with replacement: a permutation would leave the
                # statistics of the batch as they were.
                generator = np.random.default_rng([n_samples, repetition])
                size = generator.integers(1, 2 * n_samples + 1)
                index = generator.integers(n_samples, size=size)
                self.compare(samples.subset(index), before[index])

    def merge(self, other: "Kind") -> None:
        """Add the samples of another certificate in progress."""
        self.sums.merge(other.sums)
        self.stability.merge(other.stability)

    def conclude(self, safety_margin: float) -> Certificate:
        """Return the certificate."""
        self.stability.warn_if_unstable()
        return self.sums.certificate(
            safety_margin=safety_margin, latent_noise=self.stability.moved
        )


class MeanKind(Kind):
    """The latent mean is not constant."""

    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and encode some of them again."""
        # Encode first: the errors of the encoder are more specific than the teacher's.
        means = samples.means
        self.sums.update(samples.posterior, means, samples.weight)
        if samples.has_distribution:
            self.sums.codes.update(*samples.distribution, samples.weight)
        self.encode_again(samples)

    def codes(self, samples: EncodedSamples) -> NDArray[np.floating]:
        """Return the latent means."""
        return samples.means


class SampledKind(Kind):
    """Codes drawn from q(z|x) carry information about x."""

    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and encode some of them again."""
        mean, deviation = samples.distribution
        self.sums.update(samples.posterior, mean, deviation, samples.weight)
        self.encode_again(samples)

    def codes(self, samples: EncodedSamples) -> Floats:
        """Return means and logarithms of standard deviations, concatenated."""
        mean, deviation = samples.distribution
        if not (np.isfinite(mean).all() and (deviation > 0).all()):
            raise ValueError(
                "estimator must have an encode that returns finite means and standard "
                "deviations above 0, for the same samples at each call."
            )
        return np.hstack([mean, np.log(np.asarray(deviation, dtype=np.float64))])


class RoundTripKind(Kind):
    """Reconstructions still show the components of the teacher."""

    def __init__(self, sums: RoundTripSums, tempering: Tempering) -> None:
        super().__init__(sums)
        self.tempering = tempering

    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and reconstruct some of them again."""
        if samples.teacher_proba is not None:
            raise ValueError(
                'teacher_proba must be left out for kind="round_trip": the same '
                "teacher must predict the posteriors of samples and reconstructions."
            )
        codes, target = samples.codes, self.tempering(samples.posterior)

        def reader(drawn: Floats) -> tuple[Floats, NDArray[np.floating]]:
            output = samples.decoded(drawn)
            return self._read(samples, output), output

        self.sums.update(target, reader, *codes, sample_weight=samples.weight)
        if len(samples.weighted):
            before = self.codes(samples)
            self._reconstruct_again(samples, before)
            self.keep(samples, before)

    def codes(self, samples: EncodedSamples) -> Floats:
        """Return the teacher's log-posteriors of reconstructions from a shared draw."""
        return np.log(self._read(samples, samples.decoded(self._drawn(samples))))

    def distances(
        self,
        samples: EncodedSamples,
        before: NDArray[np.floating],
        after: NDArray[np.floating],
    ) -> Floats:
        """Return by how many nats the teacher's reading of each sample differs."""
        target = self.tempering(samples.posterior)
        return np.asarray((target * np.abs(after - before)).sum(axis=1))

    def finish(self) -> None:
        """Check the decoder with kept samples, each after samples of another piece."""
        kept = [samples for samples, _ in self.stability.kept]
        # Each piece is paired with the next one, and the last with the first.
        for samples, others in pairwise([*kept, *kept[:1]]):
            index = np.arange(min(len(samples.weighted), len(others.weighted)))
            if len(kept) > 1:
                self._check_decoder(samples.subset(index), others.subset(index))
        super().finish()

    def conclude(self, safety_margin: float) -> Certificate:
        """Return the certificate."""
        shift = _ROUNDING_FACTOR * self.stability.moved
        return self.sums.certificate(safety_margin=safety_margin, shift=shift)

    def _drawn(self, samples: EncodedSamples) -> NDArray[np.floating]:
        return samples.drawn(self.sums.shared_noise[0])

    def _read(self, samples: EncodedSamples, output: NDArray[np.floating]) -> Floats:
        return self.tempering(read(samples.teacher, output))

    def _reconstruct_again(self, samples: EncodedSamples, before: Floats) -> None:
        """Encode samples in another batch, and decode codes after other samples."""
        places = samples.weighted
        n_samples = len(places)
        index = _shuffled_subset(n_samples)
        again = samples.subset(places[index])
        self._try_rounding(again, before[places[index]])
        if n_samples > 1:
            # Steps from 1 to n - 1, so that another sample is encoded after each.
            steps = np.random.default_rng(0).integers(1, n_samples, size=len(index))
            others = samples.subset(places[(index + steps) % n_samples])
            self._check_decoder(again, others)

    def _try_rounding(self, samples: EncodedSamples, before: Floats) -> None:
        """Record how rounding of codes and outputs changes the teacher's reading."""
        generator = np.random.default_rng(0)
        mean, *deviation = samples.codes
        # The error is that of the encoder's precision. The result stays in float64,
        # because a smaller dtype would round the error away.
        moved = rounded(mean, np.maximum(np.abs(mean), 1), generator)
        if deviation:
            # Networks return, and round, the logarithm of a standard deviation.
            std = np.asarray(deviation[0], dtype=np.float64)
            error = std * np.maximum(np.abs(np.log(std)), 1)
            moved += rounded(std, error, generator) * self.sums.shared_noise[0]
        output = decode(samples.estimator, moved)
        # The error of an output near 0 is that of the terms that cancel each other.
        largest = np.abs(output).max(axis=1)
        largest = np.maximum(largest, _largest(samples.X, len(output)))
        output = rounded(output, largest[:, np.newaxis], generator)
        self._record(samples, before, output)

    def _check_decoder(self, samples: EncodedSamples, others: EncodedSamples) -> None:
        """Raise an error if outputs for the same codes depend on earlier samples."""
        codes = self._drawn(samples)
        first = samples.decoded(codes)
        # Called only to encode: a decoder with a memory now has others in it.
        self._drawn(others)
        second = samples.decoded(codes)
        change, size = np.abs(second - first).max(), np.abs(first).max()
        if change > _UNSTABLE * size:
            raise ValueError(
                "estimator must have an inverse_transform that depends on the codes "
                "alone, got outputs of "
                f"{type(fitted_encoder(samples.estimator)).__name__} that change by "
                f"{change:.2g} for the same codes after other samples are encoded. A "
                "round trip shows nothing if the decoder sees the samples in another "
                "way (skip connections, memory of the last batch). Noise has the same "
                "effect: put modules into evaluation mode."
            )
        self._record(samples, np.log(self._read(samples, first)), second)

    def _record(
        self, samples: EncodedSamples, before: Floats, output: NDArray[np.floating]
    ) -> None:
        after = np.log(self._read(samples, output))
        self.stability.record(float(self.distances(samples, before, after).max()))


class Stability:
    """Records how far results move if samples are encoded again in another batch."""

    def __init__(self) -> None:
        self.moved = 0.0
        # Magnitude of the codes, at least 1: changes are judged relative to it.
        self._largest = 1.0
        self.kept: list[tuple[EncodedSamples, NDArray[np.floating]]] = []
        self._n_pieces = 0
        self._generator = np.random.default_rng(0)

    def keep(self, samples: EncodedSamples, before: NDArray[np.floating]) -> None:
        """Keep samples with their codes, from the first piece and some of the others.

        All pieces after the first are kept with the same probability.
        """
        self._n_pieces += 1
        if len(self.kept) < _MOST_PIECES:
            self.kept.append((samples, before))
            return
        # Reservoir sampling of the pieces after the first.
        place = int(self._generator.integers(self._n_pieces - 1))
        if place < _MOST_PIECES - 1:
            self.kept[1 + place] = samples, before

    def pop_kept(self) -> list[tuple[EncodedSamples, NDArray[np.floating]]]:
        """Return the kept samples, and forget them: a partial certificate has none."""
        kept, self.kept = self.kept, []
        return kept

    def record(self, moved: float, largest: float = 1.0) -> None:
        self.moved = max(self.moved, moved)
        self._largest = max(self._largest, largest)

    def merge(self, other: "Stability") -> None:
        """Add the record of another `Stability`."""
        self.record(other.moved, other._largest)

    def warn_if_unstable(self) -> None:
        """Warn if codes moved by more than rounding explains."""
        if self.moved > _UNSTABLE * self._largest:
            warn_user(
                UnstableEncoderWarning(
                    f"The latent mean of a sample changed by {self.moved:.2g} when the "
                    "sample was encoded in another batch or later. Put modules into "
                    "evaluation mode (dropout, batch normalization) and return means, "
                    "not drawn codes. The difference counts as noise, so it certifies "
                    "nothing."
                )
            )


def make_kind(
    kind: str,
    witness: LinearWitness,
    calibration: Calibration,
    *,
    n_draws: int = 8,
    confidence: float = 0.95,
    random_state: Any = None,
    part: int | None = None,
) -> Kind:
    """Return an empty certificate in progress of this kind."""
    check_draws(n_draws, confidence)
    if kind == "mean":
        return MeanKind(MeanSums(witness))
    generator = np.random.default_rng(seed_of(random_state))
    drawing = n_draws, generator, part, confidence
    if kind == "sampled":
        tempered = result_or_raise(calibration.witness)
        return SampledKind(SampledSums(tempered, *drawing))
    if kind == "round_trip":
        tempering = result_or_raise(calibration.tempering)
        n_components, latent_dim = witness.weights.shape
        sums = RoundTripSums(n_components, latent_dim, tempering.floor, *drawing)
        return RoundTripKind(sums, tempering)
    raise ValueError(f"kind must be 'mean', 'sampled' or 'round_trip', got {kind!r}.")


def seed_of(random_state: Any) -> int:
    """Return a seed for drawing codes.

    It is the same at each call, unless `random_state` is a generator.
    """
    # None means 0 here: a certificate does not change from call to call.
    given = 0 if random_state is None else random_state
    return int(check_random_state(given).randint(2**31 - 1))


def _shuffled_subset(n_samples: int) -> NDArray[np.intp]:
    """Return a random, non-contiguous subset of sample indices, without the first.

    The subset changes the batch, breaks its symmetries, and moves samples to other
    positions, so that means that depend on these change.
    """
    if n_samples == 1:
        return np.zeros(1, dtype=np.intp)
    order = 1 + np.random.default_rng(0).permutation(n_samples - 1)
    return order[: max(1, min(2 * n_samples // 3, _MOST_REPEATED))]


def _largest(X: Any, n_samples: int) -> Floats:
    """Return the largest magnitude in each sample; 0 if samples are not numeric."""
    try:
        samples = np.abs(np.asarray(X, dtype=np.float64)).reshape(n_samples, -1)
    except (TypeError, ValueError):
        return np.zeros(n_samples)
    return np.asarray(samples.max(axis=1))
