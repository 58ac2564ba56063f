"""`deepres` in processes that are forked from one that has imported torch and done nothing else.

Each is a process of its own, with the arguments and variables that it is given, and dies by SIGKILL as any other does;
it only begins without the two seconds that imports take. `command` of tiny_run starts it as users do.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from deepres.cli.main import main

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["deepres.training.train", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def fork(arguments: Sequence[object], variables: Mapping[str, str], output: Path) -> ForkServerProcess:
    """Start `deepres`; what it prints, on standard error too, goes into a file."""
    process = SERVER.Process(target=_deepres, args=([*map(str, arguments)], dict(variables), str(output)))
    process.start()
    return process


def run_forked(arguments: Sequence[object], variables: Mapping[str, str], output: Path) -> str:
    """Run `deepres` to its end, which must be a success; return what it printed."""
    process = fork(arguments, variables, output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    return output.read_text()


def _deepres(arguments: list[str], variables: dict[str, str], output: str) -> None:
    with Path(output).open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["deepres", *arguments]
    main()
