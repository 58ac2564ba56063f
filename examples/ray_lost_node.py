"""A grid on a Ray cluster that loses a node: nothing is lost but the steps since the last checkpoint.

`python examples/ray_lost_node.py` starts a cluster of two nodes on this machine, trains two short runs on it with
`deepres grid --engine ray`, kills one node with SIGKILL in the middle of a run, and then compares that run with the
same one trained without interruption, bit for bit. It needs `pip install 'deepres[ray]'` and CIFAR-10 (`deepres
fetch`), of which it uses 100 images, and takes about a minute on two cores.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors.numpy import load_file

from deepres.runs.directory import RunDir

EPOCHS = "DEEPRES_EXAMPLE_EPOCHS"
SETTINGS = ["--precision", "float32", "--backend", "eager", "--checkpoint-minutes", "0"]
KILL_AFTER = 10  # steps, of which an epoch has five
RESUMED = r"{}: resuming .* after step ([0-9,]+)"
TIMES = ("seconds", "images_per_second")


def command_line() -> None:
    """Be `deepres` with a recipe of few steps, on 100 training and 100 test images."""
    import deepres.recipes.recipe
    from deepres.cli.main import main
    from deepres.data import cifar10
    from deepres.data.cifar10 import Cifar10, Split

    load = cifar10.load_cifar10

    def load_few(data_dir: str | Path | None = None) -> Cifar10:
        data = load(data_dir)
        train, test = (Split(part.images[:100], part.labels[:100]) for part in (data.train, data.test))
        return Cifar10(train, test)

    cifar10.load_cifar10 = load_few
    short = replace(
        deepres.recipes.named.fast(), name="short", batch_size=20, steps=None, epochs=int(os.environ[EPOCHS])
    )
    deepres.recipes.named.RECIPES = {"short": lambda: short}
    main()


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def descendants(pid: int) -> list[int]:
    """Return the process ids of a process's children, their children, and so on, from /proc."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants(child))]


def checkpoint_step(run_dir: RunDir) -> int:
    """Return the step of the newest checkpoint that lies at home; 0 if there is none."""
    paths = run_dir.checkpoint_paths()
    return int(paths[0].name.split("-")[1]) if paths else 0


def rows_without_times(run_dir: RunDir) -> list[dict[str, object]]:
    """Return the metrics, but for how long they took."""
    return [{key: value for key, value in row.items() if key not in TIMES} for row in run_dir.read_metrics()]


def main() -> int:
    """Start the cluster and the grid, kill a node, compare; return 0 if nothing was lost."""
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="of 5 steps each")
    parser.add_argument("--out", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="deepres-example-"))
    os.environ |= {
        EPOCHS: str(arguments.epochs),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 would let it starve beside other work on this machine
    }

    say("starting a cluster of two nodes with one core each")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    say(f"the node to be killed is {doomed.node_id[:8]}")
    try:
        victim, killed_at, lines = run_grid(cluster.address, doomed, out)
    finally:
        cluster.shutdown()

    home = RunDir(out / victim)
    (resumed_at,) = (
        int(number.replace(",", "")) for line in lines for number in re.findall(RESUMED.format(victim), line)
    )
    say(f"killed when the checkpoint of step {killed_at} lay at home; went on after step {resumed_at}")
    say(f"training {victim} once more, without interruption, to compare")
    reference = RunDir(out / "reference" / victim)
    model, _, seed = victim.split("-")
    command = [sys.executable, __file__, "train", model, "--seed", seed.removeprefix("seed"), *SETTINGS]
    command += ["--recipe", "short", "--run-dir", str(reference)]
    subprocess.run(command, check=True, capture_output=True)
    weights, others = load_file(home.weights), load_file(reference.weights)
    same = weights.keys() == others.keys() and all((weights[key] == others[key]).all() for key in weights)
    same = same and rows_without_times(home) == rows_without_times(reference)
    say(f"weights and metrics are {'the same, bit for bit' if same else 'NOT the same'}; run directories in {out}")
    return 0 if same and resumed_at >= killed_at > 0 else 1


def run_grid(address: str, doomed: Any, out: Path) -> tuple[str, int, list[str]]:
    """Run the grid and kill a node while it trains.

    Returns:
        The name of the run that was lost, the step of its checkpoint at home just before, and what the grid said.
    """
    command = [sys.executable, __file__, "grid", "--engine", "ray", "--address", address, "--out", str(out), *SETTINGS]
    command += ["--recipes", "short", "--models", "plain20", "--seeds", "2"]
    lines: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as grid:

        def read() -> None:
            for line in grid.stderr or ():
                lines.append(line)
                say(f"  {line.rstrip()}")

        reader = Thread(target=read)
        reader.start()
        victim, step = "", 0
        while grid.poll() is None:
            time.sleep(0.05)
            if step:
                continue
            victim = victim or next(
                (line.split(":")[0] for line in lines if f"on node {doomed.node_id[:8]}" in line), ""
            )
            if victim and (newest := checkpoint_step(RunDir(out / victim))) >= KILL_AFTER:
                step = newest
                say(f"KILLING node {doomed.node_id[:8]}, which trains {victim}, and all of its processes")
                (raylet,) = (info.process.pid for info in doomed.all_processes["raylet"])
                for pid in [raylet, *descendants(raylet)]:
                    os.kill(pid, signal.SIGKILL)
        reader.join()
    if grid.returncode or not step:
        sys.exit(f"the grid ended with code {grid.returncode}, {'' if step else 'before a node could be killed'}")
    return victim, step, lines


if __name__ == "__main__":
    command_line() if EPOCHS in os.environ else sys.exit(main())
