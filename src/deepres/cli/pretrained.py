"""The weights that a command is given: of the zoo, of a run, of a file, of one's own net."""

from pathlib import Path

from deepres.errors import UserError
from deepres.models.preact import preact_depth
from deepres.objects import load_object
from deepres.runs.directory import RunDir
from deepres.runs.finished import read_record
from deepres.streams import say
from deepres.training.nets import build_net, describe_net, name_of
from deepres.weights.classifier import PixelClassifier
from deepres.weights.own import load_own_weights, own_name, read_own_weights
from deepres.zoo.catalogue import find_entry, load_pretrained, weights_file


def load_classifier(net: str, own_net: str | None = None) -> PixelClassifier:
    """Load weights by name, run directory or file; those of a net of one's own into what its source makes.

    Args:
        net: see `deepres.load_pretrained`.
        own_net: FILE.py:NAME or module:NAME of the net that was trained; None: it is one of ours.

    Raises:
        UserError: there are no such weights, or they do not fit the net.
    """
    found = find_entry(net) if own_net is None else Path(net)
    path = weights_file(found) if isinstance(found, Path) else None
    if own_net is None:
        name = own_name(path) if path is not None and path.is_file() else None
        if name is not None and preact_depth(name) is None:
            raise UserError(f"{net} holds weights of your own net {name}: name its source with --net FILE.py:{name}")
        return load_pretrained(net)
    if path is None or not path.is_file():
        raise UserError(f"--net names the source of your own net, but {net!r} is no run directory or file of weights")
    made = load_object(own_net)
    weights = read_own_weights(path)
    if name_of(made) != weights.name:
        raise UserError(f"{net} holds weights of {weights.name}, and --net names {name_of(made)}")
    _compare_source(path.parent, made)
    num_classes = len(weights.classes)
    return load_own_weights(weights, build_net(made, option="A", seed=0, num_classes=num_classes), path)


def _compare_source(folder: Path, made: object) -> None:
    """Say so if the source has changed since the run in a folder was begun."""
    run_dir = RunDir(folder)
    if not run_dir.recipe.is_file():
        return
    then, now = read_record(run_dir).others.get("net"), describe_net(made)["net"]  # type: ignore[arg-type]
    if isinstance(then, dict) and then.get("source") != now["source"]:
        say(f"deepres: the source of {name_of(made)} has changed since {folder} was trained")  # type: ignore[arg-type]
