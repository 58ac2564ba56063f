import os
import subprocess
import sys

import pytest

from deepres.runs.curve import draw_curve

ROWS = [{"step": step, "train_error": 90.0 / step, "val_error": 95.0 / step} for step in (1, 2, 3)]


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS])
def test_a_picture_of_any_number_of_epochs(rows):
    assert draw_curve(rows, "val", "resnet20").startswith(b"\x89PNG")


@pytest.mark.parametrize("backend", ["no_such_backend", "module://no_such_module.backend"])
def test_no_backend_is_needed(backend):
    """As in a process that was started from a notebook, whose MPLBACKEND it inherits."""
    code = (
        "import os, sys; from deepres.runs.curve import draw_curve; "
        f"picture = draw_curve({ROWS!r}, 'val', 'resnet20'); "
        "assert picture.startswith(b'\\x89PNG'); assert os.environ['MPLBACKEND'] == sys.argv[1]; "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    command = [sys.executable, "-c", code, backend]
    done = subprocess.run(
        command, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
