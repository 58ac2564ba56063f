"""Which runs a grid consists of, in which order, and how far each of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType

import torch

from deepres.data.datasets import Dataset, is_folder, label_of
from deepres.errors import UserError
from deepres.files import read_json
from deepres.models.cost import flop_per_image
from deepres.objects import is_object_name, load_object
from deepres.recipes.recipe import SPLITS, Recipe
from deepres.runs.directory import RunDir
from deepres.runs.finished import read_record
from deepres.runs.image_sets import DataRecord
from deepres.runs.published import FIGURE6_DEPTHS
from deepres.runs.schema import Result
from deepres.training.config import RunConfig
from deepres.training.nets import Net, build_net
from deepres.training.sets import load_sets

PAPER_MODELS = tuple(f"{family}{depth}" for depth in FIGURE6_DEPTHS for family in ("plain", "resnet"))


@dataclass(frozen=True)
class Job:
    """One run of a grid."""

    config: RunConfig
    path: Path
    """The run directory."""
    flop_per_image: float
    """What training on one image takes, see `deepres.models.cost`."""
    net: str
    """The net as `deepres train` is given it: its name, or FILE.py:NAME."""
    recipe_arguments: tuple[str, ...]
    """The recipe as `deepres train` is given it."""
    data: str = "cifar10"
    """The data set as `deepres train` is given it."""
    image_size: int | None = None
    """Rows and columns of a folder's images; None: 32."""
    dataset: Dataset | None = field(default=None, repr=False, compare=False)
    """That data set, where it is not CIFAR-10."""

    @property
    def name(self) -> str:
        """The run directory's name."""
        return self.path.name

    @property
    def num_images(self) -> float:
        """Images trained on in the whole run, all epochs; small ones count in proportion to their pixels."""
        recipe = self.config.recipe
        num_train = SPLITS[recipe.split] if self.dataset is None else len(self.dataset.train.labels)
        return recipe.compute(max(1, round(self.config.fraction * num_train)))

    def arguments(self) -> list[str]:
        """Return what `deepres train` is to be given, but for the run directory and the machine's own settings."""
        config, recipe = self.config, self.config.recipe
        return [
            *(self.net, *self.recipe_arguments, "--seed", str(config.seed), "--split", recipe.split),
            *("--option", config.option, "--precision", config.precision, "--backend", config.backend),
            *(("--fraction", f"{config.fraction!r}") if config.fraction != 1 else ()),
            *(("--data", self._data_source()) if self.data != "cifar10" else ()),
            *(("--image-size", str(self.image_size)) if self.image_size is not None else ()),
        ]

    def _data_source(self) -> str:
        """Return the data set for a process that works in another folder, or on another machine with the same one."""
        return str(Path(self.data).absolute()) if is_folder(self.data) else self.data

    def sources(self) -> dict[str, bytes]:
        """Return the files of one's own that the run needs, by their paths, for a machine that does not have them.

        Raises:
            UserError: a path does not lie below this folder, or a file cannot be read.
        """
        recipe = self.config.recipe
        named = [self.net, self.data, recipe.augmentation or "", recipe.optimizer.name if recipe.optimizer else ""]
        files = {}
        for name in named:
            place = name.rpartition(":")[0]
            if not place.endswith(".py"):
                continue
            path = Path(place)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{place} goes to other machines: name it by its path from this folder, below it")
            try:
                files[path.as_posix()] = path.read_bytes()
            except OSError as error:
                raise UserError(f"cannot read {place} ({error.strerror})") from None
        return files

    def is_finished(self) -> bool:
        """Tell whether this very run has taken all its steps; what is damaged or of another configuration has not."""
        run_dir = RunDir(self.path)
        if not run_dir.result.exists():
            return False
        try:
            begun = read_record(run_dir)
            result = Result.from_json(read_json(run_dir.result), run_dir.result)
            same = self.config.settled_by(begun).to_json(self._data(begun.data)) == begun.to_json()
        except UserError:
            return False  # training there will say what is wrong
        return same and result.steps >= result.total_steps

    def _data(self, begun: DataRecord) -> DataRecord:
        """Return the record of the data that the job trains on; of CIFAR-10, that which the run in its place has.

        Raises:
            UserError: the fraction leaves no image.
        """
        fraction = self.config.fraction
        if self.dataset is None:  # there is one CIFAR-10, whose files are verified
            return replace(begun, name="CIFAR-10", fraction=fraction)
        return load_sets(self.dataset, self.config.recipe, torch.device("cpu"), fraction).record


