"""`deepres predict`: the classes of any image files."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click
from rich.markup import escape

from deepres.cli.console import new_table, pixel_picture
from deepres.cli.options import DEVICE, OWN_NET, NamedText
from deepres.errors import UserError
from deepres.streams import out, say


@click.command()
@click.argument("sources", type=NamedText(), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--model", "net", default="resnet20", show_default=True, help="NAME, RUN_DIR or FILE, see evaluate.")
@OWN_NET
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="Classes to show of each image.")
@click.option("--show", is_flag=True, help="Draw in the terminal the pixels that the net sees.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@DEVICE
def predict(
    sources: tuple[str, ...], net: str, own_net: str | None, top: int, show: bool, as_json: bool, device: str
) -> None:
    """Tell what is in each IMAGE: an image file, a folder of them, or - for standard input.

    The whole picture is squeezed to the size that the net takes, 32x32 pixels, without cropping. A file that cannot
    be used is named, and the others are predicted; the exit code is then 2.
    """
    import numpy as np

    from deepres.backends.device import resolve_device
    from deepres.cli.pretrained import load_classifier
    from deepres.data.images import read_images

    chosen = resolve_device(device)
    classifier = load_classifier(net, own_net).to(chosen)
    names, images, faults = read_images(_find(sources), classifier.image_size)
    for name, fault in faults.items():
        say(f"deepres: error: {name}: {fault}")
    order = []
    if images:
        probabilities = classifier.predict_proba(np.stack(images))  # (N, num_classes)
        order = [np.argsort(-row, kind="stable")[:top] for row in probabilities]
    ranked = [
        [(classifier.classes[i], float(probabilities[n, i])) for i in indices] for n, indices in enumerate(order)
    ]
    if as_json:
        found = [
            {"image": name, "predictions": [{"class": label, "probability": round(p, 6)} for label, p in row]}
            for name, row in zip(names, ranked, strict=True)
        ]
        broken = [{"image": name, "error": fault} for name, fault in faults.items()]
        click.echo(json.dumps({"model": classifier.name, "images": found + broken}))
    elif images:
        table = new_table("image", "class", title=classifier.name, title_justify="left")
        table.add_column("probability", justify="right")
        for name, row in zip(names, ranked, strict=True):
            for i, (label, probability) in enumerate(row):
                table.add_row("" if i else escape(name), label, f"{probability:.1%}", end_section=i == len(row) - 1)
        if show and out.color_system is None:
            say("deepres: --show draws nothing: this output has no colours; a terminal that has them is needed")
        elif show:
            for name, image in zip(names, images, strict=True):
                out.print(pixel_picture(image.tolist()))
                out.print(name, markup=False, soft_wrap=True)
        out.print(table)
    if faults:
        raise UserError(f"{len(faults)} of {len(names) + len(faults):,} images could not be used")


def _find(sources: tuple[str, ...]) -> Iterator[tuple[str, Path | BinaryIO]]:
    """Yield the name of each image and where it is."""
    from deepres.data.images import find_images

    for source in sources:
        if source == "-":
            yield "-", io.BytesIO(sys.stdin.buffer.read())
        elif Path(source).is_dir():
            found = find_images(Path(source))
            if found.left_out:
                say(f"deepres: {found.left_out}")
            for path in found.paths:
                yield str(path), path
        else:
            yield source, Path(source)
