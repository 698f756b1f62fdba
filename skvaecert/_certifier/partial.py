"""Certificates of samples that lie on several machines."""

import copy
from dataclasses import dataclass, replace

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.kinds import Kind

__all__ = ["PartialCertificate"]


# Rows that may be equal to some of the fit by chance, beside one in a hundred.
_FEW_ROWS = 2


@dataclass(frozen=True, repr=False)
class PartialCertificate:
    """What a certificate needs to know of some of the rows: sums of them, and no rows.

    Made by :meth:`CollapseCertifier.partial_certificate`, on as many machines as one
    likes; merged in any order; small to send.

    Attributes
    ----------
    parts : frozenset of int
        The parts that it is made of.
    n_samples : int
        Their rows.
    n_known : int
        How many of these were used to fit what reads them, where that must not be.
    origin : str
        Tells which fit of a certifier it comes from.
    safety_margin : float
        tau, nats.
    collected : Kind
        The sums.

    See Also
    --------
    CollapseCertifier.partial_certificate : Makes one.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skvaecert import CertifiedVAE, CollapseCertifier, GMMTeacher
    >>> X = load_iris().data
    >>> vae = CertifiedVAE(
    ...     GMMTeacher(n_components=3), latent_dim=2, device="cpu", random_state=0)
    >>> certifier = CollapseCertifier(vae).fit(X)
    >>> first = certifier.partial_certificate(X[:50], part=0)
    >>> first.merge(certifier.partial_certificate(X[50:], part=1)).certificate().verdict
    'certified'
    """

    parts: frozenset[int]
    n_samples: int
    n_known: int
    origin: str
    safety_margin: float
    collected: Kind

    def merge(self, *others: "PartialCertificate") -> "PartialCertificate":
        """Return what is known of the rows of this one and of others together.

        Parameters
        ----------
        *others : PartialCertificate
            Of other parts, by the same fitted certifier or copies of it.

        Returns
        -------
        PartialCertificate
            A new one; none of those given changes.

        Raises
        ------
        ValueError
            If a part is in two of them, which would count its rows twice, or if they
            were not made by one fitted certifier with the same parameters: codes of
            two collapsed encoders differ.
        """
        collected = copy.deepcopy(self.collected)
        merged = replace(self, collected=collected)
        for other in others:
            merged._check_mergeable(other)
            collected.merge(other.collected)
            merged = replace(
                merged,
                parts=merged.parts | other.parts,
                n_samples=merged.n_samples + other.n_samples,
                n_known=merged.n_known + other.n_known,
            )
        return merged

    def certificate(self) -> Certificate:
        """Make the certificate of all rows.

        Returns
        -------
        Certificate
            The same as of one pass over the rows, to within the tolerance; for
            "sampled" with other draws.

        Raises
        ------
        ValueError
            If there are no rows, or if they were used to fit what reads them.

        Warns
        -----
        UnstableEncoderWarning
            As :meth:`CollapseCertifier.certify`.
        """
        if self.n_known > max(_FEW_ROWS, self.n_samples // 100):
            raise ValueError(
                "X must be rows that the witness was not fitted on, got "
                f"{self.n_known} of {self.n_samples} rows that were in fit: on those "
                "it would find variation that means nothing. Certify rows that were "
                "held out."
            )
        return self.collected.conclude(self.safety_margin)

    def __repr__(self) -> str:
        """Say how much is in it."""
        n_parts = len(self.parts)
        return f"<PartialCertificate of {self.n_samples} rows in {n_parts} part(s)>"

    def _check_mergeable(self, other: "PartialCertificate") -> None:
        twice = self.parts & other.parts
        if twice:
            raise ValueError(
                f"part must be another one in all that is merged, got {min(twice)} "
                "twice: its rows would count twice."
            )
        own, theirs = (
            (part.origin, type(part.collected), part.safety_margin)
            for part in (self, other)
        )
        if own != theirs:
            raise ValueError(
                "parts must be made by one fitted certifier, or copies of it, with the "
                "same kind and safety_margin. Send the fitted certifier to the "
                "workers, or load it from one file there; do not fit it on each."
            )