def plan_grid(
    models: Sequence[str],
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    out: Path,
    *,
    precision: str = "auto",
    backend: str = "auto",
    evaluate_every: int | None = None,
    options: Sequence[str] = ("A",),
    fractions: Sequence[float] = (1.0,),
    data: str = "cifar10",
    image_size: int | None = None,
    dataset: Dataset | None = None,
    recipe_arguments: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[Job]:
    """Return all runs, so that useful ones come early: recipe by recipe, within it low seeds, then shallow nets first.

    Args:
        models: names, or FILE.py:NAME of one's own.
        recipes: each of another name.
        seeds: of the runs.
        out: the folder of the run directories.
        precision: see `RunConfig`.
        backend: see `RunConfig`.
        evaluate_every: see `RunConfig`.
        options: kinds of shortcut; nets of one's own have none.
        fractions: of the training images.
        data: as `deepres train` is given it.
        image_size: rows and columns of a folder's images; None: 32.
        dataset: that data set, where it is not CIFAR-10.
        recipe_arguments: what `deepres train` is given for a recipe, by its name; else its name alone.

    Raises:
        UserError: an unknown model, or two runs would have the same directory.
    """
    num_classes = 10 if dataset is None else len(dataset.classes)
    nets: dict[str, Net] = {name: load_object(name) if is_object_name(name) else name for name in models}
    cost = {}
    for name, net in nets.items():
        for option in options:
            cost[name] = flop_per_image(build_net(net, option=option, seed=0, num_classes=num_classes))
    jobs: dict[Path, Job] = {}
    for recipe in recipes:
        for seed in seeds:
            for name in sorted(nets, key=lambda name: cost[name]):
                for option, fraction in product(options, fractions):
                    config = RunConfig(
                        nets[name],
                        recipe,
                        seed=seed,
                        option=option,
                        precision=precision,
                        backend=backend,
                        evaluate_every=evaluate_every,
                        fraction=fraction,
                    )
                    path = out / config.run_name(label_of(data, image_size))
                    if path in jobs:
                        raise UserError(f"two runs of this grid would have the directory {path}: name them apart")
                    jobs[path] = Job(
                        config,
                        path,
                        cost[name],
                        net=name,
                        recipe_arguments=tuple(recipe_arguments.get(recipe.name, ("--recipe", recipe.name))),
                        data=data,
                        image_size=image_size,
                        dataset=dataset,
                    )
    return list(jobs.values())


MAX_SEEDS = 1000


def parse_seeds(text: str) -> list[int]:
    """Read seeds: "3" is the number of them, from 0; "0,2,5-7" lists them; "5-5" is one alone.

    Raises:
        UserError: anything else, such as more than 1,000 of them: that is a seed, not their number.
    """
    wrong = UserError(f"seeds {text!r}: give their number, such as 3, or a list, such as 0,2,5-7; 5-5 is seed 5 alone")
    text = text.strip()
    if text.isdecimal():
        if not 0 < int(text) <= MAX_SEEDS:
            raise wrong
        return list(range(int(text)))
    seeds: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if (
            not first.isdecimal()
            or (dash and not last.isdecimal())
            or not 0 <= int(last or first) - int(first) < MAX_SEEDS
        ):
            raise wrong
        seeds |= dict.fromkeys(range(int(first), int(last or first) + 1))
    return list(seeds)
