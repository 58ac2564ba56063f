"""Who may train in a run directory: a new run, or the one that was begun there."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch

from deepres.backends.choose import choose
from deepres.errors import UserError
from deepres.files import read_json, write_json
from deepres.models import ResNet
from deepres.runs.directory import ANOTHER_PLACE, RunDir
from deepres.runs.finished import read_record
from deepres.runs.schema import Environment, Result, RunRecord
from deepres.training.checkpoint import decode_state
from deepres.training.config import RunConfig
from deepres.training.nets import build_net
from deepres.training.progress import Reporter
from deepres.training.sets import Sets

SAME_BITS = ("device", "device_name", "num_threads", "torch")  # must be the same for a run to continue bit-identical


def claim(
    run_dir: RunDir, config: RunConfig, sets: Sets, device: torch.device, target: int, reporter: Reporter
) -> RunConfig:
    """Write the configuration into a new run directory, or compare it with the one begun there.

    Returns the configuration with nothing left to "auto", but for the backend of a run that is finished.

    Raises:
        UserError: a different run was begun here; the message shows the difference.
    """
    begun = begun_record(run_dir, config.record(sets.record))
    if begun is not None:
        config = config.settled_by(begun)
        check_same(begun, config.record(sets.record), f"run directory {run_dir} was begun with")
    finished = finished_result(run_dir, target)
    if begun is None and finished is not None:
        named = {key: getattr(finished, key) for key in ("model", "option", "seed", "recipe")}
        asked = {"model": config.name, "option": config.option, "seed": config.seed, "recipe": config.recipe.name}
        _refuse(named, asked, f"run directory {run_dir} was finished with")
    if begun is None or finished is None:
        config = settle(run_dir, config, sets, device, target, reporter)
    if not run_dir.recipe.exists():
        write_json(run_dir.recipe, config.to_json(sets.record))
    return config


def begun_record(run_dir: RunDir, now: RunRecord) -> RunRecord | None:
    """Return the record of the run begun here: that of recipe.json or, where that was lost, of its checkpoint.

    `now` stands in for what a run begun by an older version has not recorded and cannot have had otherwise.
    """
    if run_dir.recipe.exists():
        try:
            return read_record(run_dir, default=now)
        except UserError as fault:
            raise UserError(f"{fault}: put it back, or delete it, for checkpoints hold the same") from None
    if (found := run_dir.latest_checkpoint()) is None:
        return None
    path, content, _ = found
    try:
        record = decode_state(content, torch.device("cpu")).get("config")
    except Exception:  # whatever a file of another origin makes torch raise; loading it will say so
        return None
    return None if record is None else RunRecord.from_json(record, path)


def check_same(begun: RunRecord, now: RunRecord, what: str) -> None:
    """Compare two records.

    Raises:
        UserError: they differ; the message begins with `what` and shows the differences.
    """
    _refuse(begun.to_json(), now.to_json(), what)


def _refuse(begun: Any, now: Any, what: str) -> None:
    if differences := list(_differences(begun, now)):
        raise UserError(
            f"{what} another configuration ({'; '.join(differences)}): give the same one, or {ANOTHER_PLACE}"
        )


def _differences(begun: Any, now: Any, name: str = "") -> Iterator[str]:
    """Compare two configurations, by name: "recipe.momentum was 0.9, is 0.8"."""
    if isinstance(begun, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*begun, *now]):
            yield from _differences(begun.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif begun != now:
        yield f"{name} was {begun}, is {now}"


def settle(
    run_dir: RunDir, config: RunConfig, sets: Sets, device: torch.device, target: int, reporter: Reporter
) -> RunConfig:
    """Replace what is left to "auto": by what the run had at its last start, else by what is fastest here."""
    last = last_start(run_dir) if config.backend == "auto" else None
    if last and last.backend == "fused" and config.precision != "auto":
        return replace(config, backend="fused")  # if that works no more, its place is taken when it is built
    net = build_net(config.model, option=config.option, seed=config.seed, num_classes=sets.num_classes)
    choice = choose(
        cast(ResNet, net.to(device)),  # any module; the fused kernels look for themselves
        device,
        precision=config.precision,
        backend=config.backend,
        num_steps=target,
        sizes=[sets.image_rows, *config.recipe.for_images_of(sets.image_rows).small_sizes],
        notice=reporter.notice if last is None else lambda _: None,
    )
    backend = choice.backend
    if last and last.backend and last.backend != backend:
        backend = last.backend
        reporter.notice(
            f"continuing with the backend {backend}, as the run began: --backend {choice.backend} is faster "
            "(other rounding)"
        )
    return replace(config, precision=choice.precision, backend=backend)


def last_start(run_dir: RunDir) -> Environment | None:
    """Return environment.json, or None if there is none that can be used; nothing but notices depends on it."""
    try:
        content = read_json(run_dir.environment, required=("earlier_starts", "backend", *SAME_BITS))
        return Environment.from_json(content, run_dir.environment)
    except UserError:
        return None


def finished_result(run_dir: RunDir, target: int) -> Result | None:
    """Return the result of a run that has already taken `target` steps, else None: it is to continue.

    Raises:
        UserError: result.json is damaged.
    """
    if not run_dir.result.exists():
        return None
    try:
        result = Result.from_json(read_json(run_dir.result), run_dir.result)
    except UserError as fault:
        raise UserError(f"{fault}: delete it, and the same command resumes from the last checkpoint") from None
    return result if result.steps >= target else None
