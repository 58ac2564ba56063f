"""Tables of what benchmarks/gpu_speed.py and benchmarks/gpu_splits.py measured on GPUs."""

from collections.abc import Mapping
from statistics import median
from textwrap import fill
from typing import Any

from deepres.recipes.named import get_recipe
from deepres.report.tables import markdown_table
from deepres.runs.finished import depth_of

CONVENTIONAL = 128, 32  # images of a step by the usual way, and their rows
LABELS = {
    "conventional": "the usual way: float32, eager, `DataLoader`",
    "eager, plain": "plain torch, bfloat16, each operation started by the host",
    "eager, graph": "plain torch, one graph",
    "eager, graph, 3": "plain torch, one graph each, 3 nets",
    "eager, graph, 6": "plain torch, one graph each, 6 nets",
    "fused, plain": "fused kernels, each started by the host",
    "fused, graph": "**fused kernels, one graph**",
    "fused, graph, 3": "fused kernels, one graph each, 3 nets",
    "fused, graph, 6": "**fused kernels, one graph each, 6 nets**",
}
DEPTHS = (20, 32, 44, 56)  # of the paper's nets, plain and residual


def gpu_speed_table(report: Mapping[str, Any]) -> str:
    """Return the table of training speed on one GPU, and how long the paper's table takes at that speed."""
    rows = []
    for name, measured in report["measured"].items():
        net, recipe = name.split()
        times = measured["milliseconds"]
        batch, size = measured["batch_size"], measured["size"]
        comparable = (batch, size) == CONVENTIONAL  # else a step of the usual way is another one
        for way, label in LABELS.items():
            if way not in times or (way == "conventional" and not comparable):
                continue
            ratio = median(times["conventional"]) / median(times[way]) if comparable else None
            row = [net, recipe, f"{batch} of {size} x {size}", label, f"{median(times[way]):.2f}"]
            rows.append([*row, f"{1e3 * batch / median(times[way]):,.0f}", "" if ratio is None else f"{ratio:.1f}x"])
    headings = ["net", "recipe", "images of a step", "how", "ms a step", "images/s", "ratio"]
    table = markdown_table(headings, rows, text_columns=4)
    text = (
        f"{report['gpu']}, {report['cores']} cores, torch {report['torch']}, commit {report['commit'][:7]}; medians "
        f"of {report['rounds']} rounds. The milliseconds of several nets are those in which each takes a step, "
        f"divided by their number. {paper_minutes(report)}"
    )
    return f"{table}\n{fill(text, 120, break_on_hyphens=False)}\n"


def paper_minutes(report: Mapping[str, Any]) -> str:
    """Return how long the paper's table takes, from the nets of 20 and 56 layers and its recipe."""
    measured = report["measured"]
    known = {
        depth_of(name.split()[0]): median(of["milliseconds"]["fused, graph, 6"])
        for name, of in measured.items()
        if name.endswith(" paper")
    }
    (shallow, first), (deep, last) = min(known.items()), max(known.items())
    steps = get_recipe("paper").total_steps(50_000)
    each = [first + (depth - shallow) * (last - first) / (deep - shallow) for depth in DEPTHS]
    minutes = 2 * sum(each) * steps / 60e3  # plain and residual
    return (
        f"By six at a time, the training steps of the paper's eight nets by its recipe come to {minutes:.0f} minutes "
        f"a seed: interpolated between the nets of {shallow} and {deep} layers, plain nets taken for as slow as "
        "residual ones, without starts and evaluations."
    )


def gpu_splits_table(report: Mapping[str, Any]) -> str:
    """Return the time of ResNet-20's kernels by each way to split their work."""
    candidates = report["microseconds"]
    wholes = [key for key in next(iter(candidates.values())) if key.startswith("whole")]
    rows = []
    for name, times in candidates.items():
        chosen = [
            f"{table.lower().replace('_', ' ')} {channels}"
            for table, channels in (key.split() for key, best in report["fastest"].items() if best == name)
        ]
        rows.append([name, ", ".join(chosen), *(f"{times[key]:.0f}" for key in wholes)])
    headings = ["split", "fastest in, by channels"]
    headings += [f"µs a step, {batch} of {size} x {size}" for batch, size in (key[6:].split("x") for key in wholes)]
    table = markdown_table(headings, rows, text_columns=2)
    text = f"{report['gpu']}, torch {report['torch']}, commit {report['commit'][:7]}, six nets at once."
    if note := report.get("note"):
        text += f" {note}"
    return f"{table}\n{fill(text, 120, break_on_hyphens=False)}\n"
