"""Training in one call from Python: what `deepres train` does, with objects."""

from pathlib import Path
from typing import Any

from deepres.backends.device import resolve_device
from deepres.data.datasets import Dataset, label_of, load_data
from deepres.recipes.read import read_recipe
from deepres.recipes.recipe import Recipe
from deepres.training.config import RunConfig
from deepres.training.nets import Net
from deepres.training.progress import Reporter
from deepres.training.train import train as train_run


def train(
    model: Net = "resnet20",
    recipe: Recipe | str = "fast",
    data: Dataset | str | Path = "cifar10",
    *,
    seed: int = 0,
    run_dir: str | Path | None = None,
    option: str = "A",
    fraction: float = 1.0,
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    max_steps: int | None = None,
    evaluate_every: int | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a net in a run directory, or continue the run that was begun there; return its result.json.

    Args:
        model: a name such as "resnet20"; a module, whose weights are the first ones; or what makes a module of the
            number of classes. It takes normalised images, float32 (B, 3, S, S), and gives logits.
        recipe: a recipe, its name, or the path of a TOML file.
        data: a data set, or what names one for `deepres.load_data`.
        seed: of weights and mini-batches.
        run_dir: where to train; None: runs/MODEL-RECIPE-seedN, as the command line has it.
        option: the kind of shortcut of a net by name.
        fraction: the share of the training images to train on.
        device: "auto", "cpu", "cuda", "mps" or "xpu".
        precision: "auto", "float32", "bfloat16" or "float16".
        backend: "auto", "fused", "compiled" or "eager".
        max_steps: stop after so many steps of the schedule, 1 or more; a later call continues from there.
        evaluate_every: epochs from one evaluation to the next; None: as the run was begun, or else 1.
        reporter: is informed of the progress.

    Raises:
        UserError: an unknown name, a number out of range, or another configuration was begun in the directory.

    Example:
        >>> import deepres
        >>> from deepres.data.cifar10 import Split
        >>> data = deepres.load_cifar10()
        >>> split = Split(data.train.images[:100], data.train.labels[:100])
        >>> few = deepres.ImageData(split, split, name="few", classes=data.classes)
        >>> result = deepres.train("resnet8", "fast", few, max_steps=1, precision="float32", backend="eager")
        >>> result["steps"]
        1
    """
    made = read_recipe(recipe) if isinstance(recipe, str) else recipe
    loaded = load_data(data) if isinstance(data, str | Path) else data
    config = RunConfig(
        model,
        made,
        seed=seed,
        option=option,
        precision=precision,
        backend=backend,
        evaluate_every=evaluate_every,
        fraction=fraction,
    )
    if run_dir is None:
        label = label_of(data) if isinstance(data, str | Path) else loaded.name.lower().replace("-", "")
        run_dir = Path("runs") / config.run_name(label)
    chosen = resolve_device(device)
    return train_run(config, loaded, run_dir, device=chosen, max_steps=max_steps, reporter=reporter)
