"""Write the generated parts of the pages from the data they state; `--check` only tells whether they are up to date.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from statistics import mean, median
from textwrap import fill
from typing import Any

from comparison_tables import changes_table, lengths_table, mean_and_spread, precisions_table
from gpu_tables import gpu_speed_table, gpu_splits_table
from tuning_tables import ablation_table, effects_table, tuned_table

from deepres.recipes.named import get_recipe, paper
from deepres.recipes.recipe import SPLITS
from deepres.report.tables import find_missing, markdown_table, noted_table, row_cells, table_rows
from deepres.runs.finished import FinishedRun, depth_of, load_runs
from deepres.runs.groups import RunGroup, group_runs
from deepres.runs.published import PUBLISHED
from deepres.runs.statistics import Summary, summarize
from deepres.zoo.catalogue import PACKAGED, list_cards

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FLOAT32 = RESULTS / "precisions"  # runs beside which those of bfloat16 stand
STUDY = RESULTS / "study"  # runs with one line changed, and their baseline
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def all_runs(*folders: Path) -> list[FinishedRun]:
    """Return the runs in folders that hold finished ones alone."""
    runs, skipped = load_runs(folders)
    assert not skipped, skipped[0].reason
    return runs


def published() -> str:
    """Return the table of what others published."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        [name, cell(p.paper), cell(p.repository_last), cell(p.repository_best), p.note]
        for name, p in PUBLISHED.items()
    ]
    return markdown_table(["net", "paper", "public repository, last epoch", "its best epoch", "note"], rows)


def speed() -> str:
    """Return the tables of training speed measured by benchmarks/train_speed.py, one for each kind of machine."""
    reports = sorted((ROOT / "benchmarks" / "results").glob("train_speed*.json"))
    return "\n".join(speed_of(json.loads(path.read_text())) for path in reports)


def speed_of(report: dict[str, Any]) -> str:
    """Return the table of one machine."""
    labels = {"conventional": "the usual way: float32, eager, `DataLoader`"}
    for precision in ("float32", "bfloat16"):
        labels |= {
            f"loop {precision} 1 1": f"**deepres, {precision}, the whole loop**",
            f"loop {precision} 1 2": f"deepres, {precision}, `--evaluate-every 2`",
            f"loop {precision} 2 1": f"deepres, {precision}, two processes",
            f"loop {precision} 1": f"**deepres, {precision}, the whole loop**",
            f"loop {precision} 4": f"deepres, {precision}, `--evaluate-every 4`",
            f"bare {precision}": f"deepres, {precision}, the bare step",
            f"bare {precision} 32": f"deepres, {precision}, the bare step",
            f"bare {precision} 24": f"deepres, {precision}, the bare step on images of 24 x 24",
            f"compiled {precision}": f"torch.compile, {precision}, the bare step",
        }
    rows = []
    native = any("ceiling bfloat16" in of["rates"] for of in report["models"].values())  # bfloat16 in hardware
    for name, measured in report["models"].items():
        rates = measured["rates"]
        for contender, label in labels.items():
            if contender not in rates:
                continue
            values = rates[contender]
            ratio = median(a / b for a, b in zip(values, rates["conventional"], strict=True))
            row = [name, label, f"{median(values):,.0f}", f"{min(values):,.0f} to {max(values):,.0f}", f"{ratio:.2f}x"]
            if native:
                # In float32 torch's own matrix product is slow on some processors: no ceiling.
                ceiling = rates["ceiling bfloat16"] if "bfloat16" in contender else None
                work = (24 / 32) ** 2 if contender.endswith(" 24") else 1.0  # of an image, relative to a full one
                share = median(work * a / b for a, b in zip(values, ceiling, strict=True)) if ceiling else None
                row.append("" if share is None else f"{share:.0%}")
            rows.append([*row, f"{measured['peak_mb'][contender]:,.0f}"])
    headings = ["net", "how", "images/s", f"of {report['rounds']} rounds", "ratio"]
    headings += ["of the matmul rate"] if native else []
    table = markdown_table([*headings, "peak MB of a process"], rows, text_columns=2)
    instructions = "AMX" if report.get("tiles") else "AVX-512 BF16" if native else "AVX2, no bfloat16"
    text = (
        f"{report['processor']}, {report['cores']} cores, {instructions}, torch {report['torch']}, "
        f"commit {report['commit'][:7]}. "
        f"From typing `deepres train` to the end of the first step: {report['startup_warm_seconds']:.1f} s; "
        f"{report['startup_cold_seconds']:.1f} s where the kernels are compiled first."
    )
    if note := report.get("note"):
        text += f" {note}"
    return f"{table}\n{fill(text, 120, break_on_hyphens=False)}\n"


