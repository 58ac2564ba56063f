"""What determines a run."""

from dataclasses import dataclass, replace
from typing import Any

from deepres.errors import UserError
from deepres.recipes.recipe import Recipe
from deepres.runs.directory import run_name
from deepres.runs.image_sets import DataRecord
from deepres.runs.schema import Evaluation, RunRecord
from deepres.training.nets import Net, describe_net, describe_sources, name_of
from deepres.training.trained_start import TrainedStart


@dataclass(frozen=True)
class RunConfig:
    """What determines a run, with its data. "auto" means: as the run was begun, or else what suits the machine.

    Example:
        >>> import deepres
        >>> deepres.RunConfig("resnet20", deepres.get_recipe("fast"), seed=1).name
        'resnet20'
    """

    model: Net
    recipe: Recipe
    seed: int = 0
    option: str = "A"
    precision: str = "auto"
    """"auto", "float32", "bfloat16" or "float16"."""
    backend: str = "auto"
    """"auto", "fused", "compiled" or "eager", see `deepres.backends`. It determines the rounding and nothing else, so
    that a run may continue with another one."""
    workers: int = 1
    """Processes among which each mini-batch is divided; batch statistics are those of each share."""
    evaluate_every: int | None = None
    """Epochs from one evaluation, and its row of metrics.jsonl, to the next; the last step is always evaluated. The
    best epoch is chosen among those evaluated. None: as the run was begun, or else 1."""
    fraction: float = 1.0
    """The share of the training images, the same of each class, that is trained on. The images of a smaller share are
    among those of a larger one; those held out as val are never among them."""

    start: TrainedStart | None = None
    """Trained weights that the run begins with, all but the last layer's; None: fresh ones."""

    def __post_init__(self) -> None:
        every = 1 if self.evaluate_every is None else self.evaluate_every
        for name, value, least in (("seed", self.seed, 0), ("evaluate_every", every, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{name} is {value!r}: it must be a whole number of at least {least}")
        number = isinstance(self.fraction, int | float) and not isinstance(self.fraction, bool)
        if not number or not 0 < self.fraction <= 1:
            raise UserError(f"fraction is {self.fraction!r}: it must be above 0 and at most 1")

    @property
    def name(self) -> str:
        """What the net is called."""
        return name_of(self.model)

    def run_name(self, data: str = "cifar10") -> str:
        """Return the usual name of the run's directory; `data` is what `deepres.data.datasets.label_of` gives."""
        return run_name(
            self.name,
            self.recipe.name,
            self.seed,
            option=self.option,
            split=self.recipe.split,
            fraction=self.fraction,
            data=data,
        )

    def evaluates_after(self, epoch: int) -> bool:
        """Tell whether the end of an epoch, counted from 1, is followed by an evaluation."""
        return epoch % (self.evaluate_every or 1) == 0

    def settled_by(self, begun: RunRecord) -> "RunConfig":
        """Return the configuration with precision and evaluations as the run was begun, where it leaves them open."""
        return replace(
            self,
            precision=begun.precision if self.precision == "auto" else self.precision,
            evaluate_every=self.evaluate_every or begun.evaluation.every,
        )

    def record(self, data: DataRecord) -> RunRecord:
        """Return the content of recipe.json for a run on certain data."""
        return RunRecord(
            model=self.name,
            option=self.option,
            seed=self.seed,
            precision=self.precision,
            workers=self.workers,
            recipe=self.recipe.to_json(),
            data=data,
            evaluation=Evaluation(self.recipe.held_out, self.evaluate_every or 1, self.precision),
            others={
                **describe_net(self.model),
                **describe_sources(self.recipe),
                **({} if self.start is None else self.start.record()),
            },
        )

    def to_json(self, data: DataRecord) -> dict[str, Any]:
        """Return the record as plain data."""
        return self.record(data).to_json()
