"""Finds one of our nets in a file of any kind, without running code from it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepres.data.augment import Normalization
from deepres.errors import UserError
from deepres.files import read_json
from deepres.inputs import IMAGE_SIZE, SIZES
from deepres.models import build_model, make_name, parse_name
from deepres.models.resnet import MAX_DEPTH, MAX_WIDTH, WIDTHS
from deepres.weights.classifier import check_classes, read_extra_state
from deepres.weights.content import State, flatten, is_plain, kind_of, read_content, type_of

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".tar", ".ckpt", ".bin", ".pkl")  # of files of weights


RENAMED: tuple[
    tuple[str, str | Callable[[re.Match[str]], str]], ...
] = (  # from other repositories' names to ours, in this order
    (r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.", r"\1"),
    (r"^(features\.)?(convIn|conv|init_block\.conv)\.(?=weight)", "conv1."),
    (r"^(features\.)?(bnIn|bn|init_block\.bn)\.", "bn1."),
    (r"^(linear|fcOut|output|classifier|head)\.", "fc."),
    (r"^stack1\.", "layer1."),
    (r"^stack([23])a\.", r"layer\1.0."),
    (r"^(?:features\.)?stage(\d)\.(?:block|unit)(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
    (r"^stack([23])b\.(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) + 1}."),
    (r"\.body\.conv(\d)\.(conv|bn)\.", r".\2\1."),
    (r"\.(downsample|identity_conv)\.", ".shortcut."),
    (r"\.shortcut\.conv\.", ".shortcut.0."),
    (r"\.shortcut\.bn\.", ".shortcut.1."),
)


@dataclass(frozen=True)
class FoundNet:
    """Weights of one of our nets, as they were found in a file, under our names and in float32."""

    state: State
    depth: int
    width: int
    """How many times the paper's filters each stage has."""
    option: str
    """"A" where no shortcut has parameters: then the net may be plain, or pad its shortcuts in another way."""
    num_classes: int
    prefix: str = ""
    """What stands before every key of the net in the file, such as "state_dict.module."."""
    name: str | None = None
    """The net's, where the file tells it."""
    normalization: Normalization | None = None
    """What images are normalized by; None where the file does not hold it."""
    classes: tuple[str, ...] | None = None
    """The names of the classes; None where the file does not hold them."""
    title: str = ""
    """What the weights are called, where the file tells it."""
    left_over: tuple[str, ...] = ()
    """The keys of all other tensors in the file."""


def find_net(path: Path) -> FoundNet:
    """Find the weights of one of our nets in a file.

    Of several nets in a file, the one at the shortest prefix is taken, the first of equal ones, and an exponential
    moving average ("ema") only where there is no other.

    Raises:
        UserError: the file cannot be read, or fits none of our nets; the message names what does not fit.
    """
    content, metadata = read_content(path)
    tensors = unpruned(dict(flatten(content)))
    if not tensors:
        raise UserError(f"{path} holds no state dict, but {kind_of(content)}")
    if not (prefixes := net_prefixes(tensors)):
        first = next(iter(tensors))
        raise UserError(
            f"{path} is of no net of the paper, and not written by deepres: its key {first!r} has no place"
        )
    fits: list[FoundNet] = []
    faults: list[str] = []
    for prefix in prefixes:
        under = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        try:
            fits.append(_fit(under, prefix))
        except UserError as fault:
            faults.append(str(fault))
    if not fits:
        if metadata:
            raise UserError(f"{path} does not fit its net {metadata['model']}: {faults[0]}")
        raise UserError(f"{path} is of no net of the paper, and not written by deepres: {faults[0]}")
    found = min(fits, key=lambda net: ("ema" in net.prefix.lower(), net.prefix.count(".")))
    base = found.prefix.removesuffix("net.")  # where a classifier has its normalisation and description
    own = {key: tensors.get(f"{base}{key}") for key in ("mean", "std", "_extra_state")}
    stated = {**_config_beside(path), **read_extra_state(own["_extra_state"]), **metadata}
    normalization = _normalization(own["mean"], own["std"], path, stated.get("model"))
    check_values(found.state, f"{path} holds")
    _check_description(stated, found, path)
    if normalization is None and metadata:
        raise UserError(f"{path} does not fit its net {metadata['model']}: it lacks 'mean' or 'std'")
    used = {found.prefix + key for key in _our_keys(tensors, found)}
    used |= {f"{base}{key}" for key in own} if stated or normalization else set()
    try:
        classes = check_classes(stated["classes"], found.num_classes) if stated.get("classes") else None
    except UserError as fault:
        raise UserError(f"{path} is damaged: {fault}") from None
    return replace(
        found,
        name=stated.get("model"),
        normalization=normalization,
        classes=classes,
        title=title if isinstance(title := stated.get("name"), str) else "",
        left_over=tuple(key for key in tensors if key not in used),
    )


