"""What installing deepres takes: packages and MB of each extra, and how long it then takes to start.

    python benchmarks/install_size.py --out benchmarks/results/install_size.json

Builds the wheel, installs it into an empty environment with the versions of constraints.txt, and times commands there,
in turns. Of each extra, what it adds is installed by itself beside that environment and weighed. Needs the network.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from reports import write_report

from deepres.backends.device import describe_device, resolve_device

ROOT = Path(__file__).parent.parent
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
LIST = "import importlib.metadata as m; print(*(each.name for each in m.distributions()))"
TIMED = {
    "import deepres": ("-c", "import deepres"),
    "deepres --version": ("-m", "deepres", "--version"),
    "deepres predict photo.png": ("-m", "deepres", "predict", "photo.png"),
}


def install(python: Path, *arguments: str) -> None:
    """Install with pip, in the versions of constraints.txt."""
    constrained = ("--constraint", str(ROOT / "constraints.txt"))
    subprocess.run([python, *PIP, "install", *constrained, *arguments], check=True)


def megabytes(folder: Path) -> float:
    """Return what the files in a folder weigh, without the byte code that Python writes beside them."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sum(path.stat().st_size for path in files) / 1e6


def added_packages(python: Path, wheel: Path, extra: str) -> list[str]:
    """Return what an extra brings that is not installed, as "name==version"."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        install(python, "--dry-run", "--report", str(report), f"{wheel}[{extra}]")
        found = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    return [f"{each['name']}=={each['version']}" for each in found if each["name"] != "deepres"]


def seconds_of(python: Path, arguments: Sequence[str], folder: Path) -> float:
    """Run Python once and return the time it took."""
    begin = time.perf_counter()
    subprocess.run([python, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Measure, print, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", help="default: all of pyproject.toml; of others the sizes in OUT stay")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"] if arguments.extras is None else arguments.extras

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", folder / "empty"], check=True)
        python = folder / "empty" / "bin" / "python"
        (packages,) = folder.glob("empty/lib/python*/site-packages")
        before = megabytes(packages)
        install(python, str(wheel))
        listed = subprocess.run([python, "-c", LIST], check=True, capture_output=True, text=True)
        core = [name for name in listed.stdout.split() if name not in ("pip", "setuptools")]
        torch = megabytes(packages / "torch")
        sizes = {"": {"packages": len(core), "megabytes": megabytes(packages) - before}}
        Image.new("RGB", (64, 48), "green").save(folder / "photo.png")
        for command in TIMED.values():
            seconds_of(python, command, folder)  # once to write the byte code
        rounds = [
            {key: seconds_of(python, each, folder) for key, each in TIMED.items()} for _ in range(arguments.rounds)
        ]
        for extra in extras:
            added = added_packages(python, wheel, extra)
            if added:
                install(python, "--no-deps", "--target", str(folder / extra), *added)
            sizes[extra] = {"packages": len(added), "megabytes": megabytes(folder / extra)}
            print(f"{extra}: {sizes[extra]}", flush=True)
        wheel_megabytes = wheel.stat().st_size / 1e6

    seconds = {key: median(each[key] for each in rounds) for key in TIMED}
    measured = {"device": describe_device(resolve_device("cpu")), "wheel_megabytes": wheel_megabytes}
    earlier = json.loads(arguments.out.read_text())["sizes"] if arguments.out and arguments.out.exists() else {}
    measured |= {"torch_megabytes": torch, "sizes": {**earlier, **sizes}, "seconds": seconds}
    print(json.dumps(measured, indent=2))
    if arguments.out:
        write_report(arguments.out, measured)


if __name__ == "__main__":
    main()
