"""The report: every table and figure that finished runs give, as files, and all of them in one web page.

Made from run files alone: no torch, no GPU. Read `write_report` as the table of contents.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from deepres.data.cifar10 import CLASSES, Cifar10, Split, load_cifar10
from deepres.data.release import OFFICIAL, Release
from deepres.errors import UserError
from deepres.files import make_folder, write_atomically
from deepres.report.answers import Answers, confident_errors, draw_confident_errors, draw_confusion, read_answers
from deepres.report.calibration import (
    CLASS_NOTE,
    HEADINGS,
    NOTE,
    TEXT_COLUMNS,
    class_cells,
    draw_reliability,
    metrics_cells,
)
from deepres.report.curves import seeds, training_remark
from deepres.report.figures import draw_error_against_compute, draw_error_against_depth, draw_figure6
from deepres.report.inline import PageFigure, figure6_values, inline_svg
from deepres.report.page import LabeledPictures, Page, PageTable, Picture
from deepres.report.responses import JSON_FILE, draw_figure7, read_responses
from deepres.report.style import FORMATS, encode_figure, write_figure
from deepres.report.tables import table_csv, table_latex, table_markdown, table_rows
from deepres.report.unfinished import draw_unfinished
from deepres.runs.finished import load_runs
from deepres.runs.groups import RunGroup, group_runs, labels_in_order, recipe_key
from deepres.runs.statistics import Summary, check_claims, summarize
from deepres.runs.unfinished import UnfinishedRun, read_unfinished

PAGE = "report.html"


def write_report(
    dirs: Sequence[Path],
    out: Path,
    data_dir: Path | None = None,
    doing: Callable[[str], None] = lambda _: None,
    *,
    unfinished: bool = False,
    release: Release = OFFICIAL,
    formats: Sequence[str] = FORMATS,
) -> tuple[list[Path], list[str]]:
    """Write all tables and figures of finished runs, and report.html, into a folder.

    Args:
        dirs: run directories, or folders that hold some; layer responses are looked for in `out`, then in them.
        out: the folder; made if missing. Files of the same names are replaced.
        data_dir: where CIFAR-10 lies, for the pictures of wrong test images.
        doing: receives what is being drawn.
        unfinished: whether runs that are not finished are shown too, apart from all others and in no statistic.
        release: what the files of CIFAR-10 must be.
        formats: in which the figures are written as files, see `deepres.report.style.FORMATS`.

    Returns:
        The files written, the page last; and remarks on what could not be shown.

    Raises:
        UserError: there is no finished run. Damaged files are left out, with a remark.
    """
    finished, skipped = load_runs(dirs)
    running, skipped = read_unfinished(skipped) if unfinished else ([], skipped)
    if not finished and not running:
        hint = "" if unfinished else ", --unfinished shows those that have begun"
        raise UserError(
            f"no finished run in {', '.join(map(str, dirs))}: `deepres train` or `deepres grid` makes some{hint}"
        )
    groups = group_runs(finished)
    labels = labels_in_order(groups)
    summaries = [summarize(group) for group in groups]
    page = Page(finished, skipped, check_claims(groups), table_rows(summaries))
    make_folder(out)
    folder = Folder(out, write_tables(page, out) if finished else [], formats)
    names = file_names([(label,) for label in labels])
    for label in labels:
        doing(f"curves of recipe {label}")
        members = [summary for summary in summaries if summary.group.label == label]
        name, own = names[label,], [summary.group for summary in members]
        title = f"Figure 6, recipe {label}: {training_remark(own[0].runs[0])}"
        figure = draw_figure6(own)
        drawn = folder.add(figure, f"figure6-{name}", title)
        page.figure6.append(replace(drawn, values=figure6_values(figure, own)))
        if len(own) == 1:
            page.remarks.append(f"error against depth, recipe {label}: {own[0].model} alone has finished runs")
            continue
        title = f"Error against depth, recipe {label}"
        page.depth.append(folder.add(draw_error_against_depth(members), f"error-depth-{name}", title))
    add_unfinished(page, running, folder)
    add_compute(page, summaries, folder)
    add_responses(page, [out, *dirs], folder)
    answers = add_confusion(page, sorted(groups, key=lambda group: recipe_key(group.label)), folder, doing)
    add_metrics(page, answers, folder)
    doing("the most confident errors")
    add_confident_errors(page, answers, summaries, folder, partial(load_cifar10, data_dir, release))
    write_atomically(out / PAGE, page.render())
    return [*folder.written, out / PAGE], page.remarks


@dataclass
class Folder:
    """The folder of the report, and the files written into it."""

    path: Path
    written: list[Path]
    formats: Sequence[str]
    """Of the figures."""

    def add(self, figure: Figure, name: str, title: str) -> PageFigure:
        """Write a figure and return it for the page."""
        self.write(figure, name)
        file = self.path / f"{name}.svg"
        svg = file.read_bytes() if file in self.written else encode_figure(figure, "svg")
        return PageFigure(name, title, inline_svg(svg, name))

    def write(self, figure: Figure, name: str) -> None:
        """Write a figure in all formats."""
        self.written += write_figure(figure, self.path, name, self.formats)


def file_names(keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Name files after labels, a name for each.

    Labels that differ only in what `slug` drops ("x 1" and "x -1", "Mine" and "mine") get numbers.
    """
    names: dict[tuple[str, ...], str] = {}
    for key in dict.fromkeys(keys):
        name = first = "-".join(map(slug, key))
        number = 1
        while name in names.values():
            number += 1
            name = f"{first}-{number}"
        names[key] = name
    return names


