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

from deepres.cli.main import main, run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["deepres.training.train", "matplotlib.figure", "matplotlib.backends.backend_agg"])


def fork(
    arguments: Sequence[object], variables: Mapping[str, str], output: Path, workers: int = 0
) -> ForkServerProcess:
    """Start `deepres`, or torchrun with so many workers; what it prints, on standard error too, goes into a file."""
    words = [*map(str, arguments)]
    process = SERVER.Process(target=_begin, args=(words, dict(variables), str(output), workers))
    process.start()
    return process


def run_forked(arguments: Sequence[object], variables: Mapping[str, str], output: Path, workers: int = 0) -> str:
    """Run it to its end, which must be a success; return what it printed."""
    process = fork(arguments, variables, output, workers)
    process.join()
    assert process.exitcode == 0, output.read_text()
    return output.read_text()


def _begin(arguments: list[str], variables: dict[str, str], output: str, workers: int) -> None:
    with Path(output).open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(variables)
    if workers:
        _torchrun(arguments, workers)
    else:
        sys.argv = ["deepres", *arguments]
        main()


def _torchrun(arguments: list[str], workers: int) -> None:
    """Do as `torchrun --standalone -m deepres` does, but that it forks its workers too.

    Of workers that stop on request, those of higher ranks end with success and would wait for torchrun half a minute.
    """
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "8"
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id="forked",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, _worker)(*arguments)


def _worker(*arguments: str) -> None:
    sys.argv = ["deepres", *arguments]
    run()  # what `main` does beyond that, to end the process at once, is done where a forked one ends
