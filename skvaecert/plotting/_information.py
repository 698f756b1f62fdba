"""Information of drawn codes, for one or more models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert.plotting._style import COLORS, axes_for, legend_above, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from skvaecert.diagnosis import Diagnosis

__all__ = ["InformationBracketDisplay"]

_STATE_WORDS = {
    "informative": "informative",
    "collapsed": "collapsed",
    "ignored": "ignored by the decoder",
    "undecided": "undecided",
}
_STATE_COLORS = dict(zip(_STATE_WORDS, (*COLORS[2:4], COLORS[1], "0.6"), strict=True))
_BAR_HEIGHT = 0.4
# A white background, since the dashed line runs through labels on a short axis.
_LABEL_STYLE: dict[str, Any] = {
    "va": "bottom",
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1},
}


class InformationBracketDisplay:
    """Information of a drawn code about its sample: one bar per model, with its state.

    Each bar is full up to the lower bound and hatched from there to the upper bound.
    The information I(i; z) of drawn codes lies in the hatched part, which may be as
    narrow as a line. The dashed line is the value below which information counts as
    negligible. The stroke at the right is the most that codes can carry about these
    samples, which is the entropy of their weights.

    Parameters
    ----------
    names : sequence of str
        Names of the models, from top to bottom.
    state : sequence of {"informative", "collapsed", "ignored", "undecided"}
        States of the models, as in :class:`skvaecert.diagnosis.Diagnosis`.
    low, high : array-like of shape (n_models,)
        Bounds on I(i; z) in nats; nan for a model without standard deviations.
    limit : array-like of shape (n_models,)
        The largest possible I(i; z) in nats, log(n_samples) for equal weights; nan if
        the bounds are nan.
    negligible : float, default=0.05
        Information in nats that counts as negligible.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the bars.
    figure_ : matplotlib Figure
        Figure containing the bars.
    bars_ : matplotlib BarContainer
        The full bars, from 0 to `low`.
    open_bars_ : matplotlib BarContainer
        The hatched bars, from `low` to `high`.
    labels_ : list of matplotlib Text
        State and bounds of each model.
    negligible_ : matplotlib Line2D
        The dashed line.
    limits_ : matplotlib Line2D
        The strokes.

    Raises
    ------
    ValueError
        If there are no models, or a state is not one of these options.

    See Also
    --------
    skvaecert.diagnose : Computes the values.
    skvaecert.information.code_information : Computes the bounds.

    References
    ----------
    Theory section 16.

    Examples
    --------
    >>> from skvaecert.plotting import InformationBracketDisplay
    >>> display = InformationBracketDisplay(
    ...     names=["plain", "kl_weight=8"], state=["informative", "collapsed"],
    ...     low=[2.98, 0], high=[3.01, 0.00023], limit=[6.1, 6.1]).plot()
    >>> for label in display.labels_:
    ...     print(label.get_text())
    informative: 2.98 to 3.01 nats
    collapsed: at most 0.0003 nats
    """

    def __init__(
        self,
        *,
        names: Sequence[str],
        state: Sequence[Literal["informative", "collapsed", "ignored", "undecided"]],
        low: ArrayLike,
        high: ArrayLike,
        limit: ArrayLike,
        negligible: float = 0.05,
    ) -> None:
        self.names = [str(name) for name in names]
        self.state = list(state)
        self.low = np.asarray(low, dtype=np.float64)
        self.high = np.asarray(high, dtype=np.float64)
        self.limit = np.asarray(limit, dtype=np.float64)
        self.negligible = negligible
        if not self.names:
            raise ValueError("names must contain at least one model, got none.")
        for one in self.state:
            if one not in _STATE_WORDS:
                raise ValueError(
                    f"state must contain only {', '.join(_STATE_WORDS)}, got {one}."
                )

    @classmethod
    def from_diagnoses(cls, diagnoses: Mapping[str, Diagnosis], **kwargs: Any) -> Self:
        """Draw diagnoses.

        Parameters
        ----------
        diagnoses : mapping of str to Diagnosis
            Results of :func:`skvaecert.diagnose`, by the name of the model. The dashed
            line is that of the first diagnosis.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        InformationBracketDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If there are no diagnoses.
        """
        if not diagnoses:
            raise ValueError("diagnoses must contain at least one diagnosis, got none.")
        every = list(diagnoses.values())
        state: list[Any] = [one.state for one in every]
        low, high, limit = np.transpose([_bounds(one) for one in every])
        display = cls(
            names=list(diagnoses),
            state=state,
            low=low,
            high=high,
            limit=limit,
            negligible=every[0].negligible,
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
        **kwargs: Any,
    ) -> Self:
        """Diagnose samples and draw the result.

        Parameters
        ----------
        estimator : CollapseCertifier
            Fitted.
        X : array-like of shape (n_samples, n_features)
            Samples.
        name : str or None, default=None
            Label of the bar. If None, it is the class of the encoder.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Teacher's posteriors of `X`. If None, the fitted teacher computes them.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        InformationBracketDisplay
            Object that stores the computed values.

        Raises
        ------
        ValueError
            If `estimator` is of another class or not fitted.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "diagnose"):
            raise ValueError(
                "estimator must be a CollapseCertifier, which has diagnose, got "
                f"{type(estimator).__name__}. For arrays, use skvaecert.diagnose and "
                "from_diagnoses."
            )
        name = type(estimator.estimator_).__name__ if name is None else name
        found = estimator.diagnose(X, teacher_proba=teacher_proba)
        return cls.from_diagnoses({name: found}, **kwargs)

    def plot(self, ax: Axes | None = None, **bar_kwargs: Any) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes object to plot on. If None, a new figure with a title is created.
        **bar_kwargs : dict
            Keyword arguments to be passed to matplotlib's `barh` for the full bars.

        Returns
        -------
        InformationBracketDisplay
            Object that stores the computed values.
        """
        ax = axes_for(ax, self._title, (6.4, 2.1 + 0.7 * len(self.names)))
        places = -np.arange(len(self.names), dtype=np.float64)
        self._draw_bars(ax, places, bar_kwargs)
        self._draw_lines(ax, places)
        self.labels_ = [
            ax.text(
                0.015 * self._right_end,
                place + 0.65 * _BAR_HEIGHT,
                text,
                **_LABEL_STYLE,
            )
            for place, text in zip(places, self._labels, strict=True)
        ]
        ax.set_yticks(places, [plain_text(name) for name in self.names])
        # With room for labels above the bars, and left of 0 for the edge of a bar of
        # width 0.
        ax.set(
            xlabel="information of a drawn code about its sample (nats)",
            xlim=(-0.01 * self._right_end, 1.02 * self._right_end),
            ylim=(0.5 - len(self.names), 0.75),
        )
        legend_above(ax, markerscale=0.6)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_bars(
        self, ax: Axes, places: NDArray[np.floating], bar_kwargs: dict[str, Any]
    ) -> None:
        colors = [_STATE_COLORS[one] for one in self.state]
        # An edge makes bars visible that are too short.
        look: dict[str, Any] = {
            "height": _BAR_HEIGHT,
            "edgecolor": colors,
            "linewidth": 2,
        }
        full = {"color": colors} | bar_kwargs
        self.bars_ = ax.barh(places, self.low, **look | full)
        self.open_bars_ = ax.barh(
            places,
            self.high - self.low,
            left=self.low,
            facecolor="none",
            hatch="////",
            **look,
        )

    def _draw_lines(self, ax: Axes, places: NDArray[np.floating]) -> None:
        self.negligible_ = ax.axvline(
            self.negligible,
            color="0.1",
            linestyle="--",
            linewidth=1,
            label=f"negligible: {self.negligible:.3g} nats",
        )
        look: dict[str, Any] = {"marker": "|", "markersize": 20, "markeredgewidth": 2}
        (self.limits_,) = ax.plot(
            self.limit,
            places,
            color="0.1",
            linestyle="none",
            label="the largest possible on these samples",
            **look,
        )

    @property
    def _title(self) -> str:
        n_models = len(self.names)
        if n_models == 1:
            return f"{plain_text(self.names[0])}: {_STATE_WORDS[self.state[0]]}"
        n_collapsed = self.state.count("collapsed")
        verb = "has" if n_collapsed == 1 else "have"
        return f"{n_collapsed} of {n_models} models {verb} collapsed"

    @property
    def _right_end(self) -> float:
        """The right end of the axis."""
        known = [self.negligible, *self.high, *self.limit]
        return float(np.nanmax(known))

    @property
    def _labels(self) -> list[str]:
        ends = zip(self.state, self.low, self.high, strict=True)
        return [
            # For a collapsed code, the upper bound says all.
            f"{_STATE_WORDS[state]}: "
            f"{_bounds_in_words(0 if state == 'collapsed' else low, high)}"
            for state, low, high in ends
        ]


def _bounds(diagnosis: Diagnosis) -> tuple[float, float, float]:
    found = diagnosis.information
    return (np.nan,) * 3 if found is None else (found.low, found.high, found.limit)


def _bounds_in_words(low: float, high: float) -> str:
    """Return the bounds in words, rounded outwards so that they still hold."""
    if np.isnan(low):
        return "no standard deviations to draw codes with"
    # Small bounds get as many digits as they need to differ from 0.
    digits = 2 if high >= 0.01 or high == 0 else int(np.ceil(-np.log10(high)))
    step = 10.0**-digits
    lower, upper = step * np.floor(low / step), step * np.ceil(high / step)
    if lower == 0:
        return f"at most {upper:.{digits}f} nats"
    return f"{lower:.{digits}f} to {upper:.{digits}f} nats"
