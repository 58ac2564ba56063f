"""`deepres figures`: the data set and the nets, drawn."""

from pathlib import Path

import click

from deepres.cli.options import DATA_DIR, PATH, chosen_release
from deepres.errors import extra_needed, unknown_name
from deepres.streams import out


@click.command()
@click.option("--out", "out_dir", type=PATH, required=True, help="Folder for the figures.")
@click.option("--models", default="plain20,resnet20", show_default=True, help="Nets to draw side by side, by comma.")
@click.option("--option", default="A", show_default=True, help="Kind of shortcut of residual nets: A, B or C.")
@DATA_DIR
def figures(out_dir: Path, models: str, option: str, data_dir: Path | None) -> None:
    """Draw the data set, what augmentation does to it, and the architecture of nets.

    Writes classes, augmentation and architecture, each as .png, .svg and .pdf.
    """
    with extra_needed("deepres figures", "report"):
        from deepres.report.architecture import draw_architecture
        from deepres.report.dataset import EXAMPLES, draw_classes, draw_rows
        from deepres.report.style import write_figure

    import torch

    from deepres.data.augment import Augmentation, Normalization, crop_and_flip
    from deepres.data.cifar10 import load_cifar10
    from deepres.files import make_folder
    from deepres.models import OPTIONS, build_model, count_parameters
    from deepres.models.layout import read_layout
    from deepres.recipes.named import paper

    if option not in OPTIONS:
        raise unknown_name("shortcut option", option, OPTIONS)
    names = [name.strip() for name in models.split(",")]
    nets = [(name, build_model(name, option=option if name.startswith("resnet") else "A")) for name in names]
    train = load_cifar10(data_dir, chosen_release()).train
    make_folder(out_dir)
    images, recipe = torch.from_numpy(train.images), paper()
    normalization = Normalization.fit(images, recipe.normalization)
    first = images[:EXAMPLES]
    choices = Augmentation.draw(len(first), recipe.pad, torch.Generator().manual_seed(0))
    augmented = crop_and_flip(normalization(first), choices, recipe.pad)
    drawn = {
        "classes": draw_classes(train),
        "augmentation": draw_rows(
            {
                "as they are": first.numpy(),
                "minus the mean of each pixel": normalization(first).numpy(),
                f"padded by {recipe.pad} pixels, a crop at random, flipped or not": augmented.numpy(),
            }
        ),
        "architecture": draw_architecture(
            [(f"{name}\n{count_parameters(model):,} parameters", read_layout(model)) for name, model in nets]
        ),
    }
    written = [path for name, figure in drawn.items() for path in write_figure(figure, out_dir, name)]
    out.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)
