"""Where and with what a run was made."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from deepres._version import __version__
from deepres.backends.device import describe_device
from deepres.runs.schema import Environment


def describe_environment(
    device: torch.device, precision: str, backend: str, workers: int, command: Sequence[str] | None = None
) -> Environment:
    """Return versions, device and commit of this process, and its command, or what stands for it after `deepres`."""
    return Environment(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=["deepres", *(sys.argv[1:] if command is None else command)],
        deepres=__version__,
        commit=find_commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=version("numpy"),
        platform=platform.platform(),
        device=device.type,
        device_name=describe_device(device),
        num_threads=torch.get_num_threads(),
        precision=precision,
        backend=backend,
        workers=workers,
    )


def find_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, "-dirty" if changed; None if installed."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # a checkout, but of the project that installed us
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
