"""Certify that a variational autoencoder has not collapsed, and rescue it."""

from importlib.metadata import version

from skvaecert._certificate.arrays import certify, certify_batches
from skvaecert._certificate.certificate import Certificate
from skvaecert._certifier.certifier import CollapseCertifier
from skvaecert._certifier.partial import PartialCertificate
from skvaecert._teacher.gmm import GMMTeacher
from skvaecert._vae.vae import CertifiedVAE
from skvaecert.diagnosis import Diagnosis, diagnose

__all__ = [
    "Certificate",
    "CertifiedVAE",
    "CollapseCertifier",
    "Diagnosis",
    "GMMTeacher",
    "PartialCertificate",
    "certify",
    "certify_batches",
    "diagnose",
]
__version__ = version("skvaecert")
