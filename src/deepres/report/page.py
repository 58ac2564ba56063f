"""report.html: one file that needs nothing else, neither a server nor the network.

Needs jinja2 (the extra `report`).
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deepres._version import __version__
from deepres.data.cifar10 import CLASSES
from deepres.formatting import duration
from deepres.report.answers import WrongImage
from deepres.report.inline import PageFigure
from deepres.report.tables import (
    CLAIM_HEADINGS,
    CLAIM_TEXT_COLUMNS,
    HEADINGS,
    MISSING,
    NOTES,
    TEXT_COLUMNS,
    TableRow,
    claim_cells,
    find_missing,
    row_cells,
)
from deepres.runs.finished import FinishedRun, SkippedRun
from deepres.runs.statistics import ClaimTest


@dataclass(frozen=True)
class PageTable:
    """A table of the page."""

    name: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int
    """So many columns from the left hold words, the others numbers."""
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A test image and what was made of it."""

    image: WrongImage
    pixels: NDArray[np.uint8]
    """(3, 32, 32)."""

    @property
    def index(self) -> int:
        """The image's place in the test set."""
        return self.image.index

    @property
    def true(self) -> str:
        """The true class."""
        return CLASSES[self.image.true]

    @property
    def predicted(self) -> str:
        """The predicted class."""
        return CLASSES[self.image.predicted]

    @property
    def probability(self) -> str:
        """The probability given to the prediction."""
        return f"{100 * self.image.probability:.1f}%"

    @property
    def base64(self) -> str:
        """The image as a PNG in a data URL."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels.transpose(1, 2, 0)).save(buffer, format="png")
        return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class LabeledPictures:
    """The wrong test images of one net."""

    title: str
    pictures: Sequence[Picture]


@dataclass
class Page:
    """What the page shows. Parts that are empty are left out."""

    runs: Sequence[FinishedRun]
    skipped: Sequence[SkippedRun]
    claims: Sequence[ClaimTest]
    table6: Sequence[TableRow]
    figure6: list[PageFigure] = field(default_factory=list)
    unfinished: list[PageFigure] = field(default_factory=list)
    """Runs that are not finished, which stand in no table."""
    depth: list[PageFigure] = field(default_factory=list)
    compute: list[PageFigure] = field(default_factory=list)
    figure7: list[PageFigure] = field(default_factory=list)
    confusion: list[PageFigure] = field(default_factory=list)
    metrics: list[PageTable] = field(default_factory=list)
    """What the answers come to, and the error of each class."""
    calibration: list[PageFigure] = field(default_factory=list)
    wrong: list[LabeledPictures] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What could not be shown, and how to get it."""

    def render(self) -> bytes:
        """Return the page, UTF-8."""
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
        source = resources.files("deepres.report").joinpath("page.html").read_text(encoding="utf-8")
        held_out = dict.fromkeys(run.held_out for run in self.runs)
        html = environment.from_string(source).render(
            summary=self.summary,
            sections=self.sections,
            claims=PageTable(
                "claims", CLAIM_HEADINGS, [claim_cells(test) for test in self.claims], CLAIM_TEXT_COLUMNS
            ),
            table6=PageTable("table6", HEADINGS, list(map(row_cells, self.table6)), TEXT_COLUMNS),
            notes=NOTES,
            missing=find_missing(self.table6),
            missing_note=MISSING.replace("`", ""),
            held_out=" or ".join(held_out),
            figure6=self.figure6,
            unfinished=self.unfinished,
            depth=self.depth,
            compute=self.compute,
            figure7=self.figure7,
            confusion=self.confusion,
            metrics=self.metrics,
            calibration=self.calibration,
            wrong=self.wrong,
            runs=runs_table(self.runs),
            skipped=self.skipped,
            remarks=self.remarks,
        )
        return html.encode()

    @property
    def summary(self) -> str:
        """One line on what the page is made of."""
        models = {run.model for run in self.runs}
        recipes = sorted({run.recipe for run in self.runs})
        if not self.runs:
            return f"no finished run yet; written by deepres {__version__} from the files of the runs alone"
        return (
            f"{len(self.runs)} finished run{'s' if len(self.runs) > 1 else ''} of {len(models)} "
            f"net{'s' if len(models) > 1 else ''}, recipe{'s' if len(recipes) > 1 else ''} {', '.join(recipes)}; "
            f"written by deepres {__version__} from the files of the runs alone"
        )

    @property
    def sections(self) -> list[tuple[str, str]]:
        """The page's sections: id and title."""
        optional = (
            ("unfinished", "Unfinished", self.unfinished),
            ("depth", "Depth", self.depth),
            ("compute", "Compute", self.compute),
            ("figure7", "Layer responses", self.figure7),
            ("metrics", "Answers", self.metrics),
            ("confusion", "Confusion", self.confusion),
            ("wrong", "Confident errors", self.wrong),
        )
        return [
            ("claims", "Claims"),
            ("table", "Table 6"),
            ("figure6", "Figure 6"),
            *((name, title) for name, title, content in optional if content),
            ("runs", "Runs"),
        ]


def runs_table(runs: Sequence[FinishedRun]) -> PageTable:
    """Return the table of the runs and where they were made."""
    headings = ("run", "recipe", "precision", "device", "versions", "commit")
    numbers = ["seed", "starts", "images/s", "minutes", "last epoch", "best epoch", "train error"]
    with_val = any(run.val_error_last is not None for run in runs)  # on the 45k/5k split
    if with_val:
        numbers.append("val, last epoch")
    rows = [
        [
            run.path.name,
            run.recipe,
            run.precision,
            f"{run.device}: {run.device_name}",
            run.versions,
            run.commit[:10] + ("-dirty" if run.commit.endswith("-dirty") else ""),
            str(run.seed),
            str(1 + len(run.environment.earlier_starts)),
            f"{run.images_per_second:,.0f}",
            f"{run.seconds / 60:,.1f}",
            f"{run.test_error_last:.2f}",
            "" if run.test_error_best is None else f"{run.test_error_best:.2f}",
            f"{run.train_error:.2f}",
            *(["" if run.val_error_last is None else f"{run.val_error_last:.2f}"] if with_val else []),
        ]
        for run in runs
    ]
    total = duration(sum(run.seconds for run in runs))
    caption = (
        f"Errors in percent: test error of the last and of the best epoch. Wall time of all runs together: {total}."
    )
    return PageTable("runs", (*headings, *numbers), rows, len(headings), caption)
