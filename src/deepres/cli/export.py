"""`deepres export`: trained weights in the formats of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from deepres.cli.options import DATA_DIR, NET, OWN_NET, PATH, chosen_release
from deepres.errors import UserError
from deepres.streams import err, out

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_IMAGES = 1000  # of the test set, on which the exported file must agree


@click.command()
@NET
@click.option("--format", "format_name", required=True, help="onnx, torch-export or tensorflow.")
@click.option("-o", "--out", "output", type=PATH, help="Default: NAME with the format's suffix.")
@click.option("--force", is_flag=True, help="Replace a file of that name.")
@OWN_NET
@click.option("--images", "folder", type=PATH, help="Image files to check with, in place of CIFAR-10's.")
@DATA_DIR
def export(
    net: str,
    format_name: str,
    output: Path | None,
    force: bool,
    own_net: str | None,
    folder: Path | None,
    data_dir: Path | None,
) -> None:
    """Write weights of the zoo, a run directory, a Hub folder or a file in another format.

    The file takes uint8 pixels, any number of images at a time (TensorFlow: channels last), normalises them, and gives
    logits. It is run in its own runtime on test images, and kept only if no logit differs by more than 1e-4 and no
    prediction at all. Floats in [0, 1] it takes as the net does, or it refuses them.
    """
    from deepres.cli.pretrained import load_classifier
    from deepres.data.cifar10 import load_cifar10
    from deepres.export import export_classifier
    from deepres.export.formats import check_target, get_format

    kind = get_format(format_name)
    classifier = load_classifier(net, own_net)
    path = output or Path(f"{classifier.name}{kind.suffix}")
    check_target(path, kind, overwrite=force)
    kind_of_images = "test images" if folder is None else "images"
    if folder is not None:
        images = _read_images(folder, classifier.image_size)
    else:
        try:
            images = load_cifar10(data_dir, chosen_release()).test.images[:NUM_IMAGES]
        except UserError as fault:
            raise UserError(f"{fault}; or give --images FOLDER to check the file with") from None
    with err.status(escape(f"writing {path} and running it")):
        difference = export_classifier(classifier, kind, path, images, overwrite=force)
    out.print(
        f"{path}: {path.stat().st_size:,} bytes; over {len(images):,} {kind_of_images} the same predictions, "
        f"largest difference of a logit {difference:.1e}",
        markup=False,
        soft_wrap=True,
    )


def _read_images(folder: Path, size: int) -> "NDArray[np.uint8]":
    """Return the image files in a folder, at most as many as are asked for: uint8 (N, 3, size, size)."""
    import numpy as np

    from deepres.data.images import find_images, read_images

    if not folder.is_dir():
        raise UserError(f"no folder {folder}")
    _, images, faults = read_images(((str(path), path) for path in find_images(folder).paths[:NUM_IMAGES]), size)
    if faults:
        path, fault = next(iter(faults.items()))
        raise UserError(f"{path}: {fault}")
    return np.stack(images)
