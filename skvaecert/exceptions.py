"""Warnings and errors of the package, in addition to those of scikit-learn."""

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
    """The teacher hardly tells samples apart, so no margin can be large.

    Raised by :meth:`GMMTeacher.fit` if the teacher information on the training samples,
    which is the largest possible margin, is close to 0.
    """


class UnstableTeacherWarning(UserWarning):
    """Restarts of the mixture find different clusters, so the clusters may be noise.

    Raised by :meth:`GMMTeacher.fit` if no candidate of a search reaches
    `min_agreement`. Certificates remain valid, but the clusters may be due to chance.
    """


class UnreachedMarginWarning(UserWarning):
    """The margin did not reach its target within the given number of epochs.

    Raised by :meth:`CertifiedVAE.fit` with ``alignment_weight="auto"``. The model can
    be used. More epochs, a lower target or a lower `kl_weight` may help.
    """


class UnstableEncoderWarning(UserWarning):
    """The encoder returns other latent means for the same samples in another batch.

    Raised by :meth:`CollapseCertifier.fit` and `certify`. The usual causes are
    dropout or batch normalization in training mode, or codes that are drawn at random.
    The difference counts as error of the means, so that it cannot certify anything.
    """


class KnownSamplesWarning(UserWarning):
    """Some samples are left out of a certificate that requires held-out samples.

    Raised by :meth:`CollapseCertifier.certify` if a fitted witness, or the tempering of
    "sampled" and "round_trip", was fitted on some of the samples that are passed.
    """


class NonFiniteLossError(ArithmeticError):
    """The training loss or the weights became infinite or NaN.

    Raised by :meth:`CertifiedVAE.fit`. The weights of the last completed epoch are
    kept, unless there is an earlier fit to return to.
    """


class NotCertifiedWarning(UserWarning):
    """No candidate of a search is certified, so the closest candidate is chosen.

    Raised by the refit rules of :mod:`skvaecert.model_selection`.
    """


class InvalidFileError(ValueError):
    """A file is not as `save` writes it; the message names the file and the reason.

    Raised by :func:`skvaecert.persistence.load` and `verify`. No code in the file is
    executed.
    """


class InconsistentVersionWarning(UserWarning):
    """A pickle was written by another version of this package.

    Raised by ``pickle.load`` and ``joblib.load``. scikit-learn has a warning with this
    name for its own estimators. Files of :func:`skvaecert.persistence.save` have a
    schema instead: they are read correctly or refused.
    """


class NotSavedWarning(UserWarning):
    """Some parameters cannot be saved, and a loaded estimator has their defaults.

    Raised by :func:`skvaecert.persistence.save` for callbacks and for `memory`.
    """
