"""`deepres responses`: the layer responses of trained nets, figure 7."""

from pathlib import Path

import click

from deepres.cli.options import DATA_DIR, DEVICE, PATH, chosen_release
from deepres.errors import UserError, extra_needed
from deepres.streams import err, out


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN_OR_WEIGHTS...", type=PATH)
@click.option("--out", "out_dir", type=PATH, required=True, help="Folder for data and figure.")
@DATA_DIR
@DEVICE
def responses(paths: tuple[Path, ...], out_dir: Path, data_dir: Path | None, device: str) -> None:
    """Measure how strongly each layer of trained nets responds, and draw figure 7.

    RUN_OR_WEIGHTS is the directory of a finished run that holds model.safetensors, or such a file. Writes
    responses.json, responses.csv and figure7.png, .svg and .pdf; `deepres report` takes them up where it finds them.
    """
    with extra_needed("deepres responses", "report"):
        from deepres.report.responses import Responses, draw_figure7, write_responses
        from deepres.report.style import write_figure

    import torch

    from deepres.backends.device import resolve_device
    from deepres.data.cifar10 import load_cifar10
    from deepres.files import make_folder
    from deepres.runs.directory import RunDir
    from deepres.weights.file import load_weights
    from deepres.weights.responses import layer_responses
    from deepres.zoo.catalogue import weights_file

    chosen = resolve_device(device)
    files = [weights_file(path) for path in paths]
    loaded = [(path, load_weights(path)) for path in files]
    images = torch.from_numpy(load_cifar10(data_dir, chosen_release()).train.images).to(chosen)
    for path, net in loaded:
        if (size := net.normalization.image_size) != images.shape[-1]:
            raise UserError(
                f"{path} takes images of {size}x{size} pixels, and the responses are to CIFAR-10's: leave it out"
            )
    make_folder(out_dir)
    nets = []
    with err.status("") as status:
        for path, net in loaded:
            status.update(f"{net.name}: responses to {len(images):,} images")
            std = layer_responses(net.model.to(chosen), images, net.normalization.to(chosen))
            of_run = path.name == RunDir(path.parent).weights.name
            source = path.resolve().parent.name if of_run else path.name
            nets.append(Responses(net.name, source, tuple(std), tuple(std.values())))
    written = write_responses(out_dir, nets, len(images)) + write_figure(draw_figure7(nets), out_dir, "figure7")
    for done in nets:
        low, high = min(done.std), max(done.std)
        out.print(f"{done.model}: std of {len(done.std)} layers {low:.3f} to {high:.3f}", markup=False)
    out.print(f"written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)
