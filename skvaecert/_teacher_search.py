"""The search for a teacher: many mixtures, judged on rows they were not fitted on."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import FitFailedWarning
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from skvaecert._base import numpy_only
from skvaecert._mixture import Mixture, expect, fit_mixture, log_joint
from skvaecert.exceptions import InterruptedFitWarning, UnstableTeacherWarning
from skvaecert.metrics import teacher_information
from skvaecert.simplex import analytic_energy, budget_temperature, temper

__all__ = [
    "Candidate",
    "Configuration",
    "Criterion",
    "check_budget",
    "default_budget",
    "refined",
    "search_teacher",
]

# The prior-matched scale of a teacher that just fits the default budget. Held-out
# margins of trained VAEs are highest at 3 to 5 and fall beyond (docs/benchmarks.md).
_LARGEST_SCALE = 4.0
_HELD_OUT = 0.25
# All candidates meet on so many rows; if there are more, the best meet on all.
_FIRST_ROWS = 10_000
_N_FINALISTS = 3
_INTERRUPTED = "interrupted"
# Frames from a warning here up to the call of GMMTeacher.fit.
_USER = 7
# A row of the table is no place for a traceback.
_LONGEST_ERROR = 200

Rows = NDArray[np.float32]


class Configuration(NamedTuple):
    """What a search varies.

    Attributes
    ----------
    n_components : int
        K.
    pca_components : int
        Principal components that the mixture sees.
    covariance_type : {"full", "tied", "diag", "spherical"}
        Shape of the covariances.
    """

    n_components: int
    pca_components: int
    covariance_type: str

    def __str__(self) -> str:
        """Write as parameters."""
        return ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())


@dataclass(frozen=True)
class Criterion:
    """What makes a teacher good: parameters of :class:`GMMTeacher`.

    Attributes
    ----------
    temperature : float or "auto"
        As in :class:`GMMTeacher`.
    floor : float
        As in :class:`GMMTeacher`.
    energy_budget : float or None
        As in :class:`GMMTeacher`.
    min_agreement : float
        As in :class:`GMMTeacher`.
    """

    temperature: float | str
    floor: float
    energy_budget: float | None
    min_agreement: float

    def budget(self, n_components: int) -> float:
        """Return the most energy that is allowed.

        Parameters
        ----------
        n_components : int
            K.

        Returns
        -------
        float
            Nats a sample.
        """
        if self.energy_budget is None:
            return default_budget(n_components)
        return float(self.energy_budget)

    def resolve_temperature(self, log_proba: NDArray[np.floating]) -> float:
        """Turn `temperature` into a number.

        Parameters
        ----------
        log_proba : ndarray of shape (n_samples, n_components)
            Joint log-probabilities of rows.

        Returns
        -------
        float
            The smallest from 1 up that fits the budget, for "auto".
        """
        if self.temperature != "auto":
            return float(self.temperature)
        budget = self.budget(log_proba.shape[1])
        return budget_temperature(log_proba, self.floor, budget)


@dataclass(frozen=True)
class Candidate:
    """One configuration, and how it did on the rows held out.

    Attributes
    ----------
    configuration : Configuration
        What was tried.
    information : float
        Teacher information, nats.
    energy : float
        Of the analytic code at scale 1, nats.
    temperature : float
        t.
    log_likelihood : float
        Mean of log p(principal components), nats a row.
    agreement : float
        Adjusted mutual information of the groups of the restart with most
        information and those of the others, on average; 1 if they are the same, 0 as
        by chance.
    n_samples : int
        Rows that the mixture was fitted on.
    seconds : float
        Time taken.
    error : str
        Empty, or why the candidate failed.
    mixture : Mixture or None
        Of the best restart, in the units of the rows searched.
    """

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


def default_budget(n_components: int) -> float:
    """Return the energy at which the prior-matched scale is 4: 16 (K - 1) / 2.

    Parameters
    ----------
    n_components : int
        K.

    Returns
    -------
    float
        Nats a sample, at scale 1.
    """
    return _LARGEST_SCALE**2 * (n_components - 1) / 2


def search_teacher(
    scores: NDArray[np.floating],
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
    """Fit all configurations and choose one.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_components)
        Principal components, the largest first.
    configurations : sequence of Configuration
        What to try.
    criterion : Criterion
        How to choose.
    reg_covar, n_init, max_iter, error_score, n_jobs, verbose : object
        As in :class:`GMMTeacher`.
    random_state : RandomState
        Splits rows and seeds restarts.

    Returns
    -------
    best : Candidate
        The chosen one; its mixture is in the units of `scores`.
    results : dict of ndarray
        One entry a configuration, in their order.

    Raises
    ------
    ValueError
        If all candidates fail or none fits the budget.

    Warns
    -----
    FitFailedWarning
        If some candidates failed.
    InterruptedFitWarning
        If Ctrl-C ended the search after a candidate that can be used.
    UnstableTeacherWarning
        If no candidate reaches `min_agreement`.
    """
    rows, scale = _unit(scores)
    contest = _Contest(
        *train_test_split(rows, test_size=_HELD_OUT, random_state=random_state),
        criterion=criterion,
        reg_covar=reg_covar,
        max_iter=max_iter,
        error_score=error_score,
        seeds=tuple(random_state.randint(2**31 - 1, size=max(2, n_init))),
    )
    candidates, interrupted = _first_round(contest, configurations, n_jobs, verbose)
    order = _ranking(candidates, criterion)
    _check_usable(candidates, order, criterion)
    if len(rows) > _FIRST_ROWS and not interrupted:
        finalists = order[:_N_FINALISTS]
        interrupted = _second_round(contest, candidates, finalists, n_jobs, verbose)
        finalists = _ranking(candidates, criterion, among=finalists)
        order = finalists + order[len(finalists) :]
    candidates = [_in_units(candidate, scale) for candidate in candidates]
    best = candidates[order[0]]
    _warn_of(candidates, best, criterion, interrupted)
    return best, _table(candidates, order, criterion)


class _Contest:
    """The rows and rules that all candidates share."""

    def __init__(
        self,
        fitted: Rows,
        held_out: Rows,
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
        # Covariance types start from the same k-means.
        self.start = lru_cache(maxsize=None)(self._start)

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
                error=f"{type(error).__name__}: {error}"[:_LONGEST_ERROR],
            )
        return replace(candidate, seconds=time.perf_counter() - began)

    def judge_again(self, candidate: Candidate) -> Candidate:
        """Go on with a mixture on all rows, and judge it on all rows held out."""
        began = time.perf_counter()
        assert candidate.mixture is not None
        rows = _leading(self.fitted, candidate.configuration.pca_components)
        held_out = _leading(self.held_out, candidate.configuration.pca_components)
        try:
            mixture = _continued(rows, candidate.mixture, self.reg_covar, self.max_iter)
        except np.linalg.LinAlgError:
            return candidate  # what was found on fewer rows still stands
        judged = self._measure(candidate, mixture, log_joint(held_out, mixture))
        seconds = candidate.seconds + time.perf_counter() - began
        return replace(judged, n_samples=len(rows), seconds=seconds)

    def _judge(self, configuration: Configuration) -> Candidate:
        n_components, pca_components, covariance_type = configuration
        rows = _leading(self._first(self.fitted), pca_components)
        held_out = _leading(self._first(self.held_out), pca_components)
        mixtures = [
            fit_mixture(
                rows,
                np.eye(n_components, dtype=rows.dtype)[:, labels],
                covariance_type=covariance_type,
                reg_covar=self.reg_covar * float(rows.var(axis=0).mean()),
                max_iter=self.max_iter,
            )
            for labels in self.start(n_components, pca_components)
        ]
        joints = [log_joint(held_out, mixture) for mixture in mixtures]
        restarts = [
            self._measure(Candidate(configuration, n_samples=len(rows)), *restart)
            for restart in zip(mixtures, joints, strict=True)
        ]
        best = _ranking(restarts, self.criterion)[0]
        labels = [joint.argmax(axis=0) for joint in joints]
        return replace(restarts[best], agreement=_agreement(labels, best))

    def _first(self, rows: Rows) -> Rows:
        """Return the share of the first round; rows are in no order."""
        n_samples = len(self.fitted) + len(self.held_out)
        share = min(1.0, _FIRST_ROWS / n_samples)
        return rows[: math.ceil(share * len(rows))]

    def _start(self, n_components: int, pca_components: int) -> list[NDArray[Any]]:
        rows = self._first(self.fitted)[:, :pca_components]
        if len(rows) < n_components:
            raise ValueError(
                f"n_components={n_components} is more than the {len(rows)} rows that "
                "the mixtures of a search are fitted on"
            )
        means = [KMeans(n_components, n_init=1, random_state=s) for s in self.seeds]
        return [kmeans.fit(rows).labels_ for kmeans in means]

    def _measure(
        self, candidate: Candidate, mixture: Mixture, joint: Rows
    ) -> Candidate:
        """Fill in what the held-out rows say of a mixture."""
        log_proba = joint.T.astype(np.float64)
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


def _leading(rows: Rows, n_features: int) -> Rows:
    return np.ascontiguousarray(rows[:, :n_features])


def _agreement(labels: list[NDArray[np.integer]], best: int) -> float:
    others = labels[:best] + labels[best + 1 :]
    scores = [adjusted_mutual_info_score(labels[best], other) for other in others]
    return float(np.mean(scores))


def _first_round(
    contest: _Contest,
    configurations: Sequence[Configuration],
    n_jobs: int | None,
    verbose: int,
) -> tuple[list[Candidate], bool]:
    """Judge all; after Ctrl-C, keep what is done and tell."""
    candidates, interrupted = _run(
        contest.judge, configurations, n_jobs, verbose, unit="candidate"
    )
    if interrupted and not any(candidate.mixture for candidate in candidates):
        raise KeyboardInterrupt
    missing = configurations[len(candidates) :]
    candidates += [Candidate(left, error=_INTERRUPTED) for left in missing]
    return candidates, interrupted


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
    judged, interrupted = _run(
        contest.judge_again, fits, n_jobs, verbose, unit="finalist"
    )
    for index, candidate in zip(usable, judged, strict=False):
        candidates[index] = candidate
    return interrupted


def _run(
    judge: Callable[[Any], Candidate],
    items: Sequence[Any],
    n_jobs: int | None,
    verbose: int,
    *,
    unit: str,
) -> tuple[list[Candidate], bool]:
    candidates: list[Candidate] = []
    with tqdm(total=len(items), unit=unit, disable=not (verbose and items)) as bar:
        try:
            for candidate in _judged(judge, items, n_jobs):
                candidates.append(candidate)
                _report(bar, candidate, verbose)
        except KeyboardInterrupt:
            return candidates, True
    return candidates, False


def _judged(
    judge: Callable[[Any], Candidate], items: Sequence[Any], n_jobs: int | None
) -> Iterator[Candidate]:
    """Yield candidates in order, from threads: NumPy leaves them free to run."""
    n_threads = min(joblib.effective_n_jobs(n_jobs), len(items))
    if n_threads <= 1:
        yield from map(judge, items)
        return
    limits = max(1, joblib.cpu_count() // n_threads)
    with threadpool_limits(limits=limits), ThreadPoolExecutor(n_threads) as pool:
        try:
            yield from pool.map(judge, items)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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


def refined(
    scores: NDArray[np.floating], start: Mixture, reg_covar: float, max_iter: int
) -> Mixture:
    """Go on with a mixture on other rows.

    Parameters
    ----------
    scores : ndarray of shape (n_samples, n_features)
        Principal components.
    start : Mixture
        Found on a part of them, perhaps.
    reg_covar : float
        As in :class:`GMMTeacher`.
    max_iter : int
        Most steps.

    Returns
    -------
    Mixture
        In the units of `scores`.
    """
    rows, scale = _unit(scores)
    start = start.rescaled(1 / scale)
    return _continued(rows, start, reg_covar, max_iter).rescaled(scale)


def _continued(rows: Rows, start: Mixture, reg_covar: float, max_iter: int) -> Mixture:
    _, responsibilities = expect(rows, start)
    return fit_mixture(
        rows,
        responsibilities,
        covariance_type=start.covariance_type,
        reg_covar=reg_covar * float(rows.var(axis=0).mean()),
        max_iter=max_iter,
    )


def _unit(scores: NDArray[np.floating]) -> tuple[Rows, float]:
    """Divide by one number: float32 is then safe whatever the data."""
    scale = float(np.sqrt(np.square(scores[:, 0]).mean()))
    return (scores / scale).astype(np.float32), scale


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


def _ranking(
    candidates: list[Candidate], criterion: Criterion, among: list[int] | None = None
) -> list[int]:
    """Order candidates from the best to the worst."""

    def key(index: int) -> tuple[Any, ...]:
        candidate = candidates[index]
        if candidate.mixture is None:
            return True, True, True, 0
        if not _fits(candidate, criterion):
            return False, True, True, candidate.energy / _budget(candidate, criterion)
        if _disagree(candidate, criterion):
            return False, False, True, -candidate.agreement
        return False, False, False, -candidate.information

    return sorted(range(len(candidates)) if among is None else among, key=key)


def _check_usable(
    candidates: list[Candidate], order: list[int], criterion: Criterion
) -> None:
    nearest = candidates[order[0]]
    if nearest.mixture is None:
        failures = "; ".join(f"{c.configuration}: {c.error}" for c in candidates)
        raise ValueError(f"All {len(candidates)} candidates failed: {failures}.")
    check_budget(nearest, criterion)


def check_budget(nearest: Candidate, criterion: Criterion) -> None:
    """Refuse a teacher that costs too much, and say what to relax.

    Parameters
    ----------
    nearest : Candidate
        That with the least energy, as a share of its budget.
    criterion : Criterion
        Holds the budget.

    Raises
    ------
    ValueError
        If the energy is above the budget.
    """
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
        message += "out: " + "; ".join(f"{c.configuration}: {c.error}" for c in failed)
        warnings.warn(message, FitFailedWarning, stacklevel=_USER)
    if interrupted:
        done = sum(c.error != _INTERRUPTED for c in candidates)
        message = f"The search was interrupted: {best.configuration} is the best of "
        message += f"the {done} candidates done out of {len(candidates)}."
        warnings.warn(message, InterruptedFitWarning, stacklevel=_USER)
    if _disagree(best, criterion):
        warnings.warn(_unstable(best, criterion), stacklevel=_USER)


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
