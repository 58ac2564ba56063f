"""`deepres import`: other people's checkpoints."""

from pathlib import Path

import click

from deepres.cli.options import DATA_DIR, PATH, chosen_release
from deepres.errors import UserError
from deepres.streams import out, say


@click.command("import")
@click.argument("file", type=PATH)
@click.option("-o", "--out", "output", type=PATH, required=True, help="The .safetensors file to write.")
@click.option("--norm", help="What the net was trained with: cifar10 or imagenet statistics. Default: cifar10.")
@click.option("--mean", help="R,G,B in units of pixels / 255, in place of --norm.")
@click.option("--std", help="R,G,B in units of pixels / 255, in place of --norm.")
@click.option(
    "--shortcuts",
    help="Of nets without projections: after, around (where the zero channels stand) or none (plain). "
    "Default: found out with training images.",
)
@click.option("--classes", help="The name of each class, with commas. Default: the file's, or CIFAR-10's.")
@DATA_DIR
def import_checkpoint(
    file: Path,
    output: Path,
    norm: str | None,
    mean: str | None,
    std: str | None,
    shortcuts: str | None,
    classes: str | None,
    data_dir: Path | None,
) -> None:
    """Turn the checkpoint FILE of another CIFAR ResNet repository into weights for every command here.

    The net is recognised by the names and shapes of its weights, wherever in FILE they are; a run directory and a
    state_dict of deepres's own nets will do too. FILE is read without running code from it.
    """
    import torch

    from deepres.data.cifar10 import CLASSES, load_cifar10
    from deepres.errors import unknown_name
    from deepres.files import check_parent
    from deepres.models import net_name
    from deepres.weights.classifier import PixelClassifier
    from deepres.weights.evaluate import error_percent
    from deepres.weights.file import check_output, save_weights
    from deepres.weights.read import find_net, summarize
    from deepres.zoo import import_checkpoint as foreign
    from deepres.zoo.catalogue import weights_file

    if output.suffix != ".safetensors":
        raise UserError(f"{output} must end in .safetensors")
    check_parent(output)
    file = weights_file(file)
    check_output(output, file)
    if shortcuts is not None and shortcuts not in foreign.WIRINGS:
        raise unknown_name("shortcuts", shortcuts, foreign.WIRINGS)
    if (mean is None) != (std is None) or (mean is not None and norm is not None):
        raise UserError("give --mean and --std together, or --norm, or none of them")
    found = find_net(file)
    if mean is not None and std is not None:
        normalization = foreign.make_normalization(_numbers("--mean", mean), _numbers("--std", std))
        normalized = f"mean {mean}, std {std}"
    elif norm is None and found.normalization is not None:
        normalization, normalized = found.normalization, "the mean and std in the file"
    else:
        normalization = foreign.get_normalization("cifar10" if norm is None else norm)
        assumed = "cifar10 statistics (assumed: see --norm, --mean and --std)"
        normalized = assumed if norm is None else f"{norm} statistics"

    data = load_cifar10(data_dir, chosen_release())
    if found.option != "A":
        if shortcuts is not None:
            raise UserError(f"{file} has projections in its shortcuts (option {found.option}): leave out --shortcuts")
        described = f"option {found.option} shortcuts"
    elif shortcuts is not None:
        described = foreign.WIRINGS[shortcuts]
    elif found.name is not None:
        shortcuts = "none" if found.name.startswith("plain") else "after"
        described = f"{foreign.WIRINGS[shortcuts]}, as the file says"
    else:
        shortcuts, errors = foreign.find_wiring(found, normalization, data.train)
        others = ", ".join(f"{error:.1f}% if {w}" for w, error in errors.items() if w != shortcuts)
        described = f"{foreign.WIRINGS[shortcuts]} ({errors[shortcuts]:.1f}% error on training images, {others})"
    net = foreign.build_net(found, shortcuts or "after")
    name = net_name(net)
    named = tuple(part.strip() for part in classes.split(",")) if classes is not None else found.classes
    classifier = PixelClassifier(net, normalization, name, named)
    say(f"deepres: {file} is {name}, {described}; normalised with {normalized}")
    if found.left_over:
        say(f"deepres: left over in {file}, and not used: {summarize(found.left_over)}")
    outcome = f"{len(classifier.classes)} classes that are not CIFAR-10's, so that there is no test error"
    if tuple(classifier.classes) == CLASSES:
        logits = classifier.predict_logits(torch.from_numpy(data.test.images))
        error = error_percent(logits, torch.from_numpy(data.test.labels))
        outcome = f"test error {error:.2f}% over {len(data.test.labels):,} images"
    save_weights(output, name, net, normalization, named)
    out.print(f"{output}: {name}, {outcome}", markup=False, soft_wrap=True)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} is not three numbers with commas, such as 0.49,0.48,0.45") from None
