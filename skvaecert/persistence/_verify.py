"""Recompute the certificate in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert.exceptions import InvalidFileError
from skvaecert.information import InformationBracket
from skvaecert.persistence._objects import Modules
from skvaecert.persistence._save import Path, load, naming

__all__ = ["Verification", "verify"]

# For all values. Margins have an absolute tolerance too.
_RELATIVE_TOLERANCE = 1e-6
_MARGINS = ("margin", "margin_low", "margin_high", "alignment_loss")


@dataclass(frozen=True)
class Verification:
    """Comparison of a saved certificate with that of the saved model on samples.

    Attributes
    ----------
    stored : Certificate
        The certificate in the file.
    recomputed : Certificate or None
        The recomputed certificate. None if the samples are not those of the fit: the
        stored certificate says nothing about other samples.

    See Also
    --------
    verify : Makes this comparison.
    """

    stored: Certificate
    recomputed: Certificate | None

    @property
    def same_samples(self) -> bool:
        """Whether the samples, and posteriors if passed, have the stored hash.

        Returns
        -------
        bool
            True if they have it.
        """
        return self.recomputed is not None

    @property
    def differences(self) -> tuple[str, ...]:
        """Names of the values in which the two certificates differ.

        Margins and the alignment loss may differ by the recomputed tolerance, but by no
        more than the teacher information. Other values may differ by 1e-6 of their
        size.

        Returns
        -------
        tuple of str
            Empty if the certificates agree, or if none was recomputed.
        """
        if self.recomputed is None:
            return ()
        fields = [field.name for field in dataclasses.fields(Certificate)]
        return tuple(name for name in fields if not self._agrees_in(name))

    @property
    def agrees(self) -> bool | None:
        """Whether the two certificates agree.

        Returns
        -------
        bool or None
            None on other samples, which say nothing about the model.
        """
        return None if self.recomputed is None else not self.differences

    @property
    def confirmed(self) -> bool:
        """Whether the samples are those of the certificate and the values agree.

        Returns
        -------
        bool
            True only if both hold.
        """
        return self.agrees is True

    def __str__(self) -> str:
        if self.recomputed is None:
            return (
                "Not confirmed: these samples do not have the hash in the file, and "
                "the certificate says nothing about other samples. Pass all samples of "
                "the fit in the same order, and its teacher_proba if there was one."
            )
        if self.agrees:
            return (
                "Confirmed: on these samples, those of the certificate, the model has "
                f'the verdict "{self.stored.verdict}" and the margin '
                f"{self.stored.margin:.6g} nats, as the certificate says."
            )
        listed = "; ".join(map(self._difference, self.differences))
        return f"Not confirmed: on the samples of the certificate, {listed}."

    def _difference(self, name: str) -> str:
        stored, recomputed = getattr(self.stored, name), getattr(self.recomputed, name)
        return f"{name} is stored as {stored!r} and recomputed as {recomputed!r}"

    def _agrees_in(self, name: str) -> bool:
        stored, recomputed = getattr(self.stored, name), getattr(self.recomputed, name)
        if isinstance(stored, InformationBracket) and recomputed is not None:
            pairs = zip(vars(stored).values(), vars(recomputed).values(), strict=True)
            return all(_are_close(*pair, _RELATIVE_TOLERANCE) for pair in pairs)
        return _are_close(stored, recomputed, self._slack.get(name, 0.0))

    @property
    def _slack(self) -> dict[str, float]:
        """Absolute tolerances, in addition to the relative one."""
        assert self.recomputed is not None
        information = self.recomputed.teacher_information
        # A forged model can have a huge tolerance, with which any margin would agree.
        slack = min(self.recomputed.tolerance, information)
        share = slack / information if information else 0.0
        return dict.fromkeys(_MARGINS, slack) | {"relative_margin": share}


def _are_close(stored: Any, recomputed: Any, slack: float) -> bool:
    if not (isinstance(stored, float) and isinstance(recomputed, float)):
        return bool(stored == recomputed)
    both_nan = math.isnan(stored) and math.isnan(recomputed)
    return both_nan or math.isclose(
        stored, recomputed, rel_tol=_RELATIVE_TOLERANCE, abs_tol=slack
    )


def verify(
    path: Path,
    X: ArrayLike,
    *,
    teacher_proba: ArrayLike | None = None,
    estimator: Any = None,
    modules: Modules | None = None,
) -> Verification:
    """Load a certifier and recompute its training certificate.

    Parameters
    ----------
    path : str or path
        File with a :class:`skvaecert.CollapseCertifier`.
    X : array-like of shape (n_samples, n_features)
        All samples of its `fit`, in the same order. If the witness was fitted, the
        certificate uses one half of them.
    teacher_proba : array-like of shape (n_samples, n_components), default=None
        Teacher's posteriors that were passed to `fit`, if there were any.
    estimator : estimator or None, default=None
        As in :func:`load`.
    modules : dict or None, default=None
        As in :func:`load`.

    Returns
    -------
    Verification
        The comparison. It prints as a sentence.

    Raises
    ------
    InvalidFileError
        If the file is not valid or contains no certifier.
    ValueError
        If `estimator` or `modules` are not those that the file needs.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> from skvaecert.persistence import save, verify
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(certifier, f"{folder}/iris.safetensors")
    ...     verification = verify(f"{folder}/iris.safetensors", X)
    >>> verification.confirmed
    True
    """
    certifier = load(path, estimator=estimator, modules=modules)
    if not isinstance(certifier, CollapseCertifier):
        raise InvalidFileError(
            f"{os.fspath(path)} must contain a CollapseCertifier to be verified, got a "
            f"{type(certifier).__name__}, which has no certificate."
        )
    # If you passed only a file, an error on the samples of its fit is the file's fault.
    is_theirs = estimator is None and not modules
    with naming(path) if is_theirs else contextlib.nullcontext():
        recomputed = certifier.__recertify__(X, teacher_proba)
    return Verification(certifier.certificate_, recomputed)
