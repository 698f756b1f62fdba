import pytest

from skvaecert import exceptions


@pytest.mark.parametrize("name", exceptions.__all__)
def test_kinds(name):
    kind = getattr(exceptions, name)
    assert issubclass(kind, UserWarning if name.endswith("Warning") else Exception)
    # Code that catches errors in data or state must catch these; a file is data.
    assert issubclass(kind, ValueError | RuntimeError) == (name == "InvalidFileError")
    assert "Raised by" in kind.__doc__
