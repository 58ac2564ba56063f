"""Stands for `deepres`: tells events as `deepres train --progress json` and `train-together` do, and trains nothing.

FAKE says how it ends: "finish", "error", "crash", "killed", or "wait" for a signal.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

ERRORS = {"error": "deepres: error: the disk is full", "crash": "Traceback (most recent call last):\nValueError: no"}


RUN = {}  # its name, for each event, where there are several


def tell(event, **content):
    print(json.dumps({"event": event, **RUN, **content}), flush=True)


def main():
    def stop(number, frame):
        print("deepres: stopped by SIGTERM after step 1, state saved", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    print("a library that prints")
    if sys.argv[1] == "train":
        train(sys.argv[2:])
        return
    for line in sys.stdin:
        arguments = json.loads(line)
        RUN["run"] = Path(arguments[arguments.index("--run-dir") + 1]).name
        try:
            train(arguments)
        except SystemExit as error:
            if isinstance(error.code, int):
                raise
            tell("ended", state="failed", message=error.code.splitlines()[-1].removeprefix("deepres: error: "))
        else:
            tell("ended", state="finished", message="")


def train(arguments):
    run_dir = Path(arguments[arguments.index("--run-dir") + 1])
    seed = arguments[arguments.index("--seed") + 1]
    with (run_dir.parent / "starts.txt").open("a") as starts:
        starts.write(f"{run_dir.name} {os.environ['OMP_NUM_THREADS']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    how = os.environ.get(f"FAKE{seed}", os.environ.get("FAKE", "finish"))
    tell("start", step=0, target=10, batch_size=20, total_epochs=2)
    tell("step", step=1, epoch=0, loss=2.3, error=90.0, images_per_second=1000.0)
    if how == "wait":
        (run_dir.parent / "waiting").touch()
        time.sleep(60)
    if how in ERRORS:
        sys.exit(f"deepres: resuming\n{ERRORS[how]}")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    for epoch in (1, 2):
        row = {"step": 5 * epoch, "epoch": epoch, "train_error": 50.0, "test_error": 40.0, "images_per_second": 1000.0}
        tell("epoch", row=row)


if __name__ == "__main__":
    main()