def table_time() -> str:
    """Return how long the whole table takes, from what benchmarks/table_time.py measured last, where it did."""
    folder = ROOT / "benchmarks" / "results"
    cpu, gpu = folder / "table_time.json", folder / "table_time_gpu.json"
    found = [table_time_of(json.loads(path.read_text()), path == gpu) for path in (cpu, gpu) if path.exists()]
    if sentences := [sentence for sentence in found if sentence]:
        sentences.append(
            "These times are extrapolated from measured speed, a few seconds of each net, by "
            "`benchmarks/table_time.py`; each further seed takes about as long again."
        )
    else:
        sentences.append("How long that takes on your machine: `python benchmarks/table_time.py`, or `deepres bench`.")
    if not gpu.exists():
        sentences.append("It has not been measured on a GPU.")
    return fill(" ".join(sentences), 120, break_on_hyphens=False) + "\n"


def table_time_of(report: dict[str, Any], on_gpu: bool) -> str:
    """Return what was measured on one machine, as a sentence; "" if it was earlier versions of the recipes alone."""
    recipes = {
        name: of
        for name, of in report["recipes"].items()
        if of["epochs"] == get_recipe(name).total_epochs(SPLITS["50k"])
    }
    if not recipes:
        return ""
    times = " and ".join(
        f"{of['seconds'] / 3600:.1f} hours by the recipe `{name}` ({of['epochs']} epochs)"
        for name, of in recipes.items()
    )
    (num_nets,) = {len(of["models"]) for of in recipes.values()}
    device = report["device"] + ("" if on_gpu else f", {report['cores']} cores,")
    return (
        f"On {device} in {report['precision']}, {report['jobs']} at a time with {report['threads']} "
        f"thread{'s' if report['threads'] > 1 else ''} each, one seed of all {num_nets} nets takes {times}."
    )


def summaries() -> list[Summary]:
    """Return the statistics of the committed runs, as `deepres results` orders them."""
    folder = ROOT / "results"
    return [summarize(group) for group in group_runs(load_runs([folder])[0])] if folder.is_dir() else []


def claim() -> str:
    """Return what the paper's ResNet-20 reaches, at all and in a fraction of its compute, and in what time."""
    images = paper().compute(SPLITS["50k"])
    sentences = []
    for summary in summaries():
        runs = summary.group.runs
        recipe = summary.group.label
        if summary.group.model != "resnet20" or recipe not in ("paper", "fast", "faster"):
            continue
        error = mean_and_spread([run.test_error_last for run in runs])
        part = images / float(runs[0].result.compute or 0)
        cost = "" if recipe == "paper" else f" for 1/{part:.0f} of the paper's training compute"
        sentences.append(
            f"ResNet-20 by the recipe `{recipe}`: **{error}%** test error at the last "
            f"step (n = {summary.n}; the paper: {summary.paper:.2f}%){cost}{claimed_time(recipe)}."
        )
    if not sentences:
        return "No runs are committed yet.\n"
    return "\n".join(fill(sentence, 120) for sentence in sentences) + "\n"


def claimed_time(recipe: str) -> str:
    """Return how long ResNet-20 takes by a recipe where nothing else runs, if that was measured."""
    path = ROOT / "benchmarks" / "results" / "time_to_accuracy.json"
    report = json.loads(path.read_text()) if path.exists() else {"rows": []}
    now = json.loads(json.dumps(get_recipe(recipe).to_json()))  # not an earlier version of that name
    runs = [run for row in report["rows"] if row["recipe"] == now for run in row["runs"]]
    if not runs:
        return ""
    minutes, (where,) = mean(run["seconds"] for run in runs) / 60, {(run["device"], run["precision"]) for run in runs}
    timed = "one timed alone" if len(runs) == 1 else f"mean of {len(runs)} timed alone"
    return f"; a run takes {minutes:.0f} minutes on {' in '.join(where)} ({timed})"