def _config_beside(path: Path) -> dict[str, Any]:
    """Return what a Hub folder's config.json says of the weights file beside it."""
    config = path.with_name("config.json")
    if path.name != "model.safetensors" or not config.is_file():
        return {}
    content = read_json(config)
    return content if parse_name(content.get("model")) else {}


def _our_keys(tensors: State, found: FoundNet) -> Iterator[str]:
    """Yield the keys, without the prefix, of the tensors that became the net's."""
    for key in tensors:
        if key.startswith(found.prefix) and our_name(key.removeprefix(found.prefix)) in found.state:
            yield key.removeprefix(found.prefix)


def _check_description(stated: Mapping[str, Any], found: FoundNet, path: Path) -> None:
    """Raise the error for weights that are not of the net that the file names."""
    if (name := stated.get("model")) is None:
        return
    option, count = stated.get("option", "A"), str(stated.get("num_classes", found.num_classes))
    if (parts := parse_name(name)) is None:
        raise UserError(f"{path} does not fit its net {name}: there is no such net")
    residual, depth, width = parts
    if (depth, width, option, count) != (found.depth, found.width, found.option, str(found.num_classes)):
        wide = f"of {found.width} times the filters, " if found.width > 1 or width > 1 else ""
        raise UserError(
            f"{path} does not fit its net {name}, option {option}, {count} classes: "
            f"its weights are of {found.depth} layers, {wide}option {found.option}, {found.num_classes} classes"
        )
    if not residual and option != "A":
        raise UserError(f"{path} does not fit its net {name}: a plain net has no option {option}")


def _normalization(mean: Tensor | None, std: Tensor | None, path: Path, name: object) -> Normalization | None:
    """Return what the file holds as a normalisation, in float32, if it is one.

    Raises:
        UserError: it is one of impossible values.
    """
    if mean is None or std is None:
        return None
    for tensor in (mean, std):
        size = tensor.shape[-1] if tensor.ndim == 3 else 0
        if not (is_plain(tensor) and tensor.is_floating_point()) or not (
            tensor.shape == (3, 1, 1) or (tensor.shape == (3, size, size) and size in SIZES)
        ):
            raise UserError(
                f"{path} does not fit its net {name}: it holds a mean or std of {tensor.dtype} and shape "
                f"{tuple(tensor.shape)}, not float (3, 1, 1) or (3, {IMAGE_SIZE}, {IMAGE_SIZE})"
            )
    normalization = Normalization(mean.float(), std.float())
    check_values({"mean": normalization.mean, "std": normalization.std}, f"{path} holds")
    if not (normalization.std > 0).all():
        raise UserError(f"{path} holds a std that is not above 0, which divides pixels: the file is damaged")
    return normalization


