"""`deepres train` in a process of its own, for a program to watch."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from deepres.errors import UserError
from deepres.runs.directory import RunDir

Event = dict[str, Any]
"""What `deepres.training.progress.JsonReporter` writes."""

ERROR_MARK = "deepres: error: "  # what the command line puts before an error


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    state: str
    """"finished", "stopped" (by a signal, its state saved), "busy" (another process trains there) or "failed"."""
    message: str = ""
    """One line: what went wrong."""


def this_program() -> list[str]:
    """Return what Python is to be given to run the command line that runs now; -P: without what lies in the folder."""
    script = Path(sys.argv[0])
    known = script.name in ("deepres", "deepres.exe", "__main__.py")
    return ["-P", "-m", "deepres"] if known else [str(script.absolute())]


class TrainProcess:
    """A run in a process and session of its own, so that a terminal's Ctrl-C does not reach it.

    What it prints, errors first of all, is appended to the run directory's log.

    Args:
        arguments: those of `deepres train`, without --run-dir and --progress.
        run_dir: where to train.
        program: see `this_program`.
        environment: variables to set beside those of this process.
        listen: is given each event, in a thread of its own; after the last one, None.
        folder: in which the process works; None: in this one's.

    Raises:
        UserError: the run directory cannot be written.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        run_dir: RunDir,
        *,
        program: Sequence[str],
        environment: Mapping[str, str],
        listen: Callable[[Event | None], None],
        folder: Path | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._stopped = False
        command = [sys.executable, *program, "train", *arguments, "--run-dir", str(run_dir), "--progress", "json"]
        try:
            run_dir.path.mkdir(parents=True, exist_ok=True)
            with run_dir.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **environment},
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            raise UserError(f"cannot start a run in {run_dir} ({error.strerror})") from None
        Thread(target=self._read, args=(listen,), daemon=True).start()

    def _read(self, listen: Callable[[Event | None], None]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a library that prints
                if isinstance(event, dict) and "event" in event:
                    listen(event)
        listen(None)

    def stop(self) -> None:
        """Ask the run, once, to save its state and end."""
        if not self._stopped and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._stopped = True

    def kill(self) -> None:
        """End the run at once."""
        self._process.kill()

    def outcome(self) -> Outcome:
        """Wait for the end and tell how it was."""
        code = self._process.wait()
        if code == 0:
            return Outcome("finished")
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM) or (self._stopped and code < 0):
            return Outcome("stopped")
        if code < 0:
            name = signal.Signals(-code).name
            return Outcome("failed", f"killed by {name}{', perhaps for memory' if name == 'SIGKILL' else ''}")
        return Outcome("failed", self._last_line() or f"exit code {code}")

    def _last_line(self) -> str:
        """Return the last line of what this process printed."""
        with self._run_dir.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines() or [""]
        return lines[-1].removeprefix(ERROR_MARK).strip()
