"""Displays: numbers in, picture out. matplotlib is imported when something is drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate import Certificate
from skvaecert._row_displays import (
    ContributionDisplay,
    LatentMapDisplay,
    ReconstructionDisplay,
    posterior_of,
)
from skvaecert.forecast import ForecastCurve
from skvaecert.metrics import (
    collapse_margin,
    margin_energy_path,
    teacher_information,
)
from skvaecert.model_selection import LOWEST_SCORE
from skvaecert.simplex import Floats, witness_log_proba

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ContributionDisplay",
    "ForecastDisplay",
    "InformationBracketDisplay",
    "LatentMapDisplay",
    "MarginEnergyDisplay",
    "MarginHistoryDisplay",
    "ParetoDisplay",
    "ReconstructionDisplay",
    "TeacherSearchDisplay",
]


class MarginHistoryDisplay:
    """Margin after each epoch, between 0 and the teacher information.

    Above the zero line the encoder mean cannot be constant; the line at the teacher
    information is the most that can be reached. A dotted vertical line marks every
    change of the weights, where a warm start began.

    Parameters
    ----------
    epoch : array-like of shape (n_epochs,)
        Numbers of the epochs.
    margin : array-like of shape (n_epochs,)
        Margin after each epoch, nats.
    teacher_information : array-like of shape (n_epochs,)
        Teacher information on the rows of the margin, nats.
    changes : array-like of shape (n_changes,), default=()
        Epochs after which weights were changed.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Line2D
        The curve.

    See Also
    --------
    CertifiedVAE : Its `history_` holds the numbers.

    Examples
    --------
    >>> from skvaecert.plotting import MarginHistoryDisplay
    >>> display = MarginHistoryDisplay(
    ...     epoch=[1, 2, 3], margin=[-0.1, 0.5, 0.9], teacher_information=[1, 1, 1])
    >>> display.plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(
        self,
        *,
        epoch: ArrayLike,
        margin: ArrayLike,
        teacher_information: ArrayLike,
        changes: ArrayLike = (),
    ) -> None:
        self.epoch = np.asarray(epoch)
        self.margin = np.asarray(margin)
        self.teacher_information = np.asarray(teacher_information)
        self.changes = np.asarray(changes)

    @classmethod
    def from_history(
        cls, history: Sequence[Mapping[str, float]], **kwargs: Any
    ) -> Self:
        """Draw a history, as :class:`CertifiedVAE` keeps it in `history_`.

        Parameters
        ----------
        history : sequence of dict
            One an epoch, with "epoch", "margin", "teacher_information", "kl_weight"
            and "alignment_weight".
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        MarginHistoryDisplay
            Drawn.
        """
        weights = [(row["kl_weight"], row["alignment_weight"]) for row in history]
        pairs = zip(history, weights, weights[1:], strict=False)
        display = cls(
            epoch=[row["epoch"] for row in history],
            margin=[row["margin"] for row in history],
            teacher_information=[row["teacher_information"] for row in history],
            changes=[row["epoch"] for row, old, new in pairs if old != new],
        )
        return display.plot(**kwargs)

    @classmethod
    def from_estimator(cls, estimator: Any, **kwargs: Any) -> Self:
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted; of a certifier, the encoder's history is drawn.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        MarginHistoryDisplay
            Drawn.
        """
        check_is_fitted(estimator)
        encoder = getattr(estimator, "estimator_", estimator)
        if not hasattr(encoder, "history_"):
            raise ValueError(
                "estimator must have a history_ of its training, as CertifiedVAE has, "
                f"got {type(encoder).__name__}."
            )
        return cls.from_history(encoder.history_, **kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Handed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginHistoryDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        for change in self.changes:
            ax.axvline(change + 0.5, color="0.6", linestyle=":", linewidth=1)
        ax.axhline(0, color="0.2", linewidth=1)
        ax.plot(
            self.epoch,
            self.teacher_information,
            color="0.4",
            linestyle="--",
            label="teacher information: the most there is",
        )
        (self.line_,) = ax.plot(
            self.epoch, self.margin, **{"label": "margin"} | line_kwargs
        )
        ax.set(xlabel="epoch", ylabel="margin (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self


class MarginEnergyDisplay:
    """Margin against energy: the scaled analytic code, and where a model stands.

    The curve is that of the codes lambda z*, which use the dimensions that the witness
    sees and no others. The dot is the model; the ring at the same height counts only
    what it spends on those dimensions, and what lies between the two goes into the
    free ones. Left of the curve a ring is cheaper than the scaled analytic code, which
    is possible: that is not the cheapest code for its margin.

    Parameters
    ----------
    path_energy : array-like of shape (n_points,)
        Energy along the path, nats a sample.
    path_margin : array-like of shape (n_points,)
        Margin along the path, nats.
    energy : float
        Of the model's means, sum_i p_i ||mu_i||^2 / 2, nats a sample.
    protected_energy : float
        The part of it in the dimensions that the witness sees.
    margin : float
        Of the model, nats.
    teacher_information : float
        I_T on the same rows, nats.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure containing the curve.
    line_ : matplotlib Line2D
        The curve.
    point_ : matplotlib Line2D
        The model, with all of its energy.
    ring_ : matplotlib Line2D
        The model, with the part that the witness sees.

    See Also
    --------
    skvaecert.metrics.margin_energy_path : Gives the numbers of the curve.

    References
    ----------
    Theory section 3; arXiv:2605.18224.

    Examples
    --------
    >>> from skvaecert.plotting import MarginEnergyDisplay
    >>> display = MarginEnergyDisplay(
    ...     path_energy=[0, 0.15, 0.6], path_margin=[0, 0.3, 0.37], energy=0.4,
    ...     protected_energy=0.3, margin=0.3, teacher_information=0.37)
    >>> display.plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(
        self,
        *,
        path_energy: ArrayLike,
        path_margin: ArrayLike,
        energy: float,
        protected_energy: float,
        margin: float,
        teacher_information: float,
    ) -> None:
        self.path_energy = np.asarray(path_energy)
        self.path_margin = np.asarray(path_margin)
        self.energy = energy
        self.protected_energy = protected_energy
        self.margin = margin
        self.teacher_information = teacher_information

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        teacher_proba: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw where a fitted estimator stands on some rows.

        Parameters
        ----------
        estimator : CertifiedVAE or CollapseCertifier
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Rows.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        MarginEnergyDisplay
            Drawn.

        Raises
        ------
        ValueError
            If the estimator is not fitted or has no witness, or if rows or posteriors
            are not valid.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "witness_scale_"):
            raise ValueError(
                "estimator must be a CertifiedVAE or a CollapseCertifier, which have a "
                f"witness, got {type(estimator).__name__}."
            )
        mean = np.asarray(estimator.transform(X), dtype=np.float64)
        proba = posterior_of(estimator, X, teacher_proba, len(mean))
        scale = estimator.witness_scale_
        log_q = witness_log_proba(mean, estimator.vertices_, scale)
        path = margin_energy_path(proba, scale)
        display = cls(
            path_energy=path.energy,
            path_margin=path.margin,
            energy=_energy(mean),
            # S^T S is K / (K - 1) times the projection (theory section 1).
            protected_energy=(1 - 1 / proba.shape[1])
            * _energy(mean @ estimator.vertices_.T),
            margin=collapse_margin(proba, log_q),
            teacher_information=teacher_information(proba),
        )
        return display.plot(**kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw the curve and the model.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Handed to matplotlib's `plot` for the curve.

        Returns
        -------
        MarginEnergyDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        most: dict[str, Any] = {
            "linestyle": "--",
            "label": "teacher information: the most there is",
        }
        ax.axhline(self.teacher_information, color="0.4", **most)
        ax.axhline(0, color="0.2", linewidth=1, label="the best constant code")
        (self.line_,) = ax.plot(
            self.path_energy,
            self.path_margin,
            **{"label": "analytic code, scaled from 0 to 1"} | line_kwargs,
        )
        self._plot_model(ax)
        ax.legend(frameon=False, fontsize="small")
        ax.set(xlabel="energy (nats a sample)", ylabel="margin (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_model(self, ax: "Axes") -> None:
        both = [self.protected_energy, self.energy]
        ax.plot(both, [self.margin] * 2, color="C3", linewidth=1)
        look: dict[str, Any] = {"color": "C3", "marker": "o", "linestyle": "none"}
        (self.ring_,) = ax.plot(
            both[:1],
            [self.margin],
            **look | {"fillstyle": "none", "markersize": 9},
            label="this model, in the dimensions of the witness",
        )
        (self.point_,) = ax.plot(
            both[1:], [self.margin], **look, label="this model, in all dimensions"
        )


class InformationBracketDisplay:
    """How many nats drawn codes carry: a bar a model, from lower to upper bound.

    The information I(x; z) of codes drawn from q(z|x) lies in the bar, which reaches
    from the sampled margin to the information bound; the whisker at its left end is the
    interval over draws. The diamond is the margin of the means, without the posterior's
    noise, and the vertical stroke the teacher information, which no margin can pass.

    Parameters
    ----------
    names : sequence of str
        Of the models, from top to bottom.
    sampled_margin, margin_low, margin_high : array-like of shape (n_models,)
        Lower bound on I(x; z) and its Monte-Carlo interval, nats.
    information_bound : array-like of shape (n_models,)
        Upper bound, nats.
    teacher_information : array-like of shape (n_models,)
        I_T, nats.
    margin : array-like of shape (n_models,), default=None
        Of the means, nats; nan or None where it is not known.
    confidence : float, default=0.95
        Of the interval.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure containing the bars.
    bars_ : matplotlib BarContainer
        The bars.
    whiskers_ : matplotlib ErrorbarContainer
        The intervals.
    margins_, information_ : matplotlib Line2D
        Diamonds and strokes.

    See Also
    --------
    skvaecert.CollapseCertifier.certify : ``kind="sampled"`` gives the numbers.

    References
    ----------
    Theory section 6.

    Examples
    --------
    >>> from skvaecert.plotting import InformationBracketDisplay
    >>> display = InformationBracketDisplay(
    ...     names=["aligned"], sampled_margin=[1.1], margin_low=[1.0],
    ...     margin_high=[1.2], information_bound=[4.0], teacher_information=[2.0],
    ...     margin=[1.7]).plot()
    >>> display.ax_.get_xlabel()
    'nats'
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        sampled_margin: ArrayLike,
        margin_low: ArrayLike,
        margin_high: ArrayLike,
        information_bound: ArrayLike,
        teacher_information: ArrayLike,
        margin: ArrayLike | None = None,
        confidence: float = 0.95,
    ) -> None:
        self.names = [str(name) for name in names]
        self.sampled_margin = np.asarray(sampled_margin, dtype=np.float64)
        self.margin_low = np.asarray(margin_low, dtype=np.float64)
        self.margin_high = np.asarray(margin_high, dtype=np.float64)
        self.information_bound = np.asarray(information_bound, dtype=np.float64)
        self.teacher_information = np.asarray(teacher_information, dtype=np.float64)
        known = np.full(len(self.names), np.nan) if margin is None else margin
        self.margin = np.asarray(known, dtype=np.float64)
        self.confidence = confidence

    @classmethod
    def from_certificates(
        cls,
        sampled: Mapping[str, Certificate],
        mean: Mapping[str, Certificate] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw certificates.

        Parameters
        ----------
        sampled : mapping of str to Certificate
            Of ``kind="sampled"``, by the name of the model.
        mean : mapping of str to Certificate, default=None
            Of ``kind="mean"``, for all or some of the models.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        InformationBracketDisplay
            Drawn.

        Raises
        ------
        ValueError
            If there are none, or one is of another kind.
        """
        _check_kind("sampled", sampled)
        _check_kind("mean", mean or {})
        if not sampled:
            raise ValueError("sampled must hold at least one certificate, got none.")
        rows = sampled.values()
        margins = {name: one.margin for name, one in (mean or {}).items()}
        display = cls(
            names=list(sampled),
            sampled_margin=[one.margin for one in rows],
            margin_low=[one.margin_low for one in rows],
            margin_high=[one.margin_high for one in rows],
            information_bound=np.array([one.information_bound for one in rows]),
            teacher_information=[one.teacher_information for one in rows],
            margin=[margins.get(name, np.nan) for name in sampled],
            confidence=next(iter(rows)).confidence or np.nan,
        )
        return display.plot(**kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        name: str | None = None,
        teacher_proba: ArrayLike | None = None,
        n_draws: int = 8,
        confidence: float = 0.95,
        **kwargs: Any,
    ) -> Self:
        """Certify rows and draw the bracket.

        Parameters
        ----------
        estimator : CollapseCertifier
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Rows that were not in `fit`.
        name : str or None, default=None
            What the bar is called; the class of the encoder when None.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        n_draws : int, default=8
            As in :meth:`skvaecert.CollapseCertifier.certify`.
        confidence : float, default=0.95
            Of the interval.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        InformationBracketDisplay
            Drawn.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "certify"):
            raise ValueError(
                "estimator must be a CollapseCertifier, which has certify, got "
                f"{type(estimator).__name__}."
            )
        given: dict[str, Any] = {"teacher_proba": teacher_proba}
        drawn: dict[str, Any] = {"n_draws": n_draws, "confidence": confidence}
        name = type(estimator.estimator_).__name__ if name is None else name
        sampled = estimator.certify(X, kind="sampled", **given, **drawn)
        mean = estimator.certify(X, **given)
        return cls.from_certificates({name: sampled}, {name: mean}, **kwargs)

    def plot(self, ax: "Axes | None" = None, **bar_kwargs: Any) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **bar_kwargs : dict
            Handed to matplotlib's `barh`.

        Returns
        -------
        InformationBracketDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        size = 6.4, 2.2 + 0.6 * len(self.names)
        if ax is None:
            _, ax = plt.subplots(figsize=size, layout="constrained")
        places = -np.arange(len(self.names))
        ax.axvline(0, color="0.2", linewidth=1)
        look: dict[str, Any] = {"height": 0.5, "color": "#56B4E9", "edgecolor": "0.2"}
        self.bars_ = ax.barh(
            places,
            self.information_bound - self.sampled_margin,
            left=self.sampled_margin,
            **look | {"label": "I(x; z) of drawn codes lies in here"} | bar_kwargs,
        )
        self._draw_whiskers(ax, places)
        self._draw_marks(ax, places)
        ax.set_yticks(places, [name.replace("$", r"\$") for name in self.names])
        ax.set(xlabel="nats", ylim=(0.6 - len(self.names), 0.6))
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), frameon=False, labelspacing=0.7
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_whiskers(self, ax: "Axes", places: NDArray[np.integer]) -> None:
        sides = self.margin_low, self.margin_high
        self.whiskers_ = ax.errorbar(
            self.sampled_margin,
            places,
            xerr=np.abs(np.array(sides) - self.sampled_margin),
            fmt="none",
            ecolor="0.1",
            capsize=5,
            label=f"{100 * self.confidence:g} % interval of the lower end, over draws",
        )

    def _draw_marks(self, ax: "Axes", places: NDArray[np.integer]) -> None:
        look: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "0.1"}
        (self.margins_,) = ax.plot(
            self.margin,
            places,
            **look,
            marker="D",
            color="white",
            label="margin of the means",
        )
        (self.information_,) = ax.plot(
            self.teacher_information,
            places,
            **look,
            marker="|",
            markersize=16,
            markeredgewidth=2.5,
            label="teacher information",
        )


class TeacherSearchDisplay:
    """Information against energy, one dot a candidate of a search.

    A good teacher is high up, and not too far to the right. Colours tell how far
    restarts agree; hollow dots were left out, because they cost too much or because
    their restarts disagree. A ring marks the one that was chosen.

    Parameters
    ----------
    energy : array-like of shape (n_candidates,)
        Energy of the analytic code at witness scale 1, nats.
    information : array-like of shape (n_candidates,)
        Teacher information on rows held out, nats.
    agreement : array-like of shape (n_candidates,)
        Adjusted mutual information of restarts.
    usable : array-like of bool of shape (n_candidates,)
        Whether a candidate could be chosen.
    chosen : int
        Index of the one that was.
    label : str, default="chosen"
        What the legend calls it.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the dots.
    figure_ : matplotlib Figure
        Figure containing the dots.
    points_ : matplotlib PathCollection
        The dots that could be chosen.

    See Also
    --------
    GMMTeacher : Its `search_results_` holds the numbers.

    Examples
    --------
    >>> from skvaecert.plotting import TeacherSearchDisplay
    >>> display = TeacherSearchDisplay(
    ...     energy=[10, 20], information=[1.2, 1.9], agreement=[0.9, 0.8],
    ...     usable=[True, True], chosen=1)
    >>> display.plot().ax_.get_ylabel()
    'information on rows held out (nats)'
    """

    def __init__(
        self,
        *,
        energy: ArrayLike,
        information: ArrayLike,
        agreement: ArrayLike,
        usable: ArrayLike,
        chosen: int,
        label: str = "chosen",
    ) -> None:
        self.energy = np.asarray(energy)
        self.information = np.asarray(information)
        self.agreement = np.asarray(agreement)
        self.usable = np.asarray(usable, dtype=bool)
        self.chosen = chosen
        self.label = label

    @classmethod
    def from_estimator(cls, teacher: Any, **kwargs: Any) -> Self:
        """Draw the search of a fitted teacher.

        Parameters
        ----------
        teacher : GMMTeacher
            Fitted with a list for a parameter. Of a fitted CertifiedVAE or
            CollapseCertifier, the teacher in `teacher_` is taken.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        TeacherSearchDisplay
            Drawn.
        """
        check_is_fitted(teacher)
        teacher = getattr(teacher, "teacher_", teacher)
        results = getattr(teacher, "search_results_", None)
        if results is None:
            raise ValueError(
                "teacher must have searched, as GMMTeacher does with a list for "
                f"n_components, got {teacher!r}, which has no search_results_."
            )
        chosen = int(results["rank"].argmin())
        names = ("n_components", "pca_components", "covariance_type")
        values = (results[name][chosen] for name in names)
        display = cls(
            **{name: results[name] for name in ("energy", "information", "agreement")},
            usable=results["usable"],
            chosen=chosen,
            label="chosen: K = {}, {} principal components, {}".format(*values),
        )
        return display.plot(**kwargs)

    def plot(self, ax: "Axes | None" = None, **scatter_kwargs: Any) -> Self:
        """Draw the dots.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **scatter_kwargs : dict
            Handed to matplotlib's `scatter` for the dots.

        Returns
        -------
        TeacherSearchDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        x, y, usable = self.energy, self.information, self.usable
        look: dict[str, Any] = {"vmin": 0, "vmax": 1, "c": self.agreement[usable]}
        ax.scatter(x[~usable], y[~usable], facecolors="none", edgecolors="0.6")
        self.points_ = ax.scatter(x[usable], y[usable], **look | scatter_kwargs)
        ring: dict[str, Any] = {
            "facecolors": "none",
            "edgecolors": "C3",
            "linewidths": 2,
        }
        best = x[self.chosen], y[self.chosen]
        ax.scatter(*best, s=160, label=self.label, **ring)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        ax.figure.colorbar(self.points_, ax=ax, label="agreement of restarts")
        ax.set(
            xlabel="energy of the analytic code at scale 1 (nats)",
            ylabel="information on rows held out (nats)",
        )
        self.ax_, self.figure_ = ax, ax.figure
        return self


class ForecastDisplay:
    """Forecast margin and energy against alignment_weight / kl_weight.

    The margin, on the left, rises from that of a constant code to the teacher
    information; the energy, on the right and in another colour, is what the latent
    means pay for it. A dot on each marks the weights of the estimator, or those that
    ``alignment_weight="auto"`` needs for its target.

    Parameters
    ----------
    forecast : ForecastCurve
        From :meth:`skvaecert.CertifiedVAE.forecast`, with at least one finite ratio
        above 0; other ratios have no place on the logarithmic axis and are left out.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the margin.
    energy_ax_ : matplotlib Axes
        Axes with the energy, over the same ratios.
    figure_ : matplotlib Figure
        Figure containing both.
    margin_line_, energy_line_ : matplotlib Line2D
        The curves.
    point_ : matplotlib Line2D or None
        The dot on the margin; None where the weights have no place on the axis.

    See Also
    --------
    CertifiedVAE : Its `forecast` holds the numbers.

    Examples
    --------
    >>> from skvaecert.forecast import ForecastCurve
    >>> from skvaecert.plotting import ForecastDisplay
    >>> forecast = ForecastCurve(
    ...     ratio=[0.1, 1, 10], margin=[0.1, 0.6, 0.9], energy=[0.1, 0.8, 2.0],
    ...     teacher_information=1.0, operating_ratio=1, operating_margin=0.6,
    ...     operating_energy=0.8, target_margin=None)
    >>> ForecastDisplay(forecast).plot().ax_.get_ylabel()
    'forecast margin (nats)'
    """

    def __init__(self, forecast: ForecastCurve) -> None:
        self.forecast = forecast

    @classmethod
    def from_forecast(cls, forecast: ForecastCurve, **kwargs: Any) -> Self:
        """Draw a forecast.

        Parameters
        ----------
        forecast : ForecastCurve
            From :meth:`skvaecert.CertifiedVAE.forecast`.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ForecastDisplay
            Drawn.
        """
        return cls(forecast).plot(**kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        *,
        ratio: ArrayLike | None = None,
        teacher_proba: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Self:
        """Forecast and draw; an unfitted estimator stays unfitted.

        Parameters
        ----------
        estimator : CertifiedVAE
            Fitted or not.
        X : array-like of shape (n_samples, n_features)
            Rows.
        ratio : array-like of shape (n_ratios,), default=None
            As in :meth:`skvaecert.CertifiedVAE.forecast`.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ForecastDisplay
            Drawn.
        """
        forecast = estimator.forecast(X, ratio=ratio, teacher_proba=teacher_proba)
        return cls.from_forecast(forecast, **kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Handed to matplotlib's `plot` for the margin.

        Returns
        -------
        ForecastDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        self.ax_, self.energy_ax_, self.figure_ = ax, ax.twinx(), ax.figure
        ax.axhline(0, color="0.2", linewidth=1)
        information = self.forecast.teacher_information
        ax.axhline(
            information, color="0.4", linestyle="--", label="teacher information"
        )
        self._draw_curves(**line_kwargs)
        self._draw_point()
        ax.set(
            xscale="log",
            xlabel="alignment_weight / kl_weight",
            ylabel="forecast margin (nats)",
        )
        self.energy_ax_.set_ylabel("energy (nats)", color="C1")
        self.energy_ax_.tick_params(axis="y", colors="C1")
        # Both zeros at the same height.
        (low, high), most = ax.get_ylim(), self.energy_ax_.get_ylim()[1]
        self.energy_ax_.set_ylim(most * low / high, most)
        handles = [*ax.get_legend_handles_labels()[0], self.energy_line_]
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
        )
        return self

    def _draw_curves(self, **line_kwargs: Any) -> None:
        ratio, margin, energy = map(
            np.asarray,
            (self.forecast.ratio, self.forecast.margin, self.forecast.energy),
        )
        shown = (ratio > 0) & np.isfinite(ratio)
        (self.margin_line_,) = self.ax_.plot(
            ratio[shown],
            margin[shown],
            **{"label": "margin", "color": "C0"} | line_kwargs,
        )
        (self.energy_line_,) = self.energy_ax_.plot(
            ratio[shown], energy[shown], color="C1", label="energy"
        )

    def _draw_point(self) -> None:
        """Mark the weights, if they have a place on a logarithmic axis."""
        self.point_ = None
        forecast = self.forecast
        if not 0 < forecast.operating_ratio < np.inf:
            return
        label = f"these weights: ratio {forecast.operating_ratio:.3g}"
        if forecast.target_margin is not None:
            label = f"for a margin of {forecast.target_margin:.0%}: ratio "
            label += f"{forecast.operating_ratio:.3g}"
        self.ax_.axvline(forecast.operating_ratio, color="0.6", linestyle=":")
        dot: dict[str, Any] = {"marker": "o", "linestyle": "none"}
        (self.point_,) = self.ax_.plot(
            forecast.operating_ratio,
            forecast.operating_margin,
            **dot,
            color="C0",
            label=label,
        )
        self.energy_ax_.plot(
            forecast.operating_ratio, forecast.operating_energy, **dot, color="C1"
        )


def _check_kind(kind: str, certificates: Mapping[str, Certificate]) -> None:
    for name, one in certificates.items():
        if one.kind != kind:
            raise ValueError(
                f'{kind} must hold certificates of kind="{kind}", got '
                f'kind="{one.kind}" for {name!r}.'
            )


def _energy(codes: Floats) -> float:
    return float((codes**2).sum(axis=1).mean() / 2)


_SCORES = {
    "reconstruction": "reconstruction (minus the share of variance left unexplained)",
    "elbo": "ELBO (nats a sample)",
    "sampled_information": "information in drawn codes (nats, lower bound)",
}


class ParetoDisplay:
    """Margin against another score, one dot a candidate of a search.

    Both are better when they are greater. Filled dots are certified in every fold,
    hollow ones are not; a line joins those that no other beats in both scores, and a
    ring marks the one that was chosen.

    Parameters
    ----------
    score : array-like of shape (n_candidates,)
        Mean over folds, greater is better. Candidates without a finite value are left
        out.
    margin : array-like of shape (n_candidates,)
        Mean over folds, nats.
    certified : array-like of bool of shape (n_candidates,)
        Whether a candidate is certified in every fold.
    chosen : int, default=None
        Index of the candidate that was chosen; None for no ring.
    score_name : str, default="score"
        What the axis calls it.

    Attributes
    ----------
    front : ndarray of int of shape (n_front,)
        Indices of the candidates on the line, from left to right.
    ax_ : matplotlib Axes
        Axes with the dots.
    figure_ : matplotlib Figure
        Figure containing the dots.
    certified_points_, other_points_ : matplotlib Line2D
        The dots, filled and hollow.
    line_ : matplotlib Line2D
        The Pareto front.
    ring_ : matplotlib Line2D or None
        Around the chosen one.

    See Also
    --------
    skvaecert.model_selection.certificate_scorers : Scores a search for it.

    Examples
    --------
    >>> from skvaecert.plotting import ParetoDisplay
    >>> display = ParetoDisplay(
    ...     score=[-0.1, -0.2, -0.4, -0.5], margin=[-0.2, 0.7, 0.9, 0.8],
    ...     certified=[False, True, True, True], chosen=1)
    >>> display.front
    array([2, 1, 0])
    >>> display.plot().ax_.get_ylabel()
    'margin (nats)'
    """

    def __init__(
        self,
        *,
        score: ArrayLike,
        margin: ArrayLike,
        certified: ArrayLike,
        chosen: int | None = None,
        score_name: str = "score",
    ) -> None:
        self.score = np.asarray(score, dtype=np.float64)
        self.margin = np.asarray(margin, dtype=np.float64)
        self.certified = np.asarray(certified, dtype=bool)
        self.chosen = chosen
        self.score_name = score_name
        self.front = _pareto_front(self.score, self.margin)

    @classmethod
    def from_search(
        cls, search: Any, *, against: str = "reconstruction", **kwargs: Any
    ) -> Self:
        """Draw the candidates of a fitted search.

        Parameters
        ----------
        search : GridSearchCV or another search
            Fitted with ``scoring=certificate_scorers``, or with a dict that has the
            scores "margin", "certified" and that named by `against`.
        against : str, default="reconstruction"
            The score of the horizontal axis; "elbo" for another.
        **kwargs : dict
            Handed to :meth:`plot`.

        Returns
        -------
        ParetoDisplay
            Drawn.
        """
        check_is_fitted(search)
        names = against, "margin", "certified"
        score, margin, certified = (_mean_score(search, name) for name in names)
        display = cls(
            score=score,
            margin=margin,
            certified=certified == 1,
            chosen=getattr(search, "best_index_", None),
            score_name=_SCORES.get(against, against),
        )
        return display.plot(**kwargs)

    def plot(self, ax: "Axes | None" = None, **line_kwargs: Any) -> Self:
        """Draw dots, front and ring.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **line_kwargs : dict
            Handed to matplotlib's `plot` for the front.

        Returns
        -------
        ParetoDisplay
            This display.
        """
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        x, y, filled = self.score, self.margin, self.certified
        ax.axhline(0, color="0.2", linewidth=1, label="the best constant code")
        look: dict[str, Any] = {"color": "0.5", "linestyle": "--", "zorder": 1}
        look |= {"label": "not beaten in both"} | line_kwargs
        (self.line_,) = ax.plot(x[self.front], y[self.front], **look)
        dot: dict[str, Any] = {"color": "C0", "marker": "o", "linestyle": "none"}
        (self.certified_points_,) = ax.plot(
            x[filled], y[filled], **dot, label="certified in every fold"
        )
        (self.other_points_,) = ax.plot(
            x[~filled], y[~filled], **dot, fillstyle="none", label="not certified"
        )
        self.ring_ = None
        if self.chosen is not None:
            ring: dict[str, Any] = dot | {"color": "0.1", "fillstyle": "none"}
            best = [x[self.chosen]], [y[self.chosen]]
            (self.ring_,) = ax.plot(*best, **ring, markersize=14, label="chosen")
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
            fontsize="small",
        )
        ax.set(xlabel=self.score_name, ylabel="margin (nats)")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _mean_score(search: Any, name: str) -> Floats:
    """Return means over folds, NaN where a fit failed or a score had no value."""
    key = f"mean_test_{name}"
    if key not in search.cv_results_:
        raise ValueError(
            f"search must have the score {name!r}, got cv_results_ without {key!r}. "
            "Fit it with scoring=certificate_scorers."
        )
    scores = np.asarray(search.cv_results_[key], dtype=np.float64)
    # A single fold without a value shows in the mean of any number of folds.
    return np.where(scores > LOWEST_SCORE / 1e6, scores, np.nan)


def _pareto_front(score: Floats, margin: Floats) -> NDArray[np.intp]:
    """Return the candidates that no other beats in both, by rising score."""
    known = np.flatnonzero(np.isfinite(score) & np.isfinite(margin))
    # From the right: those that are higher than all to the right of them.
    order = known[np.lexsort((-margin[known], -score[known]))]
    before = np.maximum.accumulate(np.r_[-np.inf, margin[order]])[:-1]
    return order[margin[order] > before][::-1]
