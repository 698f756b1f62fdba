"""What drawn codes carry, model by model."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skvaecert.plotting._style import COLOURS, axes_for, legend_above, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from skvaecert.diagnosis import Diagnosis

__all__ = ["InformationBracketDisplay"]

_TOLD = {
    "informative": "informative",
    "collapsed": "collapsed",
    "ignored": "ignored by the decoder",
    "undecided": "undecided",
}
_STATE_COLOURS = dict(zip(_TOLD, (*COLOURS[2:4], COLOURS[1], "0.6"), strict=True))
_HEIGHT = 0.4
# On white, since the dashed line may run through it.
_LABEL: dict[str, Any] = {
    "va": "bottom",
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1},
}


class InformationBracketDisplay:
    """What a drawn code tells about its sample: a bar per model, and its state.

    The bar is full up to the lower bound and hatched from there to the upper bound: the
    information I(i; z) of drawn codes ends in the hatched part, which may be as narrow
    as a line. The dashed line is what counts as negligible. The stroke at the right is
    the most that codes can carry about these samples, the entropy of their weights.

    Parameters
    ----------
    names : sequence of str
        Of the models, from top to bottom.
    state : sequence of {"informative", "collapsed", "ignored", "undecided"}
        Of the models, as in :class:`skvaecert.diagnosis.Diagnosis`.
    low, high : array-like of shape (n_models,)
        Bounds on I(i; z), nats; nan for a model that has no standard deviations.
    limit : array-like of shape (n_models,)
        The largest possible I(i; z), log(n_samples) for equal weights, nats; nan where
        the bounds are.
    negligible : float, default=0.05
        Nats that count as none.

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
        If there are no models, or a state is another word.

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
        state: Sequence[str],
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
            raise ValueError("names must hold at least one model, got none.")
        for one in self.state:
            if one not in _TOLD:
                raise ValueError(f"state must hold only {', '.join(_TOLD)}, got {one}.")

    @classmethod
    def from_diagnoses(
        cls, diagnoses: "Mapping[str, Diagnosis]", **kwargs: Any
    ) -> Self:
        """Draw diagnoses.

        Parameters
        ----------
        diagnoses : mapping of str to Diagnosis
            Results of :func:`skvaecert.diagnose`, by the name of the model. The dashed
            line is that of the first.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        InformationBracketDisplay
            Drawn.

        Raises
        ------
        ValueError
            If there are none.
        """
        if not diagnoses:
            raise ValueError("diagnoses must hold at least one diagnosis, got none.")
        every = list(diagnoses.values())
        low, high, limit = np.transpose([_ends(one) for one in every])
        display = cls(
            names=list(diagnoses),
            state=[one.state for one in every],
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
            Label of the bar; the class of the encoder when None.
        teacher_proba : array-like of shape (n_samples, n_components), default=None
            Posteriors to use in place of the teacher's.
        **kwargs : dict
            Passed to :meth:`plot`.

        Returns
        -------
        InformationBracketDisplay
            Drawn.

        Raises
        ------
        ValueError
            If `estimator` is of another class or not fitted.
        """
        check_is_fitted(estimator)
        if not hasattr(estimator, "diagnose"):
            raise ValueError(
                "estimator must be a CollapseCertifier, which has diagnose, got "
                f"{type(estimator).__name__}. Of arrays, use skvaecert.diagnose and "
                "from_diagnoses."
            )
        name = type(estimator.estimator_).__name__ if name is None else name
        found = estimator.diagnose(X, teacher_proba=teacher_proba)
        return cls.from_diagnoses({name: found}, **kwargs)

    def plot(self, ax: "Axes | None" = None, **bar_kwargs: Any) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; new axes when None.
        **bar_kwargs : dict
            Passed to matplotlib's `barh`, for the full bars.

        Returns
        -------
        InformationBracketDisplay
            This display.
        """
        ax = axes_for(ax, (6.4, 1.8 + 0.7 * len(self.names)))
        places = -np.arange(len(self.names), dtype=np.float64)
        self._draw_bars(ax, places, bar_kwargs)
        self._draw_lines(ax, places)
        self.labels_ = [
            ax.text(0, place + 0.65 * _HEIGHT, text, **_LABEL)
            for place, text in zip(places, self._labels, strict=True)
        ]
        ax.set_yticks(places, [plain_text(name) for name in self.names])
        ax.set(
            xlabel="what a drawn code tells about its sample (nats)",
            xlim=(-0.01 * self._right, 1.02 * self._right),
            ylim=(0.5 - len(self.names), 0.75),
        )
        legend_above(ax, markerscale=0.6)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_bars(
        self, ax: "Axes", places: NDArray[np.floating], bar_kwargs: dict[str, Any]
    ) -> None:
        colours = [_STATE_COLOURS[one] for one in self.state]
        # An edge shows bars that are too short to be seen.
        look: dict[str, Any] = {"height": _HEIGHT, "edgecolor": colours, "linewidth": 2}
        full = {"color": colours} | bar_kwargs
        self.bars_ = ax.barh(places, self.low, **look | full)
        self.open_bars_ = ax.barh(
            places,
            self.high - self.low,
            left=self.low,
            facecolor="none",
            hatch="////",
            **look,
        )

    def _draw_lines(self, ax: "Axes", places: NDArray[np.floating]) -> None:
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
            label="the most that these samples allow",
            **look,
        )

    @property
    def _right(self) -> float:
        """Where the axis ends."""
        known = [self.negligible, *self.high, *self.limit]
        return float(np.nanmax(known))

    @property
    def _labels(self) -> list[str]:
        ends = zip(self.state, self.low, self.high, strict=True)
        return [
            # Of a collapsed code the upper bound says all.
            f"{_TOLD[state]}: {_range(0 if state == 'collapsed' else low, high)}"
            for state, low, high in ends
        ]


def _ends(diagnosis: "Diagnosis") -> tuple[float, float, float]:
    found = diagnosis.information
    return (np.nan,) * 3 if found is None else (found.low, found.high, found.limit)


def _range(low: float, high: float) -> str:
    """Say the bounds, rounded outwards: no more than was shown."""
    if np.isnan(low):
        return "no standard deviations to draw codes with"
    digits = 2 if high >= 0.01 or high == 0 else int(np.ceil(-np.log10(high)))
    step = 10.0**-digits
    lower, upper = step * np.floor(low / step), step * np.ceil(high / step)
    if lower == 0:
        return f"at most {upper:.{digits}f} nats"
    return f"{lower:.{digits}f} to {upper:.{digits}f} nats"
