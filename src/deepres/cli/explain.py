"""`deepres explain`: where an image speaks for its class, as a picture."""

from pathlib import Path

import click

from deepres.cli.options import DEVICE, OWN_NET
from deepres.errors import UserError
from deepres.files import check_parent, write_atomically
from deepres.streams import out


@click.command()
@click.argument("image", metavar="IMAGE", type=click.Path(path_type=Path))
@click.option("--model", "net", default="resnet20", show_default=True, help="NAME, RUN_DIR or FILE, see evaluate.")
@OWN_NET
@click.option("--class", "names", multiple=True, metavar="NAME", help="Explain this class; repeatable.")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="Else, the most probable ones.")
@click.option(
    "-o",
    "--out",
    "path",
    type=click.Path(path_type=Path),
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

    import numpy as np

    from deepres.backends.device import resolve_device
    from deepres.cli.pretrained import load_classifier
    from deepres.data.images import ImageError, read_image
    from deepres.weights.grad_cam import grad_cam

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
    classes = list(classifier.classes)
    if unknown := [name for name in names if name not in classes]:
        raise UserError(f"{classifier.name} knows no class {unknown[0]!r}: its classes are {', '.join(classes)}")
    probabilities = classifier.predict_proba(pixels[None])[0]  # (num_classes,)
    likely = np.argsort(-probabilities, kind="stable")[:top].tolist()
    shown = [classes.index(name) for name in names] or likely
    maps = grad_cam(classifier, pixels[None], shown).numpy()  # (n, h, w)
    titles = [f"{classes[i]} {probabilities[i]:.1%}" for i in shown]
    heading = f"{image.name}, seen by {classifier.name}: what speaks for each class (Grad-CAM)"
    write_atomically(path, encode_figure(draw_explanation(pixels, maps, titles, heading), path.suffix[1:]))
    for title in titles:
        out.print(title, markup=False)
    out.print(f"picture {path}", markup=False, soft_wrap=True)
