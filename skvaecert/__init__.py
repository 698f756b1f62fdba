"""Certify that a variational autoencoder has not collapsed, and rescue it."""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

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

# Modules are imported when they are first used: plotting, for example, would bring in
# matplotlib. They are not in `__all__`, because `import *` would import them all.
_MODULES = (
    "baselines",
    "bounds",
    "callbacks",
    "datasets",
    "diagnosis",
    "diagnostics",
    "escape",
    "exceptions",
    "forecast",
    "information",
    "metrics",
    "model_selection",
    "networks",
    "objectives",
    "persistence",
    "plotting",
    "report",
    "simplex",
    "witnesses",
    "wrappers",
)


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return import_module(f"skvaecert.{name}")
    raise AttributeError(f"module 'skvaecert' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, *_MODULES, "__version__"]
