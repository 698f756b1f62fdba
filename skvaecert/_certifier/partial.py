"""Certificates of samples that are spread over several machines."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.kinds import Kind
from skvaecert._estimator import warn_user
from skvaecert.exceptions import KnownSamplesWarning

__all__ = ["PartialCertificate"]


@dataclass(frozen=True, repr=False)
class PartialCertificate:
    """What a certificate needs to know of some of the samples: sums, and no samples.

    Made by :meth:`CollapseCertifier.partial_certificate` on any number of machines,
    merged in any order, small to send.

    Attributes
    ----------
    parts : frozenset of int
        The parts that it is made of.
    n_known : int
        How many samples were left out, because the witness or the tempering that reads
        them was fitted on them; 0 if the kind needs none.
    origin : str
        Identifies the fit of the certifier and the weights of its encoder, where they
        can be had: those of a :class:`torch.nn.Module` that is an attribute of the
        estimator, or of one inside it. Of other encoders nothing tells whether they
        were trained between two parts; do not train them.
    safety_margin : float
        tau, nats.
    collected : Kind
        The sums.
    n_samples : int
        Number of samples.

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
    n_known: int
    origin: str
    safety_margin: float
    collected: Kind

    @property
    def n_samples(self) -> int:  # numpydoc ignore=RT01
        """Number of samples."""
        return self.collected.sums.n_samples

    def merge(self, *others: PartialCertificate) -> PartialCertificate:
        """Return the partial certificate of all samples together.

        Parameters
        ----------
        *others : PartialCertificate
            Of other parts, by the same fitted certifier or copies of it.

        Returns
        -------
        PartialCertificate
            A new one; the given ones do not change.

        Raises
        ------
        ValueError
            If a part occurs twice, so that its samples would count twice, or if the
            parts were not made by one fitted certifier with the same parameters and
            weights: the codes of two collapsed encoders differ.
        """
        collected = copy.deepcopy(self.collected)
        merged = replace(self, collected=collected)
        for other in others:
            merged._check_mergeable(other)
            collected.merge(other.collected)
            merged = replace(
                merged,
                parts=merged.parts | other.parts,
                n_known=merged.n_known + other.n_known,
            )
        return merged

    def certificate(self) -> Certificate:
        """Return the certificate of all samples.

        Returns
        -------
        Certificate
            That of one pass over the samples, to within the tolerance; for "sampled"
            with other draws.

        Raises
        ------
        ValueError
            If there are no samples, or if the witness was fitted on all of them.

        Warns
        -----
        KnownSamplesWarning
            If samples were left out, because the witness was fitted on them.
        UnstableEncoderWarning
            As :meth:`CollapseCertifier.certify`.
        """
        if self.n_known:
            self._tell_known()
        return self.collected.conclude(self.safety_margin)

    def __repr__(self) -> str:
        """Say how much is in it."""
        n_parts = len(self.parts)
        return f"<PartialCertificate of {self.n_samples} samples in {n_parts} part(s)>"

    def _tell_known(self) -> None:
        """Warn of samples that were in fit; fail if there are no others."""
        known = (
            f"{self.n_known} of {self.n_known + self.n_samples} samples that were in "
            "fit: the witness would find variation there that means nothing."
        )
        if not self.n_samples:
            raise ValueError(
                "X must be samples that the witness was not fitted on, got "
                f"{known} Certify held-out samples."
            )
        warn_user(KnownSamplesWarning(f"Left out {known} Certify held-out samples."))

    def _check_mergeable(self, other: PartialCertificate) -> None:
        twice = self.parts & other.parts
        if twice:
            raise ValueError(
                f"part must be different in all that is merged, got {min(twice)} "
                "twice: its samples would count twice."
            )
        own, theirs = (
            (part.origin, type(part.collected), part.safety_margin)
            for part in (self, other)
        )
        if own != theirs:
            raise ValueError(
                "parts must be made by one fitted certifier, or copies of it, with the "
                "same kind, safety_margin and weights of the encoder. Send the fitted "
                "certifier to the workers, or load it from one file there; do not fit "
                "it on each, nor train its encoder in between."
            )
