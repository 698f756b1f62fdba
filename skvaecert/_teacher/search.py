"""The search for a teacher: many mixtures, compared on held-out samples."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import combinations
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from skvaecert._estimator import warn_user
from skvaecert._samples import numpy_only
from skvaecert._teacher.candidate import Candidate, Configuration, Criterion
from skvaecert._teacher.em import Mixture, expect, fit_fast, log_joint
from skvaecert.exceptions import UnstableTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import Floats, analytic_energy, temper

__all__ = [
    "Fitter",
    "NoCandidateError",
    "can_search",
    "refit_on_all",
    "search_teacher",
]


_HELD_OUT = 0.25

# All candidates are compared on this many samples. If there are more, the finalists are
# compared again on all samples.
_FIRST_SAMPLES = 10_000

_N_FINALISTS = 3

# With fewer samples per component, some components have no held-out samples.
_SAMPLES_PER_COMPONENT = 5

# With a hundred samples, two restarts may agree by chance.
_LEAST_RESTARTS = 3

_INTERRUPTED = "interrupted"

# Errors are cut to this many characters: the table has no room for a traceback.
_LONGEST_ERROR = 200

_MEASURED = (
    "information",
    "energy",
    "temperature",
    "log_likelihood",
    "agreement",
    "n_samples",
    "seconds",
    "error",
)


class NoCandidateError(ValueError):
    """No candidate of a search could be fitted."""


class Fitter(NamedTuple):
    """Settings of EM; `reg_covar` is relative to the mean variance of the samples."""

    reg_covar: float
    max_iter: int

    def fit(
        self,
        samples: Floats,
        responsibilities: NDArray[np.floating],
        covariance_type: str,
    ) -> Mixture:
        """Fit a mixture from initial responsibilities."""
        return fit_fast(
            samples,
            responsibilities,
            covariance_type=covariance_type,
            reg_covar=self.reg_covar * float(samples.var(axis=0).mean()),
            max_iter=self.max_iter,
        )

    def resume(self, samples: Floats, mixture: Mixture) -> Mixture:
        """Continue the fit of a mixture on more samples."""
        responsibilities = expect(samples, mixture)[1]
        return self.fit(samples, responsibilities, mixture.covariance_type)


def can_search(n_components: int, n_samples: int) -> bool:
    """Whether there are enough samples to fit candidates of K components."""
    n_fitted = int((1 - _HELD_OUT) * min(n_samples, _FIRST_SAMPLES))
    return n_fitted >= _SAMPLES_PER_COMPONENT * n_components


def search_teacher(
    samples: Floats,
    configurations: Sequence[Configuration],
    criterion: Criterion,
    fitter: Fitter,
    *,
    n_init: int,
    error_score: float | str,
    n_jobs: int | None,
    verbose: int,
    random_state: np.random.RandomState,
) -> tuple[Candidate, dict[str, NDArray[Any]], str]:
    """Return the best candidate, the table of all candidates, and a message.

    The message is empty unless Ctrl-C interrupted the search.
    """
    samples, scale = _normalized(samples)
    split = train_test_split(samples, test_size=_HELD_OUT, random_state=random_state)
    seeds = random_state.randint(2**31 - 1, size=max(_LEAST_RESTARTS, n_init))
    evaluator = _Evaluator(_Split(*split), criterion, fitter, error_score, seeds)
    candidates, interrupted = _first_round(evaluator, configurations, n_jobs, verbose)
    order = _rank(candidates, criterion)
    finalists = [i for i in order[:_N_FINALISTS] if criterion.is_usable(candidates[i])]
    if len(samples) > _FIRST_SAMPLES and finalists and not interrupted:
        interrupted = _second_round(evaluator, candidates, finalists, n_jobs, verbose)
        order = _rank(candidates, criterion)
    candidates = [_in_original_units(candidate, scale) for candidate in candidates]
    best = candidates[order[0]]
    for warning in _findings(candidates, best, criterion):
        warn_user(warning)
    cut_short = _interruption(candidates, best) if interrupted else ""
    return best, _table(candidates, order, criterion), cut_short


def refit_on_all(
    samples: Floats, found: Candidate, fitter: Fitter
) -> tuple[Mixture, str]:
    """Continue the fit of the chosen mixture on all samples.

    If that fails, return the mixture of the search. Also return a message, which is
    empty unless Ctrl-C interrupted the fit.
    """
    # The search raises an error if its best candidate has no mixture.
    assert found.mixture is not None
    samples, scale = _normalized(samples)
    start = found.mixture.rescaled(1 / scale)
    kept = f"the fit of {found.configuration} on {found.n_samples} samples is kept."
    try:
        return fitter.resume(samples, start).rescaled(scale), ""
    except np.linalg.LinAlgError as error:
        warn_user(
            FitFailedWarning(
                f"A covariance became singular ({error}): {kept} Raise reg_covar."
            )
        )
    except KeyboardInterrupt:
        return found.mixture, f"The last fit was interrupted: {kept}"
    return found.mixture, ""


class _Split(NamedTuple):
    """Samples to fit mixtures on, and held-out samples to measure them on."""

    fitted: Floats
    held_out: Floats

    def first_samples(self, n_samples: int) -> "_Split":
        """Keep the first samples of both parts, `n_samples` in total."""
        share = min(1.0, n_samples / sum(map(len, self)))
        # The split is shuffled, so that the first samples are a random part of it.
        return _Split(*(part[: math.ceil(share * len(part))] for part in self))

    def first_features(self, n_features: int) -> "_Split":
        """Keep the first features of both parts."""
        return _Split(*(np.ascontiguousarray(part[:, :n_features]) for part in self))


@dataclass
class _Evaluator:
    """Fits candidates and measures them on held-out samples."""

    split: _Split
    criterion: Criterion
    fitter: Fitter
    error_score: float | str
    seeds: NDArray[np.integer]
    _labels: dict[tuple[int, int], list[NDArray[np.integer]]] = field(
        default_factory=dict
    )
    _lock: Any = field(default_factory=Lock)

    def evaluate(self, configuration: Configuration) -> Candidate:
        """Fit a candidate and measure it, both on the samples of the first round."""
        began = time.perf_counter()
        try:
            # In each thread again: scikit-learn's configuration is local to threads.
            with numpy_only():
                candidate = self._best_restart(configuration)
        except Exception as error:
            # As in scikit-learn's searches, error_score covers any error.
            if self.error_score == "raise":
                raise
            candidate = Candidate(
                configuration,
                information=float(self.error_score),
                error=_summary(error),
            )
        return replace(candidate, seconds=time.perf_counter() - began)

    def evaluate_on_all(self, candidate: Candidate) -> Candidate:
        """Continue the fit on all samples; measure it on all held-out samples."""
        began = time.perf_counter()
        try:
            resumed = self._resumed(candidate)
        except ValueError as error:  # a LinAlgError is one too
            if self.error_score == "raise":
                raise
            # The fit of the first round is still valid.
            return replace(candidate, error=_summary(error))
        seconds = candidate.seconds + time.perf_counter() - began
        return replace(resumed, seconds=seconds)

    def _best_restart(self, configuration: Configuration) -> Candidate:
        split = self.split.first_samples(_FIRST_SAMPLES)
        n_components, n_features, covariance_type = configuration
        fitted, held_out = split.first_features(n_features)
        # The labels of k-means are one-hot responsibilities.
        mixtures = [
            self.fitter.fit(fitted, np.eye(n_components)[:, labels], covariance_type)
            for labels in self._shared_labels(fitted, n_components)
        ]
        populated = _populated(mixtures, len(fitted))
        log_probas = [log_joint(held_out, mixture).T for mixture in mixtures]
        candidate = Candidate(
            configuration, agreement=_agreement(log_probas), n_samples=len(fitted)
        )
        restarts = [
            self._measured(candidate, mixtures[i], log_probas[i]) for i in populated
        ]
        return max(restarts, key=self._merit)

    def _merit(self, restart: Candidate) -> tuple[bool, float]:
        # A restart above the budget is of no use, however informative it is.
        return self.criterion.fits_budget(restart), restart.information

    def _resumed(self, candidate: Candidate) -> Candidate:
        assert candidate.mixture is not None
        n_features = candidate.configuration.pca_components
        fitted, held_out = self.split.first_features(n_features)
        mixture = self.fitter.resume(fitted, candidate.mixture)
        _populated([mixture], len(fitted))
        candidate = replace(candidate, n_samples=len(fitted))
        return self._measured(candidate, mixture, log_joint(held_out, mixture).T)

    def _shared_labels(
        self, samples: Floats, n_components: int
    ) -> list[NDArray[np.integer]]:
        """Return the k-means labels of each restart, shared by all covariance types."""
        key = n_components, samples.shape[1]
        # Several threads evaluate candidates; each clustering is computed once.
        with self._lock:
            if key not in self._labels:
                self._labels[key] = _kmeans_labels(samples, n_components, self.seeds)
            return self._labels[key]

    def _measured(
        self, candidate: Candidate, mixture: Mixture, log_proba: NDArray[np.floating]
    ) -> Candidate:
        """Return the candidate with a mixture and its values on held-out samples."""
        temperature = self.criterion.choose_temperature(log_proba)
        proba = temper(log_proba, temperature, self.criterion.floor)
        return replace(
            candidate,
            information=teacher_information(proba),
            energy=analytic_energy(proba, 1.0),
            temperature=temperature,
            log_likelihood=float(np.logaddexp.reduce(log_proba, axis=1).mean()),
            mixture=mixture,
        )


def _kmeans_labels(
    samples: Floats, n_components: int, seeds: NDArray[np.integer]
) -> list[NDArray[np.integer]]:
    """Return the k-means labels of the samples, for each seed."""
    least = _SAMPLES_PER_COMPONENT * n_components
    if len(samples) < least:
        raise ValueError(
            f"n_components={n_components} needs at least {least} samples to fit the "
            f"mixture, got {len(samples)}"
        )
    kmeans = [KMeans(n_components, n_init=1, random_state=seed) for seed in seeds]
    return [each.fit(samples).labels_ for each in kmeans]


def _populated(mixtures: list[Mixture], n_samples: int) -> list[int]:
    """Return the indices of mixtures with at least half a sample in each component."""
    populated = [
        index
        for index, mixture in enumerate(mixtures)
        if mixture.weights.min() * n_samples >= 0.5
    ]
    if not populated:
        raise ValueError(
            "some components have no samples in every restart: X has fewer clusters "
            f"than n_components={len(mixtures[0].weights)}"
        )
    return populated


def _agreement(log_probas: list[NDArray[np.floating]]) -> float:
    """Return the adjusted mutual information of restarts, averaged over pairs."""
    pairs = combinations([log_proba.argmax(axis=1) for log_proba in log_probas], 2)
    return float(np.mean([adjusted_mutual_info_score(*pair) for pair in pairs]))


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]


def _first_round(
    evaluator: _Evaluator,
    configurations: Sequence[Configuration],
    n_jobs: int | None,
    verbose: int,
) -> tuple[list[Candidate], bool]:
    """Evaluate all; return the candidates, and whether Ctrl-C ended the round."""
    done, interrupted = _run(evaluator.evaluate, configurations, n_jobs, verbose)
    # Without a candidate within the budget there is no teacher to return.
    if interrupted and not any(map(evaluator.criterion.fits_budget, done.values())):
        raise KeyboardInterrupt
    candidates = [
        done.get(index, Candidate(configuration, error=_INTERRUPTED))
        for index, configuration in enumerate(configurations)
    ]
    return candidates, interrupted


def _second_round(
    evaluator: _Evaluator,
    candidates: list[Candidate],
    finalists: list[int],
    n_jobs: int | None,
    verbose: int,
) -> bool:
    """Evaluate the finalists on all samples, and update `candidates` in place.

    Return whether Ctrl-C ended the round.
    """
    items = [candidates[index] for index in finalists]
    done, interrupted = _run(evaluator.evaluate_on_all, items, n_jobs, verbose)
    for place, candidate in done.items():
        candidates[finalists[place]] = candidate
    return interrupted


def _run(
    evaluate: Callable[[Any], Candidate],
    items: Sequence[Any],
    n_jobs: int | None,
    verbose: int,
) -> tuple[dict[int, Candidate], bool]:
    """Return the results by index, and whether Ctrl-C ended the run."""
    done: dict[int, Candidate] = {}
    n_threads = min(effective_n_jobs(n_jobs), len(items))
    with (
        tqdm(total=len(items), unit="candidate", disable=not verbose) as bar,
        # Closed at once after Ctrl-C, so that no further candidates are started.
        closing(_results(evaluate, items, n_threads)) as results,
    ):
        try:
            for index, candidate in results:
                done[index] = candidate
                _report(bar, candidate, verbose)
        except KeyboardInterrupt:
            return done, True
    return done, False


def _results(
    evaluate: Callable[[Any], Candidate], items: Sequence[Any], n_threads: int
) -> Generator[tuple[int, Candidate]]:
    """Yield the results by index; if there are several threads, each uses one core."""
    if n_threads == 1:
        yield from enumerate(map(evaluate, items))
        return
    # OpenMP has one limit per thread, so each thread of the pool sets its own.
    one_core = {"initializer": threadpool_limits, "initargs": (1,)}
    with threadpool_limits(1), ThreadPoolExecutor(n_threads, **one_core) as pool:
        futures = {pool.submit(evaluate, item): i for i, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # After Ctrl-C or an error, the remaining candidates are not started.
            pool.shutdown(cancel_futures=True)


def _report(bar: Any, candidate: Candidate, verbose: int) -> None:
    bar.update()
    if verbose > 1:
        values = (
            f"information {candidate.information:.3f}, energy {candidate.energy:.3g}, "
            f"agreement {candidate.agreement:.2f}, {candidate.seconds:.1f} s"
        )
        bar.write(f"{candidate.configuration}: {candidate.error or values}")


def _normalized(samples: Floats) -> tuple[Floats, float]:
    """Divide samples by the scale of the first component, so that float32 suffices."""
    scale = float(np.sqrt(np.square(samples[:, 0]).mean()))
    return samples / scale, scale


def _in_original_units(candidate: Candidate, scale: float) -> Candidate:
    """Undo :func:`_normalized` for a candidate."""
    if candidate.mixture is None:
        return candidate
    # Log-densities depend on the unit of each principal component.
    log_volume = candidate.configuration.pca_components * np.log(scale)
    return replace(
        candidate,
        log_likelihood=candidate.log_likelihood - log_volume,
        mixture=candidate.mixture.rescaled(scale),
    )


def _rank(candidates: list[Candidate], criterion: Criterion) -> list[int]:
    """Return the indices from best to worst; raise if even the best is not usable."""
    order = criterion.rank(candidates)
    best = candidates[order[0]]
    if best.mixture is None:
        failures = "; ".join(f"{c.configuration}: {c.error}" for c in candidates)
        raise NoCandidateError(f"All {len(candidates)} candidates failed: {failures}.")
    criterion.check_budget(best)
    return order


def _findings(
    candidates: list[Candidate], best: Candidate, criterion: Criterion
) -> Iterator[Warning]:
    """Yield warnings for the user about the search."""
    failed = [c for c in candidates if c.error and c.error != _INTERRUPTED]
    if failed:
        errors = "; ".join(f"{c.configuration}: {c.error}" for c in failed)
        yield FitFailedWarning(
            f"{len(failed)} of {len(candidates)} candidates failed. The search leaves "
            f"them out, or keeps their fit on fewer samples: {errors}"
        )
    if not criterion.is_stable(best):
        yield UnstableTeacherWarning(
            f"No candidate reaches min_agreement={criterion.min_agreement:g}. The "
            f"restarts of {best.configuration} agree best, with an adjusted mutual "
            f"information of {best.agreement:.2f}. The clusters may be due to chance. "
            "Try smaller n_components, more samples or larger n_init, or check that X "
            "has structure."
        )


def _interruption(candidates: list[Candidate], best: Candidate) -> str:
    n_done = sum(c.error != _INTERRUPTED for c in candidates)
    return (
        f"The search was interrupted after {n_done} of {len(candidates)} candidates. "
        f"The best candidate is {best.configuration}."
    )


def _table(
    candidates: list[Candidate], order: list[int], criterion: Criterion
) -> dict[str, NDArray[Any]]:
    """Return one array for each column, with one entry for each candidate."""
    rows = [
        c.configuration._asdict()
        | {name: getattr(c, name) for name in _MEASURED}
        | {"usable": criterion.is_usable(c)}
        for c in candidates
    ]
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    # The inverse permutation: the place of each candidate in the order.
    return table | {"rank": np.argsort(order) + 1}
