"""The report: every table and figure that finished runs give, as files, and all of them in one web page.

Made from run files alone: no torch, no GPU. Read `write_report` as the table of contents.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepres.data.cifar10 import Split, load_cifar10
from deepres.errors import UserError
from deepres.files import make_folder, write_atomically
from deepres.report.answers import Answers, draw_confusion, draw_surest_errors, read_answers, surest_errors
from deepres.report.charts import compute_chart, confusion_chart, depth_chart, figure6_charts, figure7_charts
from deepres.report.curves import training_remark
from deepres.report.figures import draw_error_against_compute, draw_error_against_depth, draw_figure6
from deepres.report.page import LabelledCharts, LabelledPictures, Page, Picture
from deepres.report.responses import JSON_FILE, draw_figure7, read_responses
from deepres.report.style import write_figure
from deepres.report.tables import table_csv, table_latex, table_markdown, table_rows
from deepres.runs.finished import load_runs
from deepres.runs.groups import group_runs, labels_in_order, recipe_key
from deepres.runs.statistics import Summary, check_claims, summarise

PAGE = "report.html"


def write_report(
    dirs: Sequence[Path], out: Path, data_dir: Path | None = None, doing: Callable[[str], None] = lambda _: None
) -> tuple[list[Path], list[str]]:
    """Write all tables and figures of finished runs, and report.html, into a folder.

    Args:
        dirs: run directories, or folders that hold some; layer responses are looked for in `out`, then in them.
        out: the folder; made if missing. Files of the same names are replaced.
        data_dir: where CIFAR-10 lies, for the pictures of wrong test images.
        doing: is told what is being drawn.

    Returns:
        The files written, the page last; and remarks on what could not be shown.

    Raises:
        UserError: there is no finished run. Damaged files are left out, with a remark.
    """
    finished, skipped = load_runs(dirs)
    if not finished:
        raise UserError(
            f"no finished run in {', '.join(map(str, dirs))}: `deepres train` or `deepres grid` makes some"
        )
    groups = group_runs(finished)
    labels = labels_in_order(groups)
    summaries = [summarise(group) for group in groups]
    page = Page(finished, skipped, check_claims(groups), table_rows(summaries))
    make_folder(out)
    written = write_tables(page, out)
    for label in labels:
        doing(f"curves of recipe {label}")
        members = [summary for summary in summaries if summary.group.label == label]
        own = [summary.group for summary in members]
        written += write_figure(draw_figure6(own), out, f"figure6-{slug(label)}")
        remark = training_remark(own[0].runs[0]).capitalize()
        page.figure6.append(LabelledCharts(label, remark, figure6_charts(own, f"figure6-{slug(label)}")))
        if len(own) == 1:
            page.remarks.append(f"error against depth, recipe {label}: {own[0].model} alone has finished runs")
            continue
        written += write_figure(draw_error_against_depth(members), out, f"error-depth-{slug(label)}")
        page.depth.append(depth_chart(members, f"depth-{slug(label)}"))
    written += add_compute(page, summaries, out)
    written += add_responses(page, [out, *dirs], out)
    ordered = sorted(groups, key=lambda group: recipe_key(group.label))
    answers, without = [], []
    for group in ordered:
        try:
            found = read_answers(group)
        except UserError as error:
            page.remarks.append(f"answers of {group.model} ({group.label}) on the test set: {error}")
            continue
        if found is None:
            without.append(f"{group.model} ({group.label})")
            continue
        answers.append(found)
        doing(f"answers of {found.group.model}, recipe {found.group.label}")
        name = f"confusion-{found.group.model}-{slug(found.group.label)}"
        written += write_figure(draw_confusion(found), out, name)
        page.confusion.append(confusion_chart(found, name))
    if without:
        page.remarks.append(f"answers on the test set: no predictions.npz in the runs of {', '.join(without)}")
    doing("the surest errors")
    written += add_surest_errors(page, answers, summaries, out, data_dir)
    write_atomically(out / PAGE, page.render())
    return [*written, out / PAGE], page.remarks


def slug(label: str) -> str:
    """Return a recipe's label as a part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def write_tables(page: Page, out: Path) -> list[Path]:
    """Write table 6 in Markdown, CSV and LaTeX."""
    tables = {"md": table_markdown, "csv": table_csv, "tex": table_latex}
    paths = [out / f"table6.{suffix}" for suffix in tables]
    for path, lay_out in zip(paths, tables.values(), strict=True):
        write_atomically(path, lay_out(page.table6).encode())
    return paths


def add_compute(page: Page, summaries: Sequence[Summary], out: Path) -> list[Path]:
    """Draw the error against compute, of the runs that recorded it."""
    chart = compute_chart(summaries, "compute")
    without = [s.group.model for s in summaries if s.group.training_flop is None]
    if without:
        page.remarks.append(f"compute: the runs of {', '.join(dict.fromkeys(without))} recorded no operations")
    if chart is None:
        return []
    page.compute.append(chart)
    return write_figure(draw_error_against_compute(summaries), out, "error-compute")


def add_responses(page: Page, folders: Sequence[Path], out: Path) -> list[Path]:
    """Draw figure 7, from the first responses.json in some folders."""
    found = next((folder / JSON_FILE for folder in folders if (folder / JSON_FILE).is_file()), None)
    if found is None:
        page.remarks.append(f"figure 7: `deepres responses RUN... --out {out}` makes its data")
        return []
    try:
        nets = read_responses(found)
    except UserError as error:
        page.remarks.append(f"figure 7: {error}")
        return []
    page.figure7 += figure7_charts(nets)
    return write_figure(draw_figure7(nets), out, "figure7")


def add_surest_errors(
    page: Page, answers: Sequence[Answers], summaries: Sequence[Summary], out: Path, data_dir: Path | None
) -> list[Path]:
    """Draw the wrong test images of the best net of each recipe; the data set has to be there."""
    means = {(summary.group.label, summary.group.model): summary.mean for summary in summaries}
    best: dict[str, Answers] = {}
    for found in sorted(answers, key=lambda found: means[found.group.label, found.group.model]):
        best.setdefault(found.group.label, found)
    if not best:
        return []
    try:
        test = load_cifar10(data_dir).test
    except UserError as error:
        page.remarks.append(f"wrong test images: {error}")
        return []
    written = []
    for label in labels_in_order([found.group for found in best.values()]):
        found = best[label]
        wrong = surest_errors(found)
        if not same_images(found, test):
            page.remarks.append(
                f"wrong test images: the runs of {found.group.model} ({label}) were tested on other images"
            )
        elif wrong:
            written += write_figure(draw_surest_errors(found, wrong, test.images), out, f"wrong-{slug(label)}")
            pictures = [Picture(image, test.images[image.index]) for image in wrong]
            page.wrong.append(LabelledPictures(f"{found.group.model}, recipe {label}", pictures))
    return written


def same_images(answers: Answers, test: Split) -> bool:
    """Tell whether answers are to the images of a test set, by its labels."""
    return bool(np.array_equal(answers.predictions[0].labels, test.labels))
