"""Which runs a grid consists of, in which order, and how far each of them is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deepres.errors import UserError
from deepres.files import read_json
from deepres.models import build_model
from deepres.models.cost import flop_per_image
from deepres.recipes.recipe import SPLITS, Recipe
from deepres.runs.directory import RunDir, run_name
from deepres.runs.published import FIGURE6_DEPTHS
from deepres.training.train import RunConfig

PAPER_MODELS = tuple(f"{family}{depth}" for depth in FIGURE6_DEPTHS for family in ("plain", "resnet"))


@dataclass(frozen=True)
class Job:
    """One run of a grid."""

    config: RunConfig
    path: Path
    """The run directory."""
    flop_per_image: float
    """What training on one image takes, see `deepres.models.cost`."""

    @property
    def name(self) -> str:
        """The run directory's name."""
        return self.path.name

    @property
    def num_images(self) -> float:
        """Images trained on in the whole run, all epochs; small ones count in proportion to their pixels."""
        recipe = self.config.recipe
        return recipe.compute(SPLITS[recipe.split])

    def arguments(self) -> list[str]:
        """Return what `deepres train` is to be given, but for the run directory and the machine's own settings."""
        config, recipe = self.config, self.config.recipe
        return [
            *(config.model, "--recipe", recipe.name, "--seed", str(config.seed), "--split", recipe.split),
            *("--option", config.option, "--precision", config.precision, "--backend", config.backend),
        ]

    def is_finished(self) -> bool:
        """Tell whether this very run has taken all its steps; what is damaged or of another configuration has not."""
        run_dir = RunDir(self.path)
        if not run_dir.result.exists():
            return False
        try:
            begun = read_json(run_dir.recipe, required=("precision",))
            result = read_json(run_dir.result, required=("steps", "total_steps"))
        except UserError:
            return False  # training there will say what is wrong
        config = self.config
        if config.precision == "auto":
            config = replace(config, precision=begun["precision"])
        steps, total = result["steps"], result["total_steps"]
        return begun == config.to_json() and isinstance(steps, int) and isinstance(total, int) and steps >= total


def plan_grid(
    models: Sequence[str],
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    out: Path,
    *,
    precision: str = "auto",
    backend: str = "auto",
) -> list[Job]:
    """Return all runs, so that useful ones come early: recipe by recipe, within it low seeds, then shallow nets first.

    Raises:
        UserError: an unknown model.
    """
    nets = {name: build_model(name) for name in dict.fromkeys(models)}
    cost = {name: flop_per_image(net) for name, net in nets.items()}
    jobs = []
    for recipe in recipes:
        for seed in seeds:
            for name in sorted(nets, key=lambda name: nets[name].depth):
                config = RunConfig(name, recipe, seed=seed, precision=precision, backend=backend)
                path = out / run_name(name, recipe.name, seed, split=recipe.split)
                jobs.append(Job(config, path, cost[name]))
    return jobs


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
