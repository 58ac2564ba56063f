"""What a run writes about itself: one class for each file, by which it is written and read. Needs no torch.

recipe.json holds a `RunRecord`, each line of metrics.jsonl an `EpochRow`, environment.json an `Environment` and
result.json a `Result`; predictions.npz is `deepres.runs.predictions.Predictions`.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deepres.errors import UserError
from deepres.recipes.chains import concerns_chains, has_shortcuts
from deepres.recipes.recipe import SPLITS, held_out_name
from deepres.runs.content import Content, check_numbers, object_in, unusual_part
from deepres.runs.image_sets import DataRecord, cifar10_record
from deepres.runs.metrics import Metrics


@dataclass(frozen=True)
class Evaluation:
    """How a run is evaluated while it trains; the last evaluation is always in float32."""

    set: str
    """ "test" or "val": the set by whose error the best epoch is chosen."""
    every: int
    """Epochs from one evaluation to the next."""
    precision: str
    """ "float32", "bfloat16" or "float16", of the evaluations before the last."""

    @classmethod
    def from_json(cls, content: Content, path: Path) -> "Evaluation":
        """Read the part "evaluation" of recipe.json."""
        check_numbers(content, ("every",), path)
        if content.get("set") not in ("test", "val"):
            raise UserError(f"{path} is damaged (evaluation.set is {content.get('set')!r})")
        return cls(content["set"], content["every"], str(content.get("precision")))


RUN_KEYS = ("model", "option", "seed", "precision", "workers", "recipe", "data", "evaluation")


@dataclass(frozen=True)
class RunRecord:
    """recipe.json: all that determines a run, its weights and its numbers."""

    model: str
    option: str
    seed: int
    precision: str
    workers: int
    recipe: Content
    """What `Recipe.to_json` returned, by whatever version of this package, as far as it applies to the net."""
    data: DataRecord
    evaluation: Evaluation
    others: Content = field(default_factory=dict)
    """What else the file holds, written by a later version."""

    def __post_init__(self) -> None:
        """Leave out of the recipe what does not apply to the net."""
        recipe = {key: value for key, value in self.recipe.items() if self.applies(f"recipe.{key}")}
        object.__setattr__(self, "recipe", recipe)

    @property
    def is_own_net(self) -> bool:
        """Whether the net is one of the user's own, which may be named like one of ours."""
        return "net" in self.others

    @property
    def is_from_scratch(self) -> bool:
        """Whether one of our nets was trained, from fresh weights."""
        return not self.is_own_net and "start" not in self.others

    @property
    def is_as_published(self) -> bool:
        """Whether others published an error for such a net: one of ours, on CIFAR-10, with shortcuts of option A."""
        return self.option == "A" and self.data.name == "CIFAR-10" and self.is_from_scratch

    def applies(self, setting: str) -> bool:
        """Tell whether a setting such as "recipe.chain.gain" applies to the net; to one of one's own, each does."""
        return self.is_own_net or not (concerns_chains(setting) and has_shortcuts(self.model))

    @classmethod
    def from_json(
        cls, content: Content, path: Path, *, rows: Iterable[Any] = (), default: "RunRecord | None" = None
    ) -> "RunRecord":
        """Read the content of recipe.json.

        Runs begun before data and evaluation were recorded trained on the whole CIFAR-10; how often they were
        evaluated is seen from their rows.

        Args:
            content: the JSON object.
            path: where it comes from, for error messages.
            rows: the lines of metrics.jsonl as far as there are some.
            default: gives what cannot be known otherwise; without it, such a run was evaluated at each epoch.

        Raises:
            UserError: the content is not that of a recipe.json.
        """
        if missing := [key for key in ("model", "option", "seed", "precision", "recipe") if key not in content]:
            raise UserError(f"{path} is damaged (no {missing[0]!r})")
        recipe = _checked_recipe(content["recipe"], path)
        kinds = {"model": str, "option": str, "seed": int, "precision": str}
        for key, kind in kinds.items():
            if type(content[key]) is not kind:
                raise UserError(f"{path} is damaged ({key} is {content[key]!r})")
        if "data" in content:
            data = DataRecord.from_json(object_in(content, "data", path), path)
        else:
            data = cifar10_record(recipe["split"], recipe.get("split_seed", 0))
            if default is not None and data.train.digest is None:
                data = default.data
        if "evaluation" in content:
            evaluation = Evaluation.from_json(object_in(content, "evaluation", path), path)
        else:
            every = _epochs_between(rows, recipe, data.train.images)
            every = every or (1 if default is None else default.evaluation.every)
            evaluation = Evaluation(held_out_name(recipe["split"]), every, content["precision"])
        return cls(
            model=content["model"],
            option=content["option"],
            seed=content["seed"],
            precision=content["precision"],
            workers=content.get("workers", 1),
            recipe=recipe,
            data=data,
            evaluation=evaluation,
            others={key: value for key, value in content.items() if key not in RUN_KEYS},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of recipe.json, as it reads back: JSON knows no tuples."""
        content = {key: value for key, value in asdict(self).items() if key != "others"}
        return dict(json.loads(json.dumps({**content, **self.others})))

    def settings(self) -> dict[str, Any]:
        """Return what determines the run without what goes without saying; runs are equal if and only if these are.

        It goes without saying that the data are the whole CIFAR-10, and that the held-out set is evaluated at each
        epoch in the run's own precision.
        """
        content = self.to_json()
        usual = {
            "data": asdict(cifar10_record(self.recipe["split"], self.recipe.get("split_seed", 0))),
            "evaluation": asdict(Evaluation(held_out_name(self.recipe["split"]), 1, self.precision)),
        }
        for part, expected in usual.items():
            content[part] = unusual_part(content[part], expected)
            if not content[part]:
                del content[part]
        return content


def _checked_recipe(recipe: Any, path: Path) -> Content:
    """Return the part "recipe" of recipe.json if it holds what this package reads of it."""
    if not isinstance(recipe, dict) or not {"name", "split", "batch_size"} <= recipe.keys():
        raise UserError(f"{path} is damaged (no whole recipe in it)")
    parts = recipe.get("low_resolutions", ())
    try:
        for part in parts:
            check_numbers(part, ("size", "until"), path)
    except (AttributeError, TypeError):
        raise UserError(f"{path} is damaged (low_resolutions is {parts!r})") from None
    check_numbers(recipe, ("batch_size",), path)
    if recipe["split"] not in SPLITS:
        raise UserError(f"{path} is damaged (recipe.split is {recipe['split']!r})")
    return recipe


def _epochs_between(rows: Iterable[Any], recipe: Content, num_train: int) -> int | None:
    """Return the number of epochs from one row to the next; None where the rows do not show it.

    The row of a run's last step is there in any case, so that it shows nothing.
    """
    batch_size = recipe["batch_size"]
    try:
        total = recipe.get("steps") or math.ceil(recipe["epochs"] * num_train / batch_size)
        ends = [
            row["epoch"]
            for row in rows
            if row["step"] < total and row["step"] == math.ceil(row["epoch"] * num_train / batch_size)
        ]
    except (KeyError, TypeError):
        return None
    return ends[0] if ends and ends == [ends[0] * (i + 1) for i in range(len(ends))] else None


@dataclass(frozen=True)
class EpochRow:
    """A line of metrics.jsonl. Errors are in percent."""

    step: int
    epoch: int
    learning_rate: float
    train_loss: float
    train_error: float
    """Running, over augmented images."""
    held_out: str
    """ "test" or "val"."""
    error: float
    """The error on the held-out set, in percent."""
    seconds: float | None
    images_per_second: float | None
    """None before the second step."""

    @classmethod
    def from_json(cls, content: Any, held_out: str, path: Path) -> "EpochRow":
        """Read a line.

        Raises:
            UserError: a value is missing or no number.
        """
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged (a line that is no JSON object)")
        numbers = ("step", "epoch", "learning_rate", "train_loss", "train_error")
        check_numbers(content, {*numbers, f"{held_out}_error"}, path)
        return cls(
            **{key: content[key] for key in numbers},
            held_out=held_out,
            error=content[f"{held_out}_error"],
            seconds=content.get("seconds"),
            images_per_second=content.get("images_per_second"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the line."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "learning_rate": self.learning_rate,
            "train_loss": self.train_loss,
            "train_error": self.train_error,
            f"{self.held_out}_error": self.error,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


@dataclass(frozen=True)
class Environment:
    """environment.json: where and with what a run was started. What older versions did not record is None."""

    started: str | None = None
    command: Sequence[str] | None = None
    deepres: str | None = None
    commit: str | None = None
    python: str | None = None
    torch: str | None = None
    numpy: str | None = None
    platform: str | None = None
    device: str | None = None
    device_name: str | None = None
    num_threads: int | None = None
    precision: str | None = None
    backend: str | None = None
    workers: int | None = None
    earlier_starts: Sequence[Content] = ()
    """The environments of the earlier starts."""

    @classmethod
    def from_json(cls, content: Content, path: Path) -> "Environment":
        """Read the content of environment.json.

        Raises:
            UserError: something is missing that every version recorded.
        """
        if missing := [key for key in REQUIRED_OF_ENVIRONMENT if key not in content]:
            raise UserError(f"{path} is damaged (no {missing[0]!r})")
        if not isinstance(content.get("earlier_starts", []), list):
            raise UserError(f"{path} is damaged (earlier_starts)")
        known = {each.name for each in fields(cls)}
        return cls(**{key: value for key, value in content.items() if key in known})

    def to_json(self) -> dict[str, Any]:
        """Return the content of environment.json."""
        return asdict(self)


REQUIRED_OF_ENVIRONMENT = ("deepres", "commit", "python", "torch", "device", "device_name")


@dataclass(frozen=True)
class Result:
    """result.json: what a run came to. Errors are in percent; what older versions did not record is None."""

    model: str
    option: str
    recipe: str
    """The recipe's name."""
    split: str | None
    seed: int
    num_parameters: int
    flop_per_image: float | None
    """Floating-point operations of training on one image of full size."""
    compute: float | None
    """Images trained on, small ones counted in proportion to their pixels."""
    steps: int
    total_steps: int
    """The steps of the whole schedule."""
    epochs: float
    train_error: float
    """The running one of the last epoch, over augmented images."""
    val_error_last: float | None
    """None without val, as the next one."""
    val_error_best: float | None
    test_error_last: float
    test_error_best: float | None
    """The best epoch's test error, chosen by test error; None where val was evaluated at each epoch in its place."""
    best_epoch: int
    """Counted from 1."""
    seconds: float
    images_per_second: float
    device: str | None
    precision: str | None
    backend: str | None
    workers: int | None
    test_error_ema: float | None = None
    """The test error of the running mean of the weights, where the recipe keeps one, after the last step."""
    val_error_ema: float | None = None
    test_metrics: Metrics | None = None
    """What else the answers on the test images come to."""

    @classmethod
    def from_json(cls, content: Content, path: Path) -> "Result":
        """Read the content of result.json.

        Raises:
            UserError: a value is missing or no number.
        """
        required = (*("model", "option", "recipe", "seed"), *NUMBERS_OF_RESULT, "test_error_best")
        if missing := [key for key in required if key not in content]:
            raise UserError(f"{path} is damaged (no {missing[0]!r})")
        optional = (
            *("test_error_best", "val_error_last", "val_error_best", "flop_per_image", "compute"),
            *("test_error_ema", "val_error_ema"),
        )
        check_numbers(content, NUMBERS_OF_RESULT, path)
        check_numbers(content, [key for key in optional if content.get(key) is not None], path)
        values: dict[str, Any] = {each.name: content.get(each.name) for each in fields(cls)}
        if values["test_metrics"] is not None:
            values["test_metrics"] = Metrics.from_json(values["test_metrics"], path)
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the content of result.json."""
        content = asdict(self) | {"test_metrics": self.test_metrics and self.test_metrics.to_json()}
        return {key: value for key, value in content.items() if value is not None or key == "test_error_best"}


NUMBERS_OF_RESULT = (
    *("steps", "total_steps", "epochs", "num_parameters", "best_epoch", "seconds", "images_per_second"),
    *("train_error", "test_error_last"),
)
