"""The command line in this process, and what its errors must be like."""

import sys
from dataclasses import dataclass

import pytest

from deepres.cli import main as cli
from deepres.data.release import OFFICIAL, Release


@dataclass
class CommandLine:
    """Calls the command line: exit code, standard output, standard error."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    release: Release = OFFICIAL
    """What is taken for CIFAR-10."""
    program: str = "deepres"
    """What started it, and is started again for each run of a grid."""

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", [self.program, *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            cli.main(self.release)
        captured = self.capsys.readouterr()
        return int(exited.value.code or 0), captured.out, captured.err


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Call the command line: exit code, standard output, standard error."""
    return CommandLine(monkeypatch, capsys)(*arguments)


def assert_one_line_error(outcome: tuple[int, str, str], *parts: str, code: int = 2) -> None:
    """Assert that a call ended with this exit code and one line, which holds these parts, on standard error alone."""
    actual, stdout, stderr = outcome
    assert actual == code
    assert stdout == ""
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("deepres: error: ")
    for part in parts:
        assert part in stderr