def slug(label: str) -> str:
    """Return a label as a part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def write_tables(page: Page, out: Path) -> list[Path]:
    """Write table 6 in Markdown, CSV and LaTeX."""
    tables = {"md": table_markdown, "csv": table_csv, "tex": table_latex}
    paths = [out / f"table6.{suffix}" for suffix in tables]
    for path, lay_out in zip(paths, tables.values(), strict=True):
        write_atomically(path, lay_out(page.table6).encode())
    return paths


def add_unfinished(page: Page, runs: Sequence[UnfinishedRun], folder: Folder) -> None:
    """Draw the curves so far of unfinished runs, recipe by recipe."""
    recipes = dict.fromkeys(str(run.record.recipe["name"]) for run in runs)
    names = file_names([(recipe,) for recipe in recipes])
    for recipe in recipes:
        members = [run for run in runs if run.record.recipe["name"] == recipe]
        title = f"Unfinished runs, recipe {recipe}"
        page.unfinished.append(folder.add(draw_unfinished(members), f"unfinished-{names[recipe,]}", title))


def add_compute(page: Page, summaries: Sequence[Summary], folder: Folder) -> None:
    """Draw the error against compute, of the runs that recorded it."""
    without = [summary.group.model for summary in summaries if summary.group.training_flop is None]
    if without:
        page.remarks.append(f"compute: the runs of {', '.join(dict.fromkeys(without))} recorded no operations")
    if len(without) < len(summaries):
        figure = draw_error_against_compute(summaries)
        page.compute.append(folder.add(figure, "error-compute", "Error against compute, all recipes"))


def add_responses(page: Page, sources: Sequence[Path], folder: Folder) -> None:
    """Draw figure 7, from the first responses.json in some folders."""
    found = next((source / JSON_FILE for source in sources if (source / JSON_FILE).is_file()), None)
    if found is None:
        page.remarks.append(f"figure 7: `deepres responses RUN... --out {folder.path}` makes its data")
        return
    try:
        nets = read_responses(found)
    except UserError as error:
        page.remarks.append(f"figure 7: {error}")
        return
    page.figure7.append(folder.add(draw_figure7(nets), "figure7", "Figure 7: layer responses"))


def add_confusion(
    page: Page, groups: Sequence[RunGroup], folder: Folder, doing: Callable[[str], None]
) -> list[Answers]:
    """Draw the confusion matrix of each group whose runs kept their predictions; return what these hold."""
    names = file_names([(group.model, group.label) for group in groups])
    answers, without = [], []
    for group in groups:
        try:
            found = read_answers(group)
        except UserError as error:
            page.remarks.append(f"answers of {group.model} ({group.label}) on the test set: {error}")
            continue
        if found is None:
            without.append(f"{group.model} ({group.label})")
            continue
        answers.append(found)
        doing(f"answers of {group.model}, recipe {group.label}")
        title = f"{group.model}, recipe {group.label}, {seeds(found.predictions)}"
        name = f"confusion-{names[group.model, group.label]}"
        page.confusion.append(folder.add(draw_confusion(found), name, title))
    if without:
        page.remarks.append(f"answers on the test set: no predictions.npz in the runs of {', '.join(without)}")
    return answers


def add_metrics(page: Page, answers: Sequence[Answers], folder: Folder) -> None:
    """Add what the answers come to, and the reliability diagram of each recipe."""
    if not answers:
        return
    rows, classes = list(map(metrics_cells, answers)), list(map(class_cells, answers))
    headings = (*HEADINGS[:TEXT_COLUMNS], *CLASSES)
    page.metrics.append(PageTable("metrics", HEADINGS, rows, TEXT_COLUMNS, NOTE))
    page.metrics.append(PageTable("class-errors", headings, classes, TEXT_COLUMNS, CLASS_NOTE))
    labels = labels_in_order([found.group for found in answers])
    names = file_names([(label,) for label in labels])
    for label in labels:
        members = [found for found in answers if found.group.label == label]
        title = f"Reliability, recipe {label}"
        page.calibration.append(folder.add(draw_reliability(members), f"calibration-{names[label,]}", title))


def add_confident_errors(
    page: Page, answers: Sequence[Answers], summaries: Sequence[Summary], folder: Folder, load: Callable[[], Cifar10]
) -> None:
    """Draw the wrong test images of the best net of each recipe; the data set, which `load` loads, has to be there."""
    means = {(summary.group.label, summary.group.model): summary.mean for summary in summaries}
    best: dict[str, Answers] = {}
    for found in sorted(answers, key=lambda found: means[found.group.label, found.group.model]):
        best.setdefault(found.group.label, found)
    if not best:
        return
    try:
        test = load().test
    except UserError as error:
        page.remarks.append(f"wrong test images: {error}")
        return
    labels = labels_in_order([found.group for found in best.values()])
    names = file_names([(label,) for label in labels])
    for label in labels:
        found = best[label]
        wrong = confident_errors(found)
        if not same_images(found, test):
            page.remarks.append(
                f"wrong test images: the runs of {found.group.model} ({label}) were tested on other images"
            )
        elif wrong:
            figure = draw_confident_errors(found, wrong, test.images)
            folder.write(figure, f"wrong-{names[label,]}")
            pictures = [Picture(image, test.images[image.index]) for image in wrong]
            page.wrong.append(LabeledPictures(f"{found.group.model}, recipe {label}", pictures))


def same_images(answers: Answers, test: Split) -> bool:
    """Tell whether answers are to the images of a test set, by its labels."""
    return bool(np.array_equal(answers.predictions[0].labels, test.labels))