def reached() -> str:
    """Return the README's table: the nets and recipes that were trained, and in a line those that were not."""
    rows = table_rows(summaries())
    images = paper().compute(SPLITS["50k"])
    lines = []
    for row in rows:
        if row.summary is None:
            continue
        label, net, error, runs, _, published, repository, *_ = row_cells(row)
        share = float(row.summary.group.runs[0].result.compute or 0.0) / images
        compute = f"{share:g}" if share >= 1 else f"1/{1 / share:.0f}"
        lines.append([net, error, runs, label, published, repository, compute])
    if not lines:
        return "No runs are committed yet.\n"
    headings = ["net", "test error %", "n", "recipe", "the paper", "public repository", "compute"]
    table = markdown_table(headings, lines)
    missing = "; ".join(f"{', '.join(part.models)} by `{part.recipe}`" for part in find_missing(rows))
    return table + (f"\n{fill(f'Not trained yet: {missing}.', 120)}\n" if missing else "")


def results() -> str:
    """Return table 6 from the committed runs."""
    rows = table_rows(summaries())
    if not rows:
        return "No runs are committed yet.\n"
    return noted_table(rows) + "\n"


def zoo() -> str:
    """Return the table of the trained weights that come with the package."""
    cards = list_cards(PACKAGED)
    if not cards:
        return "None are published yet.\n"
    rows = [
        [
            f"[{card.name}](../src/deepres/zoo/weights/{card.name}.md)",  # from docs/
            f"{card.num_parameters:,}",
            f"{card.test_error_last:.2f}",
            card.mean_and_std,
            str(card.num_seeds),
            f"{card.epochs:g}",
            f"{card.num_bytes / 1e6:.1f}",
        ]
        for card in cards
    ]
    headings = ["weights", "parameters", "test error %", "mean ± std of all seeds", "seeds", "epochs", "MB"]
    return markdown_table(headings, rows)


def ablation() -> str:
    """Return the tables of benchmarks/ablation.py, one for each net that it was run on."""
    reports = [json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("ablation_*.json")]
    return "\n".join(map(ablation_table, sorted(reports, key=lambda of: (depth_of(of["model"]), of["model"]))))


@cache
def tuning() -> dict[str, Any]:
    """Return what benchmarks/tuning.py measured."""
    content: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "tuning.json").read_text())
    return content


def versions() -> str:
    """Return the test errors of the versions of `fast` and `faster`, the earlier ones' from the rows of their runs."""
    errors: dict[tuple[str, str], dict[str, list[float]]] = {}
    with (ROOT / "benchmarks" / "results" / "fast_earlier.csv").open() as file:
        for row in csv.DictReader(file):
            of_net = errors.setdefault((row["recipe"], row["model"]), {})
            of_net.setdefault(row["version"], []).append(float(row["test_error_last"]))
    for group in (summary.group for summary in summaries()):
        if (key := (group.label, group.model)) in errors:
            errors[key]["now"] = [run.test_error_last for run in group.runs]
    rows = []
    for (recipe, model), found in sorted(errors.items()):
        cells = []
        for version in ("first", "second", "third", "now"):
            of_version = found.get(version, [])
            cells += [mean_and_spread(of_version), str(len(of_version))] if of_version else ["", ""]
        rows.append([recipe, model, *cells, f"{PUBLISHED[model].paper:.2f}"])
    headings = ["recipe", "net, test error %", "first", "n", "second", "n", "third", "n", "now", "n", "the paper"]
    return markdown_table(headings, rows, text_columns=2)


def compute_curve() -> str:
    """Return the test error of the recipe at several lengths, by benchmarks/time_to_accuracy.py, now and at first."""
    folder = ROOT / "benchmarks" / "results"
    cells: dict[str, dict[str, list[str]]] = {}
    for version, name in (("now", "error_compute.json"), ("first", "error_compute_first.json")):
        report = json.loads((folder / name).read_text())
        for row in report["rows"]:
            errors = [run["test_error_last"] for run in row["runs"]]
            length = f"1/{1 / row['compute_fraction']:.0f}"
            found = [f"{row['recipe']['steps']:,}", mean_and_spread(errors), str(len(errors))]
            cells.setdefault(length, {})[version] = found
    missing = ["", "", ""]
    lengths = sorted(cells, key=lambda length: -int(length.partition("/")[2]))
    rows = [[length, *cells[length].get("first", missing), *cells[length].get("now", missing)] for length in lengths]
    headings = [f"{report['model']}, of the paper's compute", "steps of the first version", "test error %", "n"]
    return markdown_table([*headings, "steps now", "test error %", "n"], rows, text_columns=1)


