"""Certify that a variational autoencoder has not collapsed, and rescue it."""

from importlib.metadata import version

from skvaecert._certificate import Certificate, certify, certify_batches
from skvaecert._certifier import CollapseCertifier
from skvaecert._kinds import PartialCertificate
from skvaecert._teacher import GMMTeacher
from skvaecert._vae import CertifiedVAE

__all__ = [
    "Certificate",
    "CertifiedVAE",
    "CollapseCertifier",
    "GMMTeacher",
    "PartialCertificate",
    "certify",
    "certify_batches",
]
__version__ = version("skvaecert")
