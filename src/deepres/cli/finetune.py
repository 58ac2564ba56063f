"""`deepres finetune`: train weights further, on images of one's own."""

from dataclasses import replace
from pathlib import Path

import click

from deepres.cli.options import DATA_DIR, DEVICE, IMAGE_SIZE, NET, OWN_NET, PATH, NamedText
from deepres.cli.train import carry_out
from deepres.errors import UserError


@click.command()
@NET
@click.argument("data", type=NamedText(), metavar="FOLDER")
@OWN_NET
@click.option("--recipe", "recipe_name", default="finetune", show_default=True, help="See `deepres train`.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--split", help="50k: train on everything; 45k: hold out a tenth as val. Default: the recipe's.")
@click.option("--fraction", type=float, default=1.0, help="Train on this share of the images, of each class the same.")
@IMAGE_SIZE
@click.option("--run-dir", type=PATH, help="Default: runs/NET-RECIPE-FOLDER-seedN.")
@DATA_DIR
@DEVICE
@click.option("--precision", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--backend", default="auto", show_default=True, help="auto, fused, compiled or eager.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop early; the same command without it continues.")
@click.option("--progress", type=click.Choice(["bar", "json"]), default="bar", show_default=True)
def finetune(
    net: str,
    data: str,
    own_net: str | None,
    recipe_name: str,
    settings: tuple[str, ...],
    seed: int,
    split: str | None,
    fraction: float,
    image_size: int | None,
    run_dir: Path | None,
    data_dir: Path | None,
    device: str,
    precision: str,
    backend: str,
    max_steps: int | None,
    progress: str,
) -> None:
    """Train weights further on the images in FOLDER, with a new last layer for its classes.

    The weights are those of the zoo, a run directory, a Hub folder or a file. FOLDER holds a folder of images for each
    class, or train and test with such folders; cifar10, cifar100 and FILE.py:NAME are data too. The run directory is
    then what `evaluate`, `predict` and `export` take.
    """
    from deepres.cli.pretrained import load_classifier
    from deepres.data.datasets import label_of
    from deepres.models import ResNet, net_name
    from deepres.models.preact import PreActResNet
    from deepres.objects import load_object
    from deepres.recipes.read import read_recipe
    from deepres.training.config import RunConfig
    from deepres.training.trained_start import TrainedStart

    recipe = read_recipe(recipe_name, settings)
    if split is not None:
        recipe = replace(recipe, split=split)
    classifier = load_classifier(net, own_net)
    start = TrainedStart.of(classifier)
    if own_net is not None:
        model, option = load_object(own_net), "A"
    elif isinstance(classifier.net, ResNet):
        model, option = net_name(classifier.net), classifier.net.option
    elif isinstance(classifier.net, PreActResNet):
        model, option = f"preresnet{classifier.net.depth}", "A"
    else:
        raise UserError(f"{net} is no net of deepres: name its source with --net FILE.py:NAME")
    config = RunConfig(
        model,
        recipe,
        seed=seed,
        option=option,
        precision=precision,
        backend=backend,
        fraction=fraction,
        start=start,
    )
    carry_out(
        config,
        run_dir or Path("runs") / config.run_name(label_of(data, image_size)),
        data=data,
        image_size=image_size,
        data_dir=data_dir,
        device=device,
        max_steps=max_steps,
        progress=progress,
    )
