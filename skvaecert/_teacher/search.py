"""The search for a teacher: many mixtures, judged on rows they were not fitted on."""

import math
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from threading import Lock
from typing import Any, NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from skvaecert._estimator import warn_user
from skvaecert._samples import numpy_only
from skvaecert._teacher.em import Mixture, expect, fit_fast, log_joint
from skvaecert.exceptions import InterruptedFitWarning, UnstableTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import Floats, analytic_energy, budget_temperature, temper

__all__ = [
    "Candidate",
    "Configuration",
    "Criterion",
    "NoCandidateError",
    "can_search",
    "check_budget",
    "default_budget",
    "finished",
    "search_teacher",
]


# The prior-matched scale of a teacher that just fits the default budget. Beyond it
# margins on test rows gain little with few components and fall with many
# (docs/benchmarks.md).
_LARGEST_SCALE = 4.0

_HELD_OUT = 0.25

# All candidates meet on so many rows; if there are more, the best meet on all.
_FIRST_ROWS = 10_000

_N_FINALISTS = 3

# Of fewer, the rows held out do not show every component.
_ROWS_PER_COMPONENT = 5

# Two may agree by chance, on tables of a hundred rows.
_LEAST_RESTARTS = 3

_INTERRUPTED = "interrupted"

# A row of the table is no place for a traceback.
_LONGEST_ERROR = 200


