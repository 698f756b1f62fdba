"""Save fitted estimators and load them again, without running code from a file.

A file contains arrays, values, and names that are looked up in closed lists. It does
not contain the code of your own modules: pass the modules to :func:`load`.

`TRUSTED_TYPES` lists the names of all types in fitted estimators of this package, for
``skops.io.load(file, trusted=TRUSTED_TYPES)``.
"""

from skvaecert.persistence._onnx import export_onnx
from skvaecert.persistence._registry import TRUSTED_TYPES
from skvaecert.persistence._save import load, save
from skvaecert.persistence._verify import Verification, verify

__all__ = ["TRUSTED_TYPES", "Verification", "export_onnx", "load", "save", "verify"]
