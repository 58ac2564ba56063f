"""Options and arguments that several commands share."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deepres.data.release import Release


class NamedPath(click.Path):
    """A path; an empty text is none: it would stand for this folder, as where a shell variable is not set."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path.

        Raises:
            click.BadParameter: the text is empty.
        """
        return super().convert(_named(self, value, param, ctx), param, ctx)


class NamedText(click.types.StringParamType):
    """A name or a path as text, which is not empty; see `NamedPath`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the text.

        Raises:
            click.BadParameter: it is empty.
        """
        return super().convert(_named(self, value, param, ctx), param, ctx)


def _named(kind: "click.ParamType[Any]", value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if value == "":
        kind.fail("it is empty: name one, or leave the option out", param, ctx)
    return value


class NumberRange(click.FloatRange):
    """A number between bounds; NaN, which no comparison finds out of them, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number.

        Raises:
            click.BadParameter: it is none, or out of range.
        """
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


PATH = NamedPath(path_type=Path)

DATA_DIR = click.option(
    "--data-dir",
    type=PATH,
    help="Folder that holds, or will hold, cifar-10-batches-bin/. Default: $DEEPRES_DATA, or the user cache.",
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps or xpu.")
NET = click.argument("net", type=NamedText(), metavar="NAME|RUN_DIR|FILE")
OWN_NET = click.option(
    "--net", "own_net", metavar="FILE:NAME", help="The source of your own net, where RUN_DIR or FILE has its weights."
)
CHECKPOINT_MINUTES = click.option("--checkpoint-minutes", type=NumberRange(min=0), default=5.0, show_default=True)
EVALUATE_EVERY = click.option(
    "--evaluate-every",
    type=click.IntRange(min=1),
    metavar="EPOCHS",
    help="Fewer evaluations save time; the last step has one in any case. Default: as the run was begun, or 1.",
)
DATA = click.option(
    "--data",
    type=NamedText(),
    default="cifar10",
    show_default=True,
    help="cifar10, cifar100, a folder of images, or FILE.py:NAME of your own.",
)

IMAGE_SIZE = click.option(
    "--image-size", type=int, metavar="PIXELS", help="Make the images of a folder so wide and high. Default: 32."
)

# What other programs call the settings of a recipe.
RECIPE_OPTIONS = {
    "lr": "learning_rate",
    "learning-rate": "learning_rate",
    "epochs": "epochs",
    "num-epochs": "epochs",
    "steps": "steps",
    "batch-size": "batch_size",
    "bs": "batch_size",
    "b": "batch_size",
    "momentum": "momentum",
    "weight-decay": "weight_decay",
    "wd": "weight_decay",
    "nesterov": "nesterov",
    "optimizer": "optimizer.name",
    "schedule": "schedule",
    "scheduler": "schedule",
    "warmup": "schedule.warmup",
}


def chosen_release() -> "Release":
    """Return what the files of CIFAR-10 must be: the official release, or the one that `main` was called with."""
    from deepres.data.release import OFFICIAL, Release

    return click.get_current_context().find_object(Release) or OFFICIAL


def recipe_hint(option: str) -> str:
    """Return where the setting is that an unknown option asks for, to be added to the error; "" if it is none."""
    setting = RECIPE_OPTIONS.get(option.lstrip("-").replace("_", "-"))
    if setting is None:
        return ""
    more = ""
    if setting in ("learning_rate", "momentum"):
        more = f" (of the convolutions, where Muon trains them as in `fast`: muon.{setting})"
    elif setting == "optimizer.name":
        more = " (beside muon=none and norm_adam=none, where Muon and Adam train parts as in `fast`)"
    return f" It is a setting of the recipe: give --set {setting}=VALUE{more}, see `deepres recipes`."