def check_values(tensors: State, beginning: str) -> None:
    """Raise the error for weights that are not finite, or variances below 0."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError(
                f"{beginning} weights that are not finite ({key!r}): the training diverged, or it is damaged"
            )
        if key.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{beginning} a variance below 0 ({key!r}): it is damaged")


def _fit(state: State, prefix: str) -> FoundNet:
    """Find the net whose keys are all in a state dict.

    Raises:
        UserError: there is none; the message names the first key that does not fit.
    """
    ours: dict[str, str] = {}  # our name -> the file's
    doubles: list[tuple[str, str]] = []
    for key in state:
        if (name := our_name(key)) in ours:
            doubles.append((ours[name], key))
        ours.setdefault(name, key)
    blocks = {m[1] for name in ours if (m := re.match(r"layer1\.(\d+)\.", name))}
    projections = [name for name in ours if re.match(r"layer\d\.\d+\.shortcut\..*weight$", name)]
    option = "C" if any(name.startswith("layer1.") for name in projections) else "B" if projections else "A"
    depth = min(6 * max(len(blocks), 1) + 2, MAX_DEPTH)
    head = state[ours["fc.weight"]] if "fc.weight" in ours else torch.zeros(10, WIDTHS[-1])
    num_classes = len(head) if head.ndim == 2 and len(head) else 10
    filters = len(state[ours["conv1.weight"]]) if "conv1.weight" in ours and state[ours["conv1.weight"]].ndim else 0
    # Where the filters are no multiple of the paper's, these are compared, and the first key that differs is named.
    width = filters // WIDTHS[0] if filters in range(WIDTHS[0], MAX_WIDTH * WIDTHS[0] + 1, WIDTHS[0]) else 1
    name = make_name(True, depth, width)
    with torch.device("meta"):
        expected = build_model(name, option=option, num_classes=num_classes).state_dict()
    beside = f"beside {name}, option {option},"
    found: State = {}
    for name, place in expected.items():
        counter = name.endswith("num_batches_tracked")  # which old versions of torch did not save
        if name not in ours and not counter:
            hint = ": save the net's state_dict(), which has the statistics too" if "running" in name else ""
            raise UserError(f"{beside} it lacks what we call {name!r}{hint}")
        tensor = state[ours[name]] if name in ours else torch.zeros((), dtype=torch.int64)
        if counter and tensor.numel() == 1:
            tensor = tensor.reshape(())
        if tensor.shape != place.shape:
            raise UserError(
                f"{beside} its key {prefix + ours[name]!r} has shape {tuple(tensor.shape)}, not {tuple(place.shape)}"
            )
        if not (is_plain(tensor) and (counter or tensor.is_floating_point())):
            raise UserError(f"{beside} its key {prefix + ours[name]!r} is {type_of(tensor)}: no trained weight is")
        found[name] = tensor.detach().to(torch.int64 if counter else torch.float32).clone()
    for key, double in doubles:
        shape = f"shape {tuple(state[double].shape)}, not {tuple(state[key].shape)}, and"
        raise UserError(f"{beside} its key {prefix + double!r} has {shape} no place beside {prefix + key!r}")
    for name, key in ours.items():  # of a net that computes more than this one; what tools add has other last names
        if name not in expected and re.match(
            r"(layer\d|conv1|bn1|fc)\..*(weight|bias|running_mean|running_var)$", name
        ):
            raise UserError(f"{beside} its key {prefix + key!r} has no place")
    return FoundNet(found, depth, width, option, num_classes, prefix)


def net_prefixes(tensors: State) -> list[str]:
    """Return the prefixes under which there are a first convolution and a last layer; if none, the best with one."""
    prefixes: dict[str, dict[str, None]] = {"conv1.weight": {}, "fc.weight": {}}
    for key in tensors:
        parts = key.split(".")
        for i in range(len(parts)):
            if (name := our_name(".".join(parts[i:]))) in prefixes:
                prefixes[name][".".join([*parts[:i], ""]) if i else ""] = None
    both = [prefix for prefix in prefixes["conv1.weight"] if prefix in prefixes["fc.weight"]]
    return both or sorted([*prefixes["conv1.weight"], *prefixes["fc.weight"]], key=len)[:1]


def our_name(key: str) -> str:
    """Return what we call a parameter: "stack2b.0.conv1.weight" is our "layer2.1.conv1.weight"."""
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key


def unpruned(tensors: State) -> State:
    """Multiply what torch.nn.utils.prune keeps apart, `weight_orig` and `weight_mask`."""
    whole: State = {}
    for key, tensor in tensors.items():
        stem = key.removesuffix("_orig").removesuffix("_mask")
        original, mask = tensors.get(f"{stem}_orig"), tensors.get(f"{stem}_mask")
        if original is None or mask is None or original.shape != mask.shape or not is_plain(original):
            whole[key] = tensor
        else:
            whole[stem] = original * mask
    return whole


def summarize(keys: Sequence[str], shown: int = 4) -> str:
    """Write keys in a few words: a part that has many as "ema.* (116)", and of the rest the first ones."""
    roots = Counter(key.partition(".")[0] for key in keys)
    words = [f"{root}.* ({count})" for root, count in roots.items() if count > shown]
    words += [key for key in keys if roots[key.partition(".")[0]] <= shown]
    return ", ".join(words[:shown]) + (f" and {len(words) - shown} more" if len(words) > shown else "")