def compute_spent() -> str:
    """Return what the committed runs took: how many, how long in sum, and on which chips."""
    labels: dict[str, list[RunGroup]] = {}
    for summary in summaries():
        labels.setdefault(summary.group.label, []).append(summary.group)
    rows = []
    for label, groups in labels.items():
        runs = [run for group in groups for run in group.runs]
        devices = "; ".join(sorted({f"{run.device_name.split(',')[0]}, {run.precision}" for run in runs}))
        hours = sum(run.seconds for run in runs) / 3600
        rows.append([label, devices, ", ".join(group.model for group in groups), str(len(runs)), f"{hours:.1f}"])
    return markdown_table(["recipe", "on", "nets", "runs", "hours in sum"], rows, text_columns=3)


def install_size() -> str:
    """Return what installing takes, measured by benchmarks/install_size.py."""
    report = json.loads((ROOT / "benchmarks" / "results" / "install_size.json").read_text())
    core, *extras = report["sizes"].items()
    rows = [["deepres itself, its wheel", "", f"{report['wheel_megabytes']:.1f}"]]
    rows.append(["with all that it needs", str(core[1]["packages"]), f"{core[1]['megabytes']:,.0f}"])
    rows.append(["of that PyTorch, its build for CPUs", "", f"{report['torch_megabytes']:,.0f}"])
    rows += [[f"`{name}` adds", str(size["packages"]), f"{size['megabytes']:,.0f}"] for name, size in extras]
    times = [f"`{command}` takes {seconds:.2f} s" for command, seconds in report["seconds"].items()]
    text = fill(f"Then {', '.join(times[:-1])} and {times[-1]}, on {report['device']}.", 125)
    return f"{markdown_table(['what', 'packages', 'MB'], rows, text_columns=1)}\n{text}\n"


def tested_on() -> str:
    """Return on which systems the committed runs were trained, from what each recorded at its last start."""
    counts: Counter[tuple[str, ...]] = Counter()
    for run in all_runs(ROOT / "results", STUDY):
        e = run.environment
        assert e.platform is not None
        system = " ".join(re.findall(r"^[A-Za-z]+|x86_64|aarch64|arm64|AMD64", e.platform))
        chip = str(e.device_name).split(",")[0]
        counts[system, chip, run.precision, str(e.backend), f"{e.python}, {str(e.torch).split('+')[0]}"] += 1
    rows = [[*key, str(number)] for key, number in sorted(counts.items())]
    return markdown_table(["system", "chip", "precision", "backend", "Python, PyTorch", "runs"], rows, text_columns=5)


PARTS: dict[str, Callable[[], str]] = {
    "ablation": ablation,
    "claim": claim,
    "compute-curve": compute_curve,
    "compute-spent": compute_spent,
    "install-size": install_size,
    "gpu-speed": lambda: gpu_speed_table(json.loads((RESULTS / "gpu_speed_h100.json").read_text())),
    "gpu-splits": lambda: gpu_splits_table(json.loads((RESULTS / "gpu_splits_h100.json").read_text())),
    "longer": lambda: lengths_table(all_runs(ROOT / "results", RESULTS / "best"), ("resnet20", "resnet56"), "paper"),
    "precisions": lambda: precisions_table(all_runs(ROOT / "results", FLOAT32), "resnet20", "fast"),
    "published": published,
    "reached": reached,
    "results": results,
    "speed": speed,
    "study": lambda: changes_table(all_runs(STUDY)),
    "table-time": table_time,
    "tested-on": tested_on,
    "tuning-effects-after": lambda: effects_table(tuning(), "after"),
    "tuning-effects-chains": lambda: effects_table(tuning(), "chains"),
    "tuning-effects-long": lambda: effects_table(tuning(), "long"),
    "tuning-effects-ingredients": lambda: effects_table(tuning(), "ingredients"),
    "tuning-effects-second": lambda: effects_table(tuning(), "second"),
    "tuning-plain": lambda: tuned_table(tuning(), "plain"),
    "tuning-resnet": lambda: tuned_table(tuning(), "resnet"),
    "tuning-second": lambda: tuned_table(tuning(), "resnet", base="second"),
    "versions": versions,
    "zoo": zoo,
}


def generate(text: str) -> str:
    """Return the text with every generated part written anew."""
    return PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


def main() -> None:
    """Write the pages that are not up to date, or tell which they are."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in pages}
    new = {name: made for name, text in texts.items() if (made := generate(text)) != text}
    if new and "--check" in sys.argv[1:]:
        sys.exit(f"{', '.join(new)} not up to date: run `make readme`")
    for name, text in new.items():
        (ROOT / name).write_text(text)


if __name__ == "__main__":
    main()
