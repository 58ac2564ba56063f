"""Tables of what tuning the recipes measured, from the reports of benchmarks/ablation.py and tuning.py."""

from collections.abc import Mapping
from math import sqrt
from statistics import mean, stdev
from typing import Any

from deepres.report.tables import markdown_table

Report = Mapping[str, Any]


def ablation_table(report: Report) -> str:
    """Return the table of one net: the val error of each variant, and how it differs from the recipe's."""
    reference, *_ = report["val_errors"].values()
    rows = []
    for variant, errors in report["val_errors"].items():
        spread = f"{stdev(errors):.2f}" if len(errors) > 1 else ""
        difference = ""
        if errors is not reference:
            difference = f"{mean(errors) - mean(reference):+.2f}"
            if len(errors) > 1 and len(reference) > 1:
                variance = stdev(errors) ** 2 / len(errors) + stdev(reference) ** 2 / len(reference)
                difference += f" ± {sqrt(variance):.2f}"
        rows.append([variant, f"{mean(errors):.2f}", spread, str(len(errors)), difference])
    headings = [f"{report['model']}, 1/{1 / report['fraction']:.0f}", "val error %", "std", "n", "difference"]
    return markdown_table(headings, rows)


def tuned_table(report: Report, family: str, *, base: str = "none") -> str:
    """Return the table of the runs with plain or residual nets from one base, a row for each variant.

    The base is "none", the first version of `fast`, or a factor that all of them have, "second".
    """
    groups: dict[tuple[str, str, str], list[Report]] = {}
    for row in report["rows"]:
        first, *others = row["variant"].split("+")
        if row["model"].startswith(family) and (first == "second") == (base == "second"):
            variant = ", ".join(others or ["none"] if base == "second" else [first, *others])
            key = (row["model"], f"1/{1 / row['fraction']:.0f}", variant)
            groups.setdefault(key, []).append(row)
    rows = []
    for key, members in groups.items():
        done = [row for row in members if not row["failure"]]
        means = [f"{mean(row[name] for row in done):.2f}" if done else "" for name in ("val_error", "train_error")]
        loss = f"{mean(row['val_loss'] for row in done):.3f}" if done else ""
        spread = f"{stdev(row['val_error'] for row in done):.2f}" if len(done) > 1 else ""
        rows.append([*key, means[0], spread, loss, means[1], str(len(done)), str(len(members) - len(done) or "")])
    headings = ["net", "length", "with", "val error %", "std", "val loss", "train error %", "n", "failed"]
    return markdown_table(headings, rows, text_columns=3)


def effects_table(report: Report, design: str) -> str:
    """Return the tables of the effects of the factors of a design."""
    tables = []
    for entry in report["effects"]:
        if entry["design"] != design:
            continue
        rows = [
            [name, f"{entry['val_error'][name]:+.2f}", f"{entry['val_loss'][name]:+.3f}"]
            for name in entry["val_error"]
        ]
        errors = [f"{entry['val_error_standard_error']:.2f}", f"{entry['val_loss_standard_error']:.3f}"]
        what = f"effect on {entry['model']}, 1/{1 / entry['fraction']:.0f}, {entry['runs']} runs"
        tables.append(markdown_table([what, "val error", "val loss"], [*rows, ["standard error", *errors]]))
    return "\n".join(tables)
