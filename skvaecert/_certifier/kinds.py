"""Kinds of certificates: what each asks of encoder, decoder and teacher.

All look twice: some samples are encoded again in another batch, and a few of them once
more when all samples have been read, for an encoder may change as it goes. By how much
this moves the result is held against the margin.
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

# Samples that are encoded a second time.
_MOST_REPEATED = 255

# Samples of one piece that are kept to be encoded at the end, and pieces they are of.
_MOST_KEPT, _MOST_PIECES = 16, 8

# Few samples are encoded more often, up to so many in all: noise may repeat by luck.
_LOOKED_AT, _MOST_LOOKS = 64, 8

# Means that differ by more between two batches come from no deterministic encoder.
_UNSTABLE = 1e-3

# Rounding was tried with one draw of it; another may do a little more.
_CAUTION = 4.0


class Kind(ABC):
    """What a certificate needs to know: added in batches, merged, concluded."""

    def __init__(self, sums: Any) -> None:
        self.sums = sums
        self.stability = Stability()

    @abstractmethod
    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and look at some of them again."""

    @abstractmethod
    def codes(self, samples: EncodedSamples) -> NDArray[np.floating]:
        """Return what must not depend on the batch."""

    def distances(
        self,
        samples: EncodedSamples,
        before: NDArray[np.floating],
        after: NDArray[np.floating],
    ) -> Floats:
        """Return by how much each sample moved."""
        return np.asarray(np.linalg.norm(after - before, axis=1))

    def look_again(self, samples: EncodedSamples) -> None:
        """Compute the codes of some samples again, and keep a few for the end."""
        places = samples.counting
        if not len(places):
            return
        before = self.codes(samples)
        index = places[_shuffled_subset(len(places))]
        self.compare(samples.again(index), before[index])
        self.stability.note(0.0, float(np.abs(before[places]).max()))
        self.keep(samples, before)

    def keep(self, samples: EncodedSamples, before: NDArray[np.floating]) -> None:
        """Keep a few samples to be looked at in the end."""
        kept = samples.counting[:_MOST_KEPT]
        if len(kept):
            self.stability.keep(samples.again(kept), before[kept])

    def compare(self, again: EncodedSamples, before: NDArray[np.floating]) -> None:
        moved = self.distances(again, before, self.codes(again))
        self.stability.note(float(moved.max()))

    def finish(self) -> None:
        """Encode samples of the beginning and of the way once more, all being read."""
        for samples, before in self.stability.taken():
            n_samples = len(before)
            # Alone, which is what the mean of a sample is. Twice, for a batch of one
            # has no statistics.
            for place in {0, n_samples // 2}:
                index = np.array([place, place])
                self.compare(samples.again(index), before[index])
            for look in range(min(_MOST_LOOKS, max(1, _LOOKED_AT // n_samples))):
                # With repetitions: for statistics of a batch, its order and its whole
                # are always the same.
                generator = np.random.default_rng([n_samples, look])
                size = generator.integers(1, 2 * n_samples + 1)
                index = generator.integers(n_samples, size=size)
                self.compare(samples.again(index), before[index])

    def merge(self, other: "Kind") -> None:
        """Add the samples of another one."""
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
        # The encoder looks at X first: its errors say more.
        means = samples.means
        self.sums.update(samples.posterior, means, samples.weight)
        if samples.has_distribution:
            self.sums.codes.update(*samples.distribution, samples.weight)
        self.look_again(samples)

    def codes(self, samples: EncodedSamples) -> NDArray[np.floating]:
        """Return the latent means."""
        return samples.means


class SampledKind(Kind):
    """Codes drawn from q(z|x) carry information about x."""

    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and encode some of them again."""
        mean, deviation = samples.distribution
        self.sums.update(samples.posterior, mean, deviation, samples.weight)
        self.look_again(samples)

    def codes(self, samples: EncodedSamples) -> Floats:
        """Return means and logarithms of deviations side by side."""
        mean, deviation = samples.distribution
        if not (np.isfinite(mean).all() and (deviation > 0).all()):
            raise ValueError(
                "estimator must have an encode that returns finite means, and standard "
                "deviations above 0, of the same samples at each call."
            )
        return np.hstack([mean, np.log(np.asarray(deviation, dtype=np.float64))])


class RoundTripKind(Kind):
    """Encoder and decoder together pass on what the teacher sees."""

    def __init__(self, sums: RoundTripSums, tempering: Tempering) -> None:
        super().__init__(sums)
        self.tempering = tempering

    def add(self, samples: EncodedSamples) -> None:
        """Add samples, and reconstruct some of them again."""
        if samples.teacher_proba is not None:
            raise ValueError(
                'teacher_proba must be left out for kind="round_trip": the same '
                "teacher must see samples and reconstructions."
            )
        codes, target = samples.codes, self.tempering(samples.posterior)

        def reader(drawn: Floats) -> tuple[Floats, NDArray[np.floating]]:
            output = samples.decoded(drawn)
            return self._read(samples, output), output

        self.sums.update(target, reader, *codes, sample_weight=samples.weight)
        if len(samples.counting):
            before = self.codes(samples)
            self._look_again(samples, before)
            self.keep(samples, before)

    def codes(self, samples: EncodedSamples) -> Floats:
        """Return the logarithms of what the teacher reads off a shared draw."""
        return np.log(self._read(samples, samples.decoded(self._drawn(samples))))

    def distances(
        self,
        samples: EncodedSamples,
        before: NDArray[np.floating],
        after: NDArray[np.floating],
    ) -> Floats:
        """Return by how many nats each sample is read otherwise."""
        target = self.tempering(samples.posterior)
        return np.asarray((target * np.abs(after - before)).sum(axis=1))

    def finish(self) -> None:
        """Look at samples of the beginning again, each after those of another piece."""
        kept = [samples for samples, _ in self.stability.kept]
        for samples, others in pairwise([*kept, *kept[:1]]):
            index = np.arange(min(len(samples.counting), len(others.counting)))
            if len(kept) > 1:
                self._check_decoder(samples.again(index), others.again(index))
        super().finish()

    def conclude(self, safety_margin: float) -> Certificate:
        """Return the certificate."""
        shift = _CAUTION * self.stability.moved
        return self.sums.certificate(safety_margin=safety_margin, shift=shift)

    def _drawn(self, samples: EncodedSamples) -> NDArray[np.floating]:
        return samples.drawn(self.sums.shared_noise[0])

    def _read(self, samples: EncodedSamples, output: NDArray[np.floating]) -> Floats:
        return self.tempering(read(samples.teacher, output))

    def _look_again(self, samples: EncodedSamples, before: Floats) -> None:
        """Encode some samples in another batch, and decode some after others."""
        places = samples.counting
        n_samples = len(places)
        index = _shuffled_subset(n_samples)
        again = samples.again(places[index])
        self._try_rounding(again, before[places[index]])
        if n_samples > 1:
            steps = np.random.default_rng(0).integers(1, n_samples, size=len(index))
            others = samples.again(places[(index + steps) % n_samples])
            self._check_decoder(again, others)

    def _try_rounding(self, samples: EncodedSamples, before: Floats) -> None:
        """Note what rounding of codes and outputs changes in the teacher's reading."""
        generator = np.random.default_rng(0)
        mean, *deviation = samples.codes
        # In the precision of the encoder, which others than float64 would hide.
        moved = rounded(mean, np.maximum(np.abs(mean), 1), generator)
        if deviation:
            # Networks give the logarithm of a deviation, and round that.
            width = np.asarray(deviation[0], dtype=np.float64)
            error = width * np.maximum(np.abs(np.log(width)), 1)
            moved += rounded(width, error, generator) * self.sums.shared_noise[0]
        output = decode(samples.estimator, moved)
        # Outputs near 0 carry the error of the terms that cancelled.
        largest = np.abs(output).max(axis=1)
        largest = np.maximum(largest, _largest(samples.X, len(output)))
        output = rounded(output, largest[:, np.newaxis], generator)
        self._note(samples, before, output)

    def _check_decoder(self, samples: EncodedSamples, others: EncodedSamples) -> None:
        """Fail if codes are decoded otherwise once other samples were encoded."""
        codes = self._drawn(samples)
        first = samples.decoded(codes)
        self._drawn(others)
        second = samples.decoded(codes)
        change, size = np.abs(second - first).max(), np.abs(first).max()
        if not change <= _UNSTABLE * size:
            raise ValueError(
                "estimator must have an inverse_transform that depends on the codes "
                f"alone; that of {type(fitted_encoder(samples.estimator)).__name__} "
                f"moved its outputs for the same codes by {change:.2g} once other "
                "samples had been encoded. A round trip shows nothing where the "
                "decoder sees the samples in another way (skip connections, what it "
                "remembers of the last batch). Noise counts as such, too: put modules "
                "into evaluation mode."
            )
        self._note(samples, np.log(self._read(samples, first)), second)

    def _note(
        self, samples: EncodedSamples, before: Floats, output: NDArray[np.floating]
    ) -> None:
        after = np.log(self._read(samples, output))
        self.stability.note(float(self.distances(samples, before, after).max()))


class Stability:
    """How far results move when some samples are encoded again in another batch."""

    def __init__(self) -> None:
        self.moved = 0.0
        self._largest = 1.0
        self.kept: list[tuple[EncodedSamples, NDArray[np.floating]]] = []
        self._n_pieces = 0
        self._generator = np.random.default_rng(0)

    def keep(self, samples: EncodedSamples, before: NDArray[np.floating]) -> None:
        """Keep samples with their codes: those of the first piece, and of some others.

        Any piece after the first has the same chance to be among them.
        """
        self._n_pieces += 1
        if len(self.kept) < _MOST_PIECES:
            self.kept.append((samples, before))
            return
        place = int(self._generator.integers(self._n_pieces - 1))
        if place < _MOST_PIECES - 1:
            self.kept[1 + place] = samples, before

    def taken(self) -> list[tuple[EncodedSamples, NDArray[np.floating]]]:
        """Give the kept samples away: what is merged or sent has none."""
        kept, self.kept = self.kept, []
        return kept

    def note(self, moved: float, largest: float = 1.0) -> None:
        self.moved = max(self.moved, moved)
        self._largest = max(self._largest, largest)

    def merge(self, other: "Stability") -> None:
        """Add what another one has seen."""
        self.note(other.moved, other._largest)

    def warn_if_unstable(self) -> None:
        """Warn if codes moved by more than rounding explains."""
        if self.moved > _UNSTABLE * self._largest:
            warn_user(
                UnstableEncoderWarning(
                    f"The encoder moved the mean of a sample by {self.moved:.2g} when "
                    "the sample came in another batch or later. Put modules into "
                    "evaluation mode (dropout, batch normalisation) and return means, "
                    "not drawn codes. The difference is counted as noise, so nothing "
                    "will be certified by it."
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
    """Return the kind of this name, with nothing added yet."""
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
    """Return a seed of draws: the same at each call, unless a generator was given."""
    given = 0 if random_state is None else random_state
    return int(check_random_state(given).randint(2**31 - 1))


def _shuffled_subset(n_samples: int) -> NDArray[np.intp]:
    """Return a random, non-contiguous subset of sample indices, never with the first.

    So no batch, no symmetry and not all places are kept.
    """
    if n_samples == 1:
        return np.zeros(1, dtype=np.intp)
    order = 1 + np.random.default_rng(0).permutation(n_samples - 1)
    return order[: max(1, min(2 * n_samples // 3, _MOST_REPEATED))]


def _largest(X: Any, n_samples: int) -> Floats:
    """Return the largest magnitude in each sample; 0 if it holds no numbers."""
    try:
        samples = np.abs(np.asarray(X, dtype=np.float64)).reshape(n_samples, -1)
    except (TypeError, ValueError):
        return np.zeros(n_samples)
    return np.asarray(samples.max(axis=1))
