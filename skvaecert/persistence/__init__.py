"""Save fitted estimators and load them again, without running what a file says.

A file holds arrays, values, and names that are looked up in closed lists. The code of
your own modules is not in it: whoever loads brings it along.

`TRUSTED_TYPES` is a list of the names of all types in fitted estimators of this
package, for ``skops.io.load(file, trusted=TRUSTED_TYPES)``.
"""

from skvaecert.persistence._onnx import export_onnx
from skvaecert.persistence._registry import TRUSTED_TYPES
from skvaecert.persistence._save import load, save
from skvaecert.persistence._verify import Verification, verify

__all__ = ["TRUSTED_TYPES", "Verification", "export_onnx", "load", "save", "verify"]
