"""The bracket of information in drawn codes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert._certificate.certificate import Certificate
from skvaecert.plotting._style import axes_for, legend_above, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["InformationBracketDisplay"]


class InformationBracketDisplay:
    """Information in drawn codes: a bar per model, from lower to upper bound.

    The information I(x; z) of codes drawn from q(z|x) lies in the bar, which reaches
    from the sampled margin to the information bound. The whisker at its left end is the
    interval over draws. The diamond is the margin of the means, without the noise of
    the posterior. The vertical stroke is the teacher information, which no margin can
    exceed.

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
        Of the means, nats; nan or None where it is unknown.
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
    skvaecert.CollapseCertifier.certify : ``kind="sampled"`` computes the values.

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
            Passed to :meth:`plot`.

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
        every = list(sampled.values())
        margins = {name: one.margin for name, one in (mean or {}).items()}
        display = cls(
            names=list(sampled),
            sampled_margin=[one.margin for one in every],
            margin_low=[one.margin_low for one in every],
            margin_high=[one.margin_high for one in every],
            information_bound=np.array([one.information_bound for one in every]),
            teacher_information=[one.teacher_information for one in every],
            margin=[margins.get(name, np.nan) for name in sampled],
            confidence=every[0].confidence or np.nan,
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
        """Certify samples and draw the bracket.

        Parameters
        ----------
        estimator : CollapseCertifier
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Samples that were not in `fit`.
        name : str or None, default=None
            Label of the bar; the class of the encoder when None.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        n_draws : int, default=8
            As in :meth:`skvaecert.CollapseCertifier.certify`.
        confidence : float, default=0.95
            Of the interval.
        **kwargs : dict
            Passed to :meth:`plot`.

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
        name = type(estimator.estimator_).__name__ if name is None else name
        mean = estimator.certify(X, teacher_proba=teacher_proba)
        sampled = estimator.certify(
            X,
            kind="sampled",
            teacher_proba=teacher_proba,
            n_draws=n_draws,
            confidence=confidence,
        )
        return cls.from_certificates({name: sampled}, {name: mean}, **kwargs)

    def plot(self, ax: "Axes | None" = None, **bar_kwargs: Any) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **bar_kwargs : dict
            Passed to matplotlib's `barh`.

        Returns
        -------
        InformationBracketDisplay
            This display.
        """
        ax = axes_for(ax, (6.4, 2.2 + 0.6 * len(self.names)))
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
        ax.set_yticks(places, [plain_text(name) for name in self.names])
        ax.set(xlabel="nats", ylim=(0.6 - len(self.names), 0.6))
        legend_above(ax, labelspacing=0.7)
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


def _check_kind(kind: str, certificates: Mapping[str, Certificate]) -> None:
    for name, one in certificates.items():
        if one.kind != kind:
            raise ValueError(
                f'{kind} must hold certificates of kind="{kind}", got '
                f'kind="{one.kind}" for {name!r}.'
            )
