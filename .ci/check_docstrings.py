"""Check that the docstrings of all public names are numpydoc.

python .ci/check_docstrings.py
"""

import importlib
import inspect
import pkgutil
import sys

from numpydoc.validate import validate

import skvaecert

# Not asked for everywhere: extended summaries, examples, see-alsos (methods have theirs
# in the class), types of `self`, capitals where a description begins with a symbol.
LEFT_OUT = {
    *("ES01", "EX01", "SA01", "SA04", "GL01", "GL08", "PR08", "RT02", "RT04"),
    *("SS05", "YD01"),
}


def public_names():
    """Full names of public functions and classes, and of methods of the latter."""
    found = pkgutil.iter_modules(skvaecert.__path__, "skvaecert.")
    modules = ["skvaecert", *(m.name for m in found if "._" not in m.name)]
    for module in modules:
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            member = getattr(loaded, name)
            if inspect.isclass(member):
                yield f"{module}.{name}"
                yield from (f"{module}.{name}.{own}" for own in own_members(member))
            elif inspect.isfunction(member):
                yield f"{module}.{name}"


def own_members(kind):
    """Public methods and properties that are written in this package."""
    for name, member in vars(kind).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(inspect.unwrap(function)):
            if inspect.getmodule(inspect.unwrap(function)).__name__.startswith("skv"):
                yield name


def problems(name):
    """What numpydoc finds, but for what is left out."""
    found = validate(name)
    # Records have attributes where other classes have parameters.
    records = "Attributes\n----------" in found["docstring"]
    takes_any = "'*args'" in str(found["errors"])  # an __init__ of another package
    for code, message in found["errors"]:
        if code not in LEFT_OUT and not (code == "PR01" and (records or takes_any)):
            yield f"{name}: {code} {message}"


names = sorted(set(public_names()))
errors = [problem for name in names for problem in problems(name)]
print("\n".join(errors) or f"{len(names)} docstrings are numpydoc")
sys.exit(bool(errors))
