"""Prints the lowest versions that pyproject.toml allows of what training and the report need, as pip's constraints.

`make lowest` installs them into an environment of their own and runs the quick tests there.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND = re.compile(r"([A-Za-z0-9._-]+)>=([0-9.]+)")


def lowest(requirement: str) -> str:
    """Return the requirement with its lower bound as the exact version.

    Raises:
        ValueError: it has no lower bound, or says more than that.
    """
    found = BOUND.fullmatch(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} in pyproject.toml is not of the form name>=version")
    return f"{found[1]}=={found[2]}"


def main() -> None:
    """Print one line a package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in (*project["dependencies"], *project["optional-dependencies"]["report"]):
        print(lowest(requirement))


if __name__ == "__main__":
    main()
