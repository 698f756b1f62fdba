"""Certificates for samples on several machines."""

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
    """The sums of a certificate for some of the samples.

    Use it for samples on several machines.
    :meth:`CollapseCertifier.partial_certificate` returns one for each part of the
    samples. They are small, contain no samples, and can be merged in any order.

    Attributes
    ----------
    parts : frozenset of int
        Indices of the parts that are merged in it.
    n_known : int
        Number of samples that were left out, because the witness or the tempering was
        fitted on them; 0 if the kind needs neither.
    origin : str
        Identifies the fit of the certifier and, where possible, the weights of its
        encoder. These are the weights of a :class:`torch.nn.Module` that is an
        attribute of the estimator, or of an estimator inside it. Training other
        encoders between two parts is not detected; do not train them.
    safety_margin : float
        tau, in nats.
    collected : Kind
        The sums.
    n_samples : int
        Number of samples.

    See Also
    --------
    CollapseCertifier.partial_certificate : Returns a partial certificate.

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
            Partial certificates of other parts, from the same fitted certifier or
            copies of it.

        Returns
        -------
        PartialCertificate
            A new partial certificate. The merged ones do not change.

        Raises
        ------
        ValueError
            If a part occurs twice, since its samples would count twice. Or if the parts
            are not from one fitted certifier with the same parameters and weights,
            since the codes of two constant encoders differ.
        """
        # A copy, because sums are merged in place.
        collected = copy.deepcopy(self.collected)
        merged = replace(self, collected=collected)
        for other in others:
            merged._check_mergeable(other)
            collected.merge(other.collected)
            # At each step, so that a part is also compared with those just merged.
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
            The certificate of one pass over all samples, to within the tolerance. For
            "sampled" the draws are different.

        Raises
        ------
        ValueError
            If there are no samples, or if the witness was fitted on all of them.

        Warns
        -----
        KnownSamplesWarning
            If samples were left out, because the witness was fitted on them.
        UnstableEncoderWarning
            As in :meth:`CollapseCertifier.certify`.
        """
        if self.n_known:
            self._report_known()
        return self.collected.conclude(self.safety_margin)

    def __repr__(self) -> str:
        """Return the numbers of samples and parts."""
        n_parts = len(self.parts)
        return f"<PartialCertificate of {self.n_samples} samples in {n_parts} part(s)>"

    def _report_known(self) -> None:
        """Warn about samples that were in fit; raise if there are no others."""
        known = (
            f"{self.n_known} of {self.n_known + self.n_samples} samples that equal "
            "samples of fit. On these, the witness also reads variation that is due to "
            "chance."
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
                "part must be different in all partial certificates that are merged, "
                f"got {min(twice)} twice: its samples would count twice."
            )
        own, theirs = (
            (part.origin, type(part.collected), part.safety_margin)
            for part in (self, other)
        )
        if own != theirs:
            raise ValueError(
                "parts must be made by one fitted certifier, or copies of it, with the "
                "same kind, safety_margin and weights of the encoder. Send the fitted "
                "certifier to the workers, or load it there from one file. Do not fit "
                "it on each worker, nor train its encoder in between."
            )
