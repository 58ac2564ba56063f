"""`deepres explain`: where an image speaks for its class, as a picture."""

from pathlib import Path

import click

from deepres.cli.options import DEVICE, OWN_NET, PATH
from deepres.errors import UserError
from deepres.files import check_parent, write_atomically
from deepres.streams import out


@click.command()
@click.argument("image", metavar="IMAGE", type=PATH)
@click.option("--model", "net", default="resnet20", show_default=True, help="NAME, RUN_DIR or FILE, see evaluate.")
@OWN_NET
@click.option("--class", "names", multiple=True, metavar="NAME", help="Explain this class; repeatable.")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="Else, the most probable ones.")
@click.option(
    "-o",
    "--out",
    "path",
    type=PATH,
    help="The picture: .png, .svg or .pdf. Default: IMAGE-explained.png, here.",
)
@DEVICE
def explain(
    image: Path, net: str, own_net: str | None, names: tuple[str, ...], top: int, path: Path | None, device: str
) -> None:
    """Draw where IMAGE speaks for the classes that a net takes it for: Grad-CAM over the last stage.

    The maps are of 8x8 places for images of 32x32, drawn over the pixels that the net sees, on one scale.
    """
    path = path or Path(f"{image.stem}-explained.png")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{path} is no picture that can be written: let its name end in .png, .svg or .pdf")
    check_parent(path)
    if path.exists() and image.exists() and path.samefile(image):
        raise UserError(f"{path} is the image itself: name another file with -o")

    from deepres.backends.device import resolve_device
    from deepres.cli.pretrained import load_classifier
    from deepres.data.images import ImageError, read_image
    from deepres.weights.grad_cam import explain as explain_image

    try:
        from deepres.report.explanation import draw_explanation
        from deepres.report.style import encode_figure
    except ModuleNotFoundError as missing:
        raise UserError(f"deepres explain needs {missing.name}: pip install 'deepres[report]'") from None

    chosen = resolve_device(device)
    classifier = load_classifier(net, own_net).to(chosen)
    try:
        pixels = read_image(image, classifier.image_size)
    except ImageError as error:
        raise UserError(f"{image}: {error}") from None
    found = explain_image(classifier, pixels, names, top)
    heading = f"{image.name}, seen by {classifier.name}: what speaks for each class (Grad-CAM)"
    write_atomically(path, encode_figure(draw_explanation(pixels, found.maps, found.titles, heading), path.suffix[1:]))
    for title in found.titles:
        out.print(title, markup=False)
    out.print(f"picture {path}", markup=False, soft_wrap=True)
