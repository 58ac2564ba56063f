"""The command line in this process."""

import sys

import pytest

from deepres import cli


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Call the command line: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["deepres", *map(str, arguments)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    captured = capsys.readouterr()
    return int(exited.value.code or 0), captured.out, captured.err
