"""TensorBoard's events, where it is installed: the rows of metrics.jsonl once more."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from deepres.errors import first_line
from deepres.runs.directory import Row


class Events:
    """Writes rows as TensorBoard events, begun anew in one file: what a killed start wrote is among the rows.

    Nothing depends on them: where TensorBoard is not installed there are none, and where it fails the run
    continues without.

    Args:
        folder: where to write.
        notice: is given a line if TensorBoard fails.
    """

    def __init__(self, folder: Path, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._writer: Any = None
        shutil.rmtree(folder, ignore_errors=True)
        # Where TensorFlow is installed, TensorBoard would load it for seconds to write events, which it can do itself.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        try:
            from torch.utils.tensorboard import SummaryWriter  # here, since it takes most of a second to import

            self._writer = SummaryWriter(str(folder))
        except ImportError:
            pass
        except Exception as error:  # whatever a TensorBoard of another age raises
            self._fail(error)

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        if self._writer is None:
            return
        try:
            for row in rows:
                for key, value in row.items():
                    if key != "step" and value is not None:
                        self._writer.add_scalar(key, value, row["step"])
            self._writer.flush()
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()

    def _fail(self, error: Exception) -> None:
        self._writer = None
        self._notice(f"no TensorBoard events ({first_line(error)}): continuing without them")
