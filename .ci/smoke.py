"""Fit and certify with what is installed, without extras and without a checkout."""

import doctest
import sys
from importlib.util import find_spec
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import skvaecert
from skvaecert import CertifiedVAE, CollapseCertifier, simplex

place = Path(skvaecert.__file__)
assert place.is_relative_to(sys.prefix), f"{place} is not the installed package"
assert find_spec("matplotlib") is None, "not an environment without extras"

X_train, X_test = train_test_split(load_digits().data / 16, random_state=0)
vae = CertifiedVAE(likelihood="bernoulli", random_state=0)
certificate = CollapseCertifier(vae).fit(X_train).certify(X_test)
assert certificate.verdict == "certified", certificate

flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
failed, attempted = doctest.testmod(simplex, optionflags=flags)
assert attempted
assert not failed
print(f"skvaecert {skvaecert.__version__}, {attempted} examples. {certificate}")
