import pickle

import pytest

from skvaecert import exceptions
from skvaecert.exceptions import NotCertifiedError


@pytest.mark.parametrize("name", exceptions.__all__)
def test_kinds(name):
    kind = getattr(exceptions, name)
    assert issubclass(kind, UserWarning if name.endswith("Warning") else Exception)
    # Who catches errors in data or state must not miss one of these; a file is data.
    assert issubclass(kind, ValueError | RuntimeError) == (name == "InvalidFileError")
    assert "Raised by" in kind.__doc__


def test_the_certificate_comes_along_from_another_process():
    error = pickle.loads(pickle.dumps(NotCertifiedError("why", {"margin": -1.0})))
    assert str(error) == "why"
    assert error.certificate == {"margin": -1.0}
    assert NotCertifiedError("why").certificate is None
