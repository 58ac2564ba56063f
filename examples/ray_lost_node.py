"""A grid on a Ray cluster that loses a node: nothing is lost but the steps since the last checkpoint.

`python examples/ray_lost_node.py` starts a cluster of two nodes on this machine, trains two short runs on it with
`deepres grid --engine ray`, kills one node with SIGKILL in the middle of a run, and then compares that run with the
same one trained without interruption, bit for bit. Net and data are functions in this file, which every node gets. It
needs `pip install 'deepres[ray]'` and CIFAR-10 (`deepres fetch`), of which it uses 100 images, and takes about a
minute on two cores.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import Any

from safetensors.numpy import load_file
from torch import nn

from deepres.data.cifar10 import Cifar10, Split, load_cifar10
from deepres.models import build_model
from deepres.runs.directory import RunDir

HERE = Path(__file__).resolve()
NET = f"{HERE.name}:own_net"
SETTINGS = ["--precision", "float32", "--backend", "eager", "--checkpoint-minutes", "0"]
KILL_AFTER = 10  # steps, of which an epoch has five
RESUMED = r"{}: resuming .* after step ([0-9,]+)"
TIMES = ("seconds", "images_per_second")


def few_images() -> Cifar10:
    """Be the data set: the first 100 training and 100 test images of CIFAR-10."""
    data = load_cifar10()
    train, test = (Split(part.images[:100], part.labels[:100]) for part in (data.train, data.test))
    return Cifar10(train, test)


def own_net(num_classes: int) -> nn.Module:
    """Be the net: one of ours, whose source reaches the nodes as that of any other would."""
    return build_model("plain20", num_classes=num_classes)


def deepres(command: str, epochs: int, *arguments: str) -> subprocess.Popen[str]:
    """Start `deepres train` or `deepres grid` on those images by a recipe of few steps, in this file's folder."""
    recipe = "--recipe" if command == "train" else "--recipes"
    words = [sys.executable, "-m", "deepres", command, *arguments, "--data", f"{HERE.name}:few_images", recipe, "fast"]
    words += ["--set", "name=short", "--set", "batch_size=20", "--set", f"epochs={epochs}", *SETTINGS]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=HERE.parent)


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
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="deepres-example-"))).resolve()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 would let it starve beside other work on this machine
        "RAY_health_check_period_ms": "500",  # five failures in a row make a node dead: by Ray's 3000, 15 seconds late
    }

    say("starting a cluster of two nodes with one core each")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    say(f"the node to be killed is {doomed.node_id[:8]}")
    try:
        victim, killed_at, lines = run_grid(cluster.address, doomed, out, arguments.epochs)
    finally:
        cluster.shutdown()

    home = RunDir(out / victim)
    (resumed_at,) = (
        int(number.replace(",", "")) for line in lines for number in re.findall(RESUMED.format(victim), line)
    )
    say(f"killed when the checkpoint of step {killed_at} lay at home; continued after step {resumed_at}")
    say(f"training {victim} once more, without interruption, to compare")
    reference = RunDir(out / "reference" / victim)
    seed = victim.rpartition("-seed")[2]
    alone = ("--seed", seed, "--run-dir", str(reference))
    with deepres("train", arguments.epochs, NET, *alone) as process:
        process.communicate()
    weights, others = load_file(home.weights), load_file(reference.weights)
    same = weights.keys() == others.keys() and all((weights[key] == others[key]).all() for key in weights)
    same = same and rows_without_times(home) == rows_without_times(reference)
    say(f"weights and metrics are {'the same, bit for bit' if same else 'NOT the same'}; run directories in {out}")
    return 0 if same and resumed_at >= killed_at > 0 else 1


def run_grid(address: str, doomed: Any, out: Path, epochs: int) -> tuple[str, int, list[str]]:
    """Run the grid and kill a node while it trains.

    Returns:
        The name of the run that was lost, the step of its checkpoint at home just before, and what the grid said.
    """
    cluster = ("--engine", "ray", "--address", address, "--out", str(out))
    lines: list[str] = []
    with deepres("grid", epochs, *cluster, "--models", NET, "--seeds", "2") as grid:

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
    sys.exit(main())
