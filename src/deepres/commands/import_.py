"""`deepres import`: other people's checkpoints."""

from pathlib import Path

import click

from deepres.commands.options import DATA_DIR
from deepres.console import out, say
from deepres.errors import UserError


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", "output", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write."
)
@click.option("--norm", help="What the net was trained with: cifar10 or imagenet statistics. Default: cifar10.")
@click.option("--mean", help="R,G,B in units of pixels / 255, in place of --norm.")
@click.option("--std", help="R,G,B in units of pixels / 255, in place of --norm.")
@click.option(
    "--shortcuts",
    help="Of nets without projections: after, around (where the zero channels stand) or none (plain). "
    "Default: found out with training images.",
)
@DATA_DIR
def import_checkpoint(
    file: Path,
    output: Path,
    norm: str | None,
    mean: str | None,
    std: str | None,
    shortcuts: str | None,
    data_dir: Path | None,
) -> None:
    """Turn the checkpoint FILE of another CIFAR ResNet repository into weights for every command here.

    The net is recognised by the names and shapes of its weights. FILE is read without running code from it.
    """
    import torch

    from deepres.data.cifar10 import load_cifar10
    from deepres.errors import unknown_name
    from deepres.rundir import check_parent
    from deepres.training.checkpoint import save_weights
    from deepres.training.evaluate import error_percent
    from deepres.weights import foreign
    from deepres.weights.classifier import PixelClassifier

    if output.suffix != ".safetensors":
        raise UserError(f"{output} must end in .safetensors")
    check_parent(output)
    if shortcuts is not None and shortcuts not in foreign.WIRINGS:
        raise unknown_name("shortcuts", shortcuts, foreign.WIRINGS)
    if (mean is None) != (std is None) or (mean is not None and norm is not None):
        raise UserError("give --mean and --std together, or --norm, or none of them")
    if mean is not None and std is not None:
        normalization = foreign.make_normalization(_numbers("--mean", mean), _numbers("--std", std))
        normalized = f"mean {mean}, std {std}"
    else:
        normalization = foreign.get_normalization(norm or "cifar10")
        normalized = f"{norm or 'cifar10'} statistics{'' if norm else ' (assumed: see --norm, --mean and --std)'}"

    found = foreign.recognise(foreign.read_checkpoint(file), file)
    data = load_cifar10(data_dir)
    if found.option != "A":
        if shortcuts is not None:
            raise UserError(f"{file} has projections in its shortcuts (option {found.option}): leave out --shortcuts")
        described = f"option {found.option} shortcuts"
    elif shortcuts is not None:
        described = foreign.WIRINGS[shortcuts]
    else:
        shortcuts, errors = foreign.find_wiring(found, normalization, data.train)
        others = ", ".join(f"{error:.1f}% if {w}" for w, error in errors.items() if w != shortcuts)
        described = f"{foreign.WIRINGS[shortcuts]} ({errors[shortcuts]:.1f}% error on training images, {others})"
    net = foreign.build_net(found, shortcuts or "after")
    name = f"{'resnet' if net.residual else 'plain'}{net.depth}"
    say(f"deepres: {file} is {name}, {described}; normalised with {normalized}")
    classifier = PixelClassifier(net, normalization, name)
    error = error_percent(
        classifier.predict_logits(torch.from_numpy(data.test.images)), torch.from_numpy(data.test.labels)
    )
    save_weights(output, name, net, normalization)
    out.print(
        f"{output}: {name}, test error {error:.2f}% over {len(data.test.labels):,} images",
        markup=False,
        soft_wrap=True,
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r} is not three numbers with commas, such as 0.49,0.48,0.45") from None
