"""`deepres export`: trained weights in the formats of other tools."""

from pathlib import Path

import click
from rich.markup import escape

from deepres.cli.console import err, out
from deepres.cli.options import DATA_DIR, NET

NUM_IMAGES = 1000  # of the test set, on which the exported file must agree


@click.command()
@NET
@click.option("--format", "kind", required=True, help="onnx, torch-export, torchscript or tensorflow.")
@click.option("-o", "--out", "output", type=click.Path(path_type=Path), help="Default: NAME with the format's suffix.")
@click.option("--force", is_flag=True, help="Replace a file of that name.")
@DATA_DIR
def export(net: str, kind: str, output: Path | None, force: bool, data_dir: Path | None) -> None:
    """Write weights of the zoo, a run directory, a Hub folder or a file in another format.

    The file takes uint8 pixels, any number of images at a time (TensorFlow: channels last), normalises them, and gives
    logits. It is run in its own runtime on test images, and kept only if no logit differs by more than 1e-4 and no
    prediction at all. Floats in [0, 1] it takes as the net does, or it refuses them.
    """
    from deepres.data.cifar10 import load_cifar10
    from deepres.export import export_classifier
    from deepres.export.formats import check_target, get_format
    from deepres.zoo.catalogue import load_pretrained

    chosen = get_format(kind)
    classifier = load_pretrained(net)
    path = output or Path(f"{classifier.name}{chosen.suffix}")
    check_target(path, chosen, kind, overwrite=force)
    images = load_cifar10(data_dir).test.images[:NUM_IMAGES]
    with err.status(escape(f"writing {path} and running it")):
        difference = export_classifier(classifier, kind, path, images, overwrite=force)
    out.print(
        f"{path}: {path.stat().st_size:,} bytes; over {len(images):,} test images the same predictions, "
        f"largest difference of a logit {difference:.1e}",
        markup=False,
        soft_wrap=True,
    )