class Configuration(NamedTuple):
    """What a search varies."""

    n_components: int
    pca_components: int
    covariance_type: str

    def __str__(self) -> str:
        """Write as parameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())


@dataclass(frozen=True)
class Criterion:
    """What makes a teacher good: parameters of :class:`GMMTeacher`."""

    temperature: float | str
    floor: float
    energy_budget: float | None
    min_agreement: float

    def budget(self, n_components: int) -> float:
        """Return the most energy that is allowed."""
        if self.energy_budget is None:
            return default_budget(n_components)
        return float(self.energy_budget)

    def resolve_temperature(self, log_proba: NDArray[np.floating]) -> float:
        """Turn `temperature` into a number."""
        if self.temperature != "auto":
            return float(self.temperature)
        budget = self.budget(log_proba.shape[1])
        return budget_temperature(log_proba, self.floor, budget)


@dataclass(frozen=True)
class Candidate:
    """One configuration, and how it did on the rows held out."""

    configuration: Configuration
    information: float = np.nan
    energy: float = np.nan
    temperature: float = np.nan
    log_likelihood: float = np.nan
    agreement: float = np.nan
    n_samples: int = 0
    seconds: float = np.nan
    error: str = ""
    mixture: Mixture | None = field(default=None, repr=False)


class NoCandidateError(ValueError):
    """No candidate of a search could be fitted."""


def default_budget(n_components: int) -> float:
    """Return the energy at which the prior-matched scale is 4: 16 (K - 1) / 2."""
    return _LARGEST_SCALE**2 * (n_components - 1) / 2


def can_search(n_components: int, n_samples: int) -> bool:
    """Tell whether rows are enough to fit and judge candidates of K components."""
    n_fitted = int((1 - _HELD_OUT) * min(n_samples, _FIRST_ROWS))
    return n_fitted >= _ROWS_PER_COMPONENT * n_components


def search_teacher(
    scores: Floats,
    configurations: Sequence[Configuration],
    criterion: Criterion,
    *,
    reg_covar: float,
    n_init: int,
    max_iter: int,
    error_score: float | str,
    n_jobs: int | None,
    verbose: int,
    random_state: np.random.RandomState,
) -> tuple[Candidate, dict[str, NDArray[Any]]]:
    """Fit all configurations and choose one."""
    rows, scale = _unit(scores)
    contest = _Contest(
        *train_test_split(rows, test_size=_HELD_OUT, random_state=random_state),
        criterion=criterion,
        reg_covar=reg_covar,
        max_iter=max_iter,
        error_score=error_score,
        seeds=tuple(random_state.randint(2**31 - 1, size=max(_LEAST_RESTARTS, n_init))),
    )
    candidates, interrupted = _first_round(contest, configurations, n_jobs, verbose)
    order = _ranking(candidates, criterion)
    _check_usable(candidates, order, criterion)
    if len(rows) > _FIRST_ROWS and not interrupted:
        finalists = order[:_N_FINALISTS]
        interrupted = _second_round(contest, candidates, finalists, n_jobs, verbose)
        order = _ranking(candidates, criterion)
        _check_usable(candidates, order, criterion)
    candidates = [_in_units(candidate, scale) for candidate in candidates]
    best = candidates[order[0]]
    _warn_of(candidates, best, criterion, interrupted)
    return best, _table(candidates, order, criterion)


class _Contest:
    """The rows and rules that all candidates share."""

    def __init__(
        self,
        fitted: Floats,
        held_out: Floats,
        *,
        criterion: Criterion,
        reg_covar: float,
        max_iter: int,
        error_score: float | str,
        seeds: tuple[int, ...],
    ) -> None:
        self.fitted = fitted
        self.held_out = held_out
        self.criterion = criterion
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.error_score = error_score
        self.seeds = seeds
        self._starts: dict[tuple[int, int], list[NDArray[np.integer]]] = {}
        self._lock = Lock()

    def judge(self, configuration: Configuration) -> Candidate:
        """Fit and judge on the rows of the first round."""
        began = time.perf_counter()
        try:
            with numpy_only():
                candidate = self._judge(configuration)
        except Exception as error:
            if self.error_score == "raise":
                raise
            candidate = Candidate(
                configuration,
                information=float(self.error_score),
                error=_told(error),
            )
        return replace(candidate, seconds=time.perf_counter() - began)

    def judge_again(self, candidate: Candidate) -> Candidate:
        """Go on with a mixture on all rows, and judge it on all rows held out."""
        began = time.perf_counter()
        assert candidate.mixture is not None
        rows = _leading(self.fitted, candidate.configuration.pca_components)
        try:
            mixture = _continued(rows, candidate.mixture, self.reg_covar, self.max_iter)
            self._check_full(candidate.configuration, [mixture], len(rows))
        except ValueError as error:  # a LinAlgError is one too
            if self.error_score == "raise":
                raise
            # What was found on fewer rows still stands.
            return replace(candidate, error=_told(error))
        held_out = _leading(self.held_out, candidate.configuration.pca_components)
        judged = self._measure(candidate, mixture, log_joint(held_out, mixture))
        seconds = candidate.seconds + time.perf_counter() - began
        return replace(judged, n_samples=len(rows), seconds=seconds)

    def _judge(self, configuration: Configuration) -> Candidate:
        n_samples = len(self._first(self.fitted))
        mixtures = self._restarts(configuration)
        full = self._check_full(configuration, mixtures, n_samples)
        rows = _leading(self._first(self.held_out), configuration.pca_components)
        joints = [log_joint(rows, mixture) for mixture in mixtures]
        candidate = Candidate(
            configuration, agreement=_agreement(joints), n_samples=n_samples
        )
        judged = [self._measure(candidate, mixtures[i], joints[i]) for i in full]
        return max(judged, key=self._merit)

    def _merit(self, restart: Candidate) -> tuple[bool, float]:
        return _fits(restart, self.criterion), restart.information

    def _restarts(self, configuration: Configuration) -> list[Mixture]:
        n_components, pca_components, covariance_type = configuration
        rows = _leading(self._first(self.fitted), pca_components)
        return [
            _fit(
                rows,
                np.eye(n_components)[:, labels],
                covariance_type,
                self.reg_covar,
                self.max_iter,
            )
            for labels in self._start(n_components, pca_components)
        ]

    def _check_full(
        self, configuration: Configuration, mixtures: list[Mixture], n_samples: int
    ) -> list[int]:
        """Return which mixtures have rows for all components: half a row at least."""
        least = [mixture.weights.min() * n_samples for mixture in mixtures]
        full = [index for index, rows in enumerate(least) if rows >= 0.5]
        if not full:
            raise ValueError(
                "in all restarts some components have no rows: there are fewer groups "
                f"than n_components={configuration.n_components}"
            )
        return full

    def _first(self, rows: Floats) -> Floats:
        """Return the share of the first round; rows are in no order."""
        n_samples = len(self.fitted) + len(self.held_out)
        share = min(1.0, _FIRST_ROWS / n_samples)
        return rows[: math.ceil(share * len(rows))]

    def _start(
        self, n_components: int, pca_components: int
    ) -> list[NDArray[np.integer]]:
        """Return groups by k-means; covariance types start from the same."""
        key = n_components, pca_components
        with self._lock:
            if key not in self._starts:
                rows = self._first(self.fitted)[:, :pca_components]
                _check_enough(n_components, len(rows))
                means = [
                    KMeans(n_components, n_init=1, random_state=seed)
                    for seed in self.seeds
                ]
                self._starts[key] = [kmeans.fit(rows).labels_ for kmeans in means]
            return self._starts[key]

    def _measure(
        self, candidate: Candidate, mixture: Mixture, joint: NDArray[np.floating]
    ) -> Candidate:
        """Fill in what the log-joint of rows held out says of a mixture."""
        log_proba = joint.T
        temperature = self.criterion.resolve_temperature(log_proba)
        proba = temper(log_proba, temperature, self.criterion.floor)
        return replace(
            candidate,
            information=teacher_information(proba),
            energy=analytic_energy(proba, 1.0),
            temperature=temperature,
            log_likelihood=float(np.logaddexp.reduce(log_proba, axis=1).mean()),
            mixture=mixture,
        )


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]


def _check_enough(n_components: int, n_samples: int) -> None:
    if n_samples < _ROWS_PER_COMPONENT * n_components:
        raise ValueError(
            f"n_components={n_components} needs at least "
            f"{_ROWS_PER_COMPONENT * n_components} rows to fit its mixture on, got "
            f"{n_samples}"
        )


def _leading(rows: Floats, n_features: int) -> Floats:
    return np.ascontiguousarray(rows[:, :n_features])


def _agreement(joints: list[NDArray[np.floating]]) -> float:
    pairs = combinations([joint.argmax(axis=0) for joint in joints], 2)
    return float(np.mean([adjusted_mutual_info_score(*pair) for pair in pairs]))


def _first_round(
    contest: _Contest,
    configurations: Sequence[Configuration],
    n_jobs: int | None,
    verbose: int,
) -> tuple[list[Candidate], bool]:
    """Judge all; after Ctrl-C, keep what is done and tell."""
    judged, interrupted = _run(contest.judge, configurations, n_jobs, verbose)
    if interrupted and not any(_fits(c, contest.criterion) for c in judged.values()):
        raise KeyboardInterrupt
    return [
        judged.get(index, Candidate(configuration, error=_INTERRUPTED))
        for index, configuration in enumerate(configurations)
    ], interrupted


def _second_round(
    contest: _Contest,
    candidates: list[Candidate],
    finalists: list[int],
    n_jobs: int | None,
    verbose: int,
) -> bool:
    """Judge the best again, in place; after Ctrl-C, keep what is done and tell."""
    usable = [i for i in finalists if _usable(candidates[i], contest.criterion)]
    fits = [candidates[i] for i in usable]
    judged, interrupted = _run(contest.judge_again, fits, n_jobs, verbose)
    for place, candidate in judged.items():
        candidates[usable[place]] = candidate
    return interrupted


def _run(
    judge: Callable[[Any], Candidate],
    items: Sequence[Any],
    n_jobs: int | None,
    verbose: int,
) -> tuple[dict[int, Candidate], bool]:
    """Return what is judged, by its place, and whether Ctrl-C ended it."""
    judged: dict[int, Candidate] = {}
    n_threads = min(joblib.effective_n_jobs(n_jobs), len(items))
    each = _in_threads if n_threads > 1 else _one_by_one
    with tqdm(
        total=len(items), unit="candidate", disable=not (verbose and items)
    ) as bar:
        try:
            with closing(each(judge, items, n_threads, judged)) as results:
                for place, candidate in results:
                    judged[place] = candidate
                    _report(bar, candidate, verbose)
        except KeyboardInterrupt:
            return judged, True
    return judged, False


def _one_by_one(
    judge: Callable[[Any], Candidate],
    items: Sequence[Any],
    n_threads: int,
    judged: dict[int, Candidate],
) -> Generator[tuple[int, Candidate]]:
    yield from enumerate(map(judge, items))


def _in_threads(
    judge: Callable[[Any], Candidate],
    items: Sequence[Any],
    n_threads: int,
    judged: dict[int, Candidate],
) -> Generator[tuple[int, Candidate]]:
    """Judge in threads, which NumPy leaves free to run."""
    shares = _shares(n_threads)
    # OpenMP keeps its limit by thread, so each of ours sets it anew.
    start = {"initializer": threadpool_limits, "initargs": (shares,)}
    with threadpool_limits(shares), ThreadPoolExecutor(n_threads, **start) as pool:
        places = {pool.submit(judge, item): i for i, item in enumerate(items)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        finally:
            # What runs has to be waited for in any case, so it may as well count.
            pool.shutdown(cancel_futures=True)
            done = {i: f for f, i in places.items() if not f.cancelled()}
            judged |= {i: f.result() for i, f in done.items() if not f.exception()}


def _shares(n_threads: int) -> dict[str, int]:
    """Return threads that each library may use in each of ours: no more than now."""
    share = max(1, joblib.cpu_count() // n_threads)
    pools = threadpool_info()
    return {pool["prefix"]: min(share, pool["num_threads"]) for pool in pools}


def _report(bar: Any, candidate: Candidate, verbose: int) -> None:
    bar.update()
    if verbose > 1:
        bar.write(
            f"{candidate.configuration}: "
            + (
                candidate.error
                or f"information {candidate.information:.3f}, energy "
                f"{candidate.energy:.3g}, agreement {candidate.agreement:.2f}, "
                f"{candidate.seconds:.1f} s"
            )
        )


def finished(
    scores: Floats, found: Candidate, reg_covar: float, max_iter: int
) -> Mixture:
    """Go on with the chosen mixture on all rows."""
    assert found.mixture is not None
    rows, scale = _unit(scores)
    start = found.mixture.rescaled(1 / scale)
    unfinished = (
        f"{found.configuration} stays as it was found on {found.n_samples} rows"
    )
    try:
        return _continued(rows, start, reg_covar, max_iter).rescaled(scale)
    except KeyboardInterrupt:
        message = f"The fit was interrupted: {unfinished}."
        warn_user(InterruptedFitWarning(message))
    except np.linalg.LinAlgError as error:
        message = f"A covariance collapsed ({error}): {unfinished}. Raise reg_covar."
        warn_user(FitFailedWarning(message))
    return found.mixture


def _continued(
    rows: Floats, start: Mixture, reg_covar: float, max_iter: int
) -> Mixture:
    responsibilities = expect(rows, start)[1]
    return _fit(rows, responsibilities, start.covariance_type, reg_covar, max_iter)


def _fit(
    rows: Floats,
    responsibilities: NDArray[np.floating],
    covariance_type: str,
    reg_covar: float,
    max_iter: int,
) -> Mixture:
    """Fit a mixture whose `reg_covar` is a share of the variance of the rows."""
    return fit_fast(
        rows,
        responsibilities,
        covariance_type=covariance_type,
        reg_covar=reg_covar * float(rows.var(axis=0).mean()),
        max_iter=max_iter,
    )


def _unit(scores: Floats) -> tuple[Floats, float]:
    """Divide by one number: float32 is then safe whatever the data."""
    scale = float(np.sqrt(np.square(scores[:, 0]).mean()))
    return scores / scale, scale


def _in_units(candidate: Candidate, scale: float) -> Candidate:
    """Go from rows divided by `scale` back to the rows."""
    if candidate.mixture is None:
        return candidate
    density = (
        candidate.log_likelihood
        - candidate.configuration.pca_components * np.log(scale)
    )
    mixture = candidate.mixture.rescaled(scale)
    return replace(candidate, log_likelihood=density, mixture=mixture)


def _budget(candidate: Candidate, criterion: Criterion) -> float:
    return criterion.budget(candidate.configuration.n_components)


def _fits(candidate: Candidate, criterion: Criterion) -> bool:
    return candidate.energy <= _budget(candidate, criterion)


def _disagree(candidate: Candidate, criterion: Criterion) -> bool:
    # By chance alone it may be a little below 0.
    return max(candidate.agreement, 0.0) < criterion.min_agreement


def _usable(candidate: Candidate, criterion: Criterion) -> bool:
    return _fits(candidate, criterion) and not _disagree(candidate, criterion)


def _ranking(candidates: list[Candidate], criterion: Criterion) -> list[int]:
    """Order candidates from the best to the worst; those judged on more rows first."""

    def key(index: int) -> tuple[float, ...]:
        candidate = candidates[index]
        if candidate.mixture is None:
            return 3, 0
        if not _fits(candidate, criterion):
            return 2, candidate.energy / _budget(candidate, criterion)
        if _disagree(candidate, criterion):
            return 1, -candidate.agreement
        return 0, -candidate.n_samples, -candidate.information

    return sorted(range(len(candidates)), key=key)


def _check_usable(
    candidates: list[Candidate], order: list[int], criterion: Criterion
) -> None:
    nearest = candidates[order[0]]
    if nearest.mixture is None:
        failures = "; ".join(f"{c.configuration}: {c.error}" for c in candidates)
        raise NoCandidateError(f"All {len(candidates)} candidates failed: {failures}.")
    check_budget(nearest, criterion)


def check_budget(nearest: Candidate, criterion: Criterion) -> None:
    """Refuse a teacher that costs too much, and say what to relax."""
    if _fits(nearest, criterion):
        return
    raise ValueError(
        "energy_budget must be at least the energy of a candidate, got "
        f"{_budget(nearest, criterion):.4g} nats; nearest is "
        f"{nearest.configuration} with {nearest.energy:.4g} nats at temperature "
        f"{nearest.temperature:g}. Raise energy_budget or floor "
        f"({criterion.floor:g}), or set temperature='auto'."
    )


def _warn_of(
    candidates: list[Candidate],
    best: Candidate,
    criterion: Criterion,
    interrupted: bool,
) -> None:
    failed = [c for c in candidates if c.error and c.error != _INTERRUPTED]
    if failed:
        message = f"{len(failed)} of {len(candidates)} candidates failed and are left "
        message += "out, or stay as judged on fewer rows: " + "; ".join(
            f"{c.configuration}: {c.error}" for c in failed
        )
        warn_user(FitFailedWarning(message))
    if interrupted:
        done = sum(c.error != _INTERRUPTED for c in candidates)
        message = f"The search was interrupted after {done} of {len(candidates)} "
        message += f"candidates: {best.configuration} is the best as far as judged."
        warn_user(InterruptedFitWarning(message))
    if _disagree(best, criterion):
        warn_user(_unstable(best, criterion))


def _unstable(best: Candidate, criterion: Criterion) -> UnstableTeacherWarning:
    return UnstableTeacherWarning(
        f"No candidate reaches min_agreement={criterion.min_agreement:g}: restarts of "
        f"{best.configuration}, which agree best, have an adjusted mutual information "
        f"of {best.agreement:.2f}. Its groups may be those of chance. Try smaller "
        "n_components, more rows or larger n_init, or check that X has structure."
    )


def _table(
    candidates: list[Candidate], order: list[int], criterion: Criterion
) -> dict[str, NDArray[Any]]:
    points = zip(*(c.configuration for c in candidates), strict=True)
    table = dict(zip(Configuration._fields, map(np.array, points), strict=True))
    for name in (item.name for item in fields(Candidate)[1:-1]):
        table[name] = np.array([getattr(candidate, name) for candidate in candidates])
    table["usable"] = np.array([_usable(c, criterion) for c in candidates])
    table["rank"] = np.argsort(order) + 1
    return table
