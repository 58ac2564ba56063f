"""`deepres train` in a process of its own, or several runs in one, for a program to watch."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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


class Process:
    """A command of `deepres` in a process and session of its own, so that a terminal's Ctrl-C does not reach it.

    What it prints, errors first of all, is appended to a log.

    Args:
        words: the command with its arguments.
        log: a file; its folder is created if missing.
        program: see `this_program`.
        environment: variables to set beside those of this process.
        listen: is given each event, in a thread of its own; after the last one, None.
        folder: in which the process works; None: in this one's.
        stdin: see `subprocess.Popen`.

    Raises:
        UserError: the log cannot be written.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        *,
        program: Sequence[str],
        environment: Mapping[str, str],
        listen: Callable[[Event | None], None],
        folder: Path | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._log = log
        self._stopped = False
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as stderr:
                self._log_start = stderr.tell()
                self._process = subprocess.Popen(
                    [sys.executable, *program, *words],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env={**os.environ, **environment},
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            raise UserError(f"cannot start a run in {log.parent} ({error.strerror})") from None
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
        """Ask the process, once, to save the state of what it trains and end."""
        if not self._stopped and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._stopped = True

    def kill(self) -> None:
        """End the process at once."""
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
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines() or [""]
        return lines[-1].removeprefix(ERROR_MARK).strip()


class TrainProcess(Process):
    """`deepres train`: one run, in whose directory the log lies.

    Args:
        arguments: those of `deepres train`, without --run-dir and --progress.
        run_dir: where to train.
        others: see `Process`.
    """

    def __init__(self, arguments: Sequence[str], run_dir: RunDir, **others: Any) -> None:
        super().__init__(["train", *arguments, "--run-dir", str(run_dir), "--progress", "json"], run_dir.log, **others)


class SharedProcess(Process):
    """`deepres train-together`: runs that take turns. Each event says which run it is of.

    Args:
        at_a_time: how many runs take turns.
        settings: --device and --checkpoint-minutes, as all its runs have them; others are ignored.
        log: see `Process`, as `others`.
        others: what else the process needs.
    """

    def __init__(self, at_a_time: int, settings: Sequence[str], log: Path, **others: Any) -> None:
        super().__init__(
            ["train-together", "--at-a-time", str(at_a_time), *settings], log, stdin=subprocess.PIPE, **others
        )
        self.is_open = True
        """Whether further runs may be given to it."""

    def begin(self, arguments: Sequence[str], run_dir: RunDir) -> None:
        """Give it a run: the arguments of `deepres train`, without --run-dir."""
        self._send(json.dumps([*arguments, "--run-dir", str(run_dir)]) + "\n")

    def close(self) -> None:
        """Let it end with the runs that it has."""
        if self.is_open:
            self.is_open = False
            self._send(None)

    def _send(self, line: str | None) -> None:
        """Write a line to its standard input, or the end; if it has died, its events end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            if line is None:
                self._process.stdin.close()
            else:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
