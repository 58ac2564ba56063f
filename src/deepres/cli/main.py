"""The command line: parsing, and nothing else. Modules that need torch are imported where they are used."""

import os
import sys
from typing import TYPE_CHECKING

import click

from deepres._version import __version__
from deepres.backends.memory import keep_freed_memory
from deepres.cli.bench import bench
from deepres.cli.compare import compare
from deepres.cli.evaluate import evaluate
from deepres.cli.explain import explain
from deepres.cli.export import export
from deepres.cli.figures import figures
from deepres.cli.finetune import finetune
from deepres.cli.grid import grid
from deepres.cli.import_ import import_checkpoint
from deepres.cli.lists import fetch, models, recipes
from deepres.cli.options import recipe_hint
from deepres.cli.predict import predict
from deepres.cli.report import report
from deepres.cli.responses import responses
from deepres.cli.results import results
from deepres.cli.train import train
from deepres.cli.train_together import train_together
from deepres.cli.verify import verify
from deepres.cli.zoo import zoo
from deepres.errors import UserError, first_line
from deepres.streams import protect_streams, say

if TYPE_CHECKING:
    from deepres.data.release import Release


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="deepres %(version)s")
def cli() -> None:
    """Deep residual learning on CIFAR-10, reproduced."""


for command in (
    fetch,
    models,
    recipes,
    train,
    train_together,
    finetune,
    bench,
    grid,
    results,
    compare,
    figures,
    report,
    responses,
    evaluate,
    predict,
    explain,
    verify,
    export,
    import_checkpoint,
    zoo,
):
    cli.add_command(command)


def main(release: "Release | None" = None) -> None:
    """Run the command line and end the process.

    Args:
        release: what the files of CIFAR-10 must be. None: the official release, which the processes of a grid take in
            any case.
    """
    try:
        run(release)
    except SystemExit as ended:
        if "RANK" not in os.environ:
            raise
        # A worker: gloo's threads, which wait for the others, may abort a shutdown of the interpreter.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)


def run(release: "Release | None" = None) -> None:
    """Run the command line, see `main`; every foreseen error is one line and exit code 2."""
    # Threads of GNU OpenMP that wait spin for minutes by default, which ruins whatever shares the cores with them.
    # Read when torch is imported, which comes later.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    protect_streams()
    try:
        code = cli.main(standalone_mode=False, obj=release)
    except click.exceptions.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.NoSuchOption as error:
        _fail(f"{error.format_message()}{recipe_hint(error.option_name)}", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except UserError as error:
        _fail(str(error), error.exit_code)
    except MemoryError:
        _fail("out of memory: a smaller net, or a machine with more", 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        _fail(f"out of memory ({first_line(error)}): a smaller net, or a machine with more", 2)
    except BrokenPipeError:  # whoever read our output has gone; say nothing more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        say(f"deepres: error: {line}")
    elif not line.startswith(("another worker", "training diverged")):  # that one, or worker 0, speaks for itself
        say(f"deepres: error in worker {rank}: {line}", all_workers=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
