"""What the estimators warn of and raise, beyond scikit-learn's own errors."""

__all__ = [
    "InconsistentVersionWarning",
    "InvalidFileError",
    "KnownSamplesWarning",
    "NonFiniteLossError",
    "NotCertifiedWarning",
    "NotSavedWarning",
    "UninformativeTeacherWarning",
    "UnreachedMarginWarning",
    "UnstableEncoderWarning",
    "UnstableTeacherWarning",
]


class UninformativeTeacherWarning(UserWarning):
    """The teacher hardly tells samples apart, so that no margin can be large.

    Raised by :meth:`GMMTeacher.fit` when the teacher information on the training
    samples, the maximum of any margin, is close to 0.
    """


class UnstableTeacherWarning(UserWarning):
    """Restarts of the mixture find different groups, so the groups may be noise.

    Raised by :meth:`GMMTeacher.fit` when no candidate of a search reaches
    `min_agreement`. Certificates remain valid, but the groups may be due to chance.
    """


class UnreachedMarginWarning(UserWarning):
    """The guard did not bring the margin to its target in the epochs it had.

    Raised by :meth:`CertifiedVAE.fit` with ``alignment_weight="auto"``. The model can
    be used; more epochs, a lower target or a lower `kl_weight` may help.
    """


class UnstableEncoderWarning(UserWarning):
    """The encoder gives the same samples different means in another batch.

    Raised by :meth:`CollapseCertifier.fit` and `certify`. The usual causes are
    dropout or batch normalization left in training mode, or codes that are drawn at
    random. The difference is added to the tolerance, so that it certifies nothing.
    """


class KnownSamplesWarning(UserWarning):
    """Some samples were left out of a certificate that must be of held-out samples.

    Raised by :meth:`CollapseCertifier.certify` when a fitted witness, or the tempering
    of "sampled" and "round_trip", was fitted on samples that equal some of those given.
    """


class NonFiniteLossError(ArithmeticError):
    """The training loss or the weights became infinite or not a number.

    Raised by :meth:`CertifiedVAE.fit`. The weights of the last completed epoch
    are kept, unless an earlier fit was there to return to.
    """


class NotCertifiedWarning(UserWarning):
    """No candidate of a search is certified, so the one nearest to it was chosen.

    Raised by the refit rules of :mod:`skvaecert.model_selection`.
    """


class InvalidFileError(ValueError):
    """A file is not what `save` writes; the message names it and says why.

    Raised by :func:`skvaecert.persistence.load` and `verify`. Nothing in the file was
    run.
    """


class InconsistentVersionWarning(UserWarning):
    """A pickle was written by another version of this package.

    Raised by ``pickle.load`` and ``joblib.load``. scikit-learn has a warning of
    this name for its own estimators. Files of :func:`skvaecert.persistence.save` have
    a schema instead: they are read right, or refused.
    """


class NotSavedWarning(UserWarning):
    """Some parameters cannot be saved and are left at their defaults.

    Raised by :func:`skvaecert.persistence.save` for callbacks and for `memory`.
    """
