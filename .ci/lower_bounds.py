"""Print constraints that install the oldest versions that pyproject.toml allows.

Packages without a bound stay at the version in constraints.txt. Arguments such as
torch==2.13.0 replace a bound.
"""

import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PYPROJECT = HERE.parent / "pyproject.toml"
PINS = HERE / "constraints.txt"


def canonical(name: str) -> str:
    """Write the name of a package as PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str], sign: str) -> dict[str, str]:
    """Version that follows the sign in each requirement that has one."""
    form = re.compile(rf"\s*([\w.-]+)(?:\[.*?\])?\s*{sign}\s*([\w.+]+)")
    found = [match.groups() for line in lines if (match := form.match(line))]
    return {canonical(name): version for name, version in found}


def requirements() -> list[str]:
    """Everything that pyproject.toml asks for, extras included."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"].values()
    return sum(extras, start=project["dependencies"])


if __name__ == "__main__":
    tested = pins(PINS.read_text().splitlines(), "==")
    oldest = tested | pins(requirements(), ">=") | pins(sys.argv[1:], "==")
    print("\n".join(f"{name}=={version}" for name, version in sorted(oldest.items())))
