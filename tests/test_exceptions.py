import pytest

from skvaecert import exceptions


@pytest.mark.parametrize("name", exceptions.__all__)
def test_kinds(name):
    kind = getattr(exceptions, name)
    assert issubclass(
        kind, UserWarning if name.endswith("Warning") else ArithmeticError
    )
    assert "Raised by" in kind.__doc__
