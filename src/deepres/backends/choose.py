"""Chooses precision and backend by measuring a net on this machine, for two seconds and once.

What was measured is kept in the user's cache, so that all runs of a net on a machine are computed in the same way. A
run that is resumed keeps the precision and the backend that it was begun with.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from torch import nn

from deepres._version import __version__
from deepres.backends.build import build_backend, check_backend, plain_backend, why_not_fused, without_kernels
from deepres.backends.device import check_precision, describe_device, find_compiler, native_precisions
from deepres.backends.fused.build import SOURCE, kernels_error
from deepres.backends.machine import num_cores
from deepres.backends.torch_backend import Backend
from deepres.errors import UserError, first_line
from deepres.files import read_json, write_json
from deepres.models import ResNet

SECONDS = 2.0  # for all measurements of a choice
STEP_SECONDS = 0.03  # what a measured step of the fastest way takes about: mini-batches are as large as that allows
SMALL_BATCH, LARGE_BATCH = 4, 128
# A way that takes so many times as long as the fastest is not measured in the first round, the second, the third and
# those that follow. What is known before the first, of few images and cold caches, is worth little, and another
# program on the same core doubles the time of a step.
FAR_BEHIND = (8.0, 3.0, 3.0, 2.2)
# A way is taken only if it is so much faster than those before it in the order of preference. Single measurements vary
# by a few percent; runs of equal speed should be computed alike, and in the paper's precision.
MARGIN = 1.05

Way = tuple[str, str]
"""Backend and precision."""


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the speed of a net depends on beside the net, as plain data."""
    return {
        "device": describe_device(device),
        "capabilities": sorted(name for name, there in torch.cpu.get_capabilities().items() if there is True),
        "cores": num_cores(),
        "compiler": find_compiler(),
        "torch": torch.__version__,
        "deepres": __version__,
        "kernels": digest(b"".join(path.read_bytes() for path in sorted(SOURCE.parent.glob("*.[ch]*")))),
    }


@dataclass(frozen=True)
class Machine:
    """What computes nets, and what `choose` asks about it; by default this machine."""

    precisions: Callable[[torch.device], Sequence[str]] = native_precisions
    """Those that "auto" chooses among, see `native_precisions`."""
    why_not_fused: Callable[[nn.Module, torch.device, str, Sequence[int]], str | None] = why_not_fused
    """See `deepres.backends.build.why_not_fused`."""
    build: Callable[[str, ResNet, torch.device, str, int, Callable[[str], None]], Backend] = build_backend
    """See `deepres.backends.build.build_backend`."""
    describe: Callable[[torch.device], Mapping[str, Any]] = describe_machine
    """What was measured on a machine with another description is measured anew."""


HERE = Machine()


@dataclass(frozen=True)
class Choice:
    """How a net is computed, and why."""

    precision: str
    backend: str
    images_per_second: Mapping[str, float]
    """What was measured of each way, such as "fused float32"; empty where there was nothing to choose."""

    def __str__(self) -> str:
        """Say it in one line."""
        chosen = f"precision {self.precision}, backend {self.backend}"
        if not self.images_per_second:
            return chosen
        speeds = sorted(self.images_per_second.items(), key=lambda item: -item[1])
        return f"{chosen}: measured {', '.join(f'{way} {speed:,.0f}' for way, speed in speeds)} images/s"


def choose(
    model: ResNet,
    device: torch.device,
    *,
    precision: str,
    backend: str,
    num_steps: int,
    sizes: Sequence[int],
    notice: Callable[[str], None],
    machine: Machine = HERE,
    clock: Callable[[], float] = perf_counter,
) -> Choice:
    """Replace what is "auto" of precision and backend by what is fastest here; say in `notice` what and why.

    On a CPU the fused kernels and plain torch are measured in float32 and, where the hardware has it, bfloat16.
    Starting torch.compile takes longer than that: it replaces plain torch where this was the fastest and the run is
    long. Nothing is measured on a GPU: it computes in the narrowest precision that suits it, and by the fused kernels
    where there are some.

    Args:
        model: left as it is.
        device: where the model lies.
        precision: "auto", "float32", "bfloat16" or "float16".
        backend: "auto", "fused", "compiled" or "eager".
        num_steps: the length of the run.
        sizes: rows of the images, the largest first, which is measured.
        notice: is given lines for the user.
        machine: on which the net is to be computed.
        clock: returns seconds since some time; what is measured is measured by it.

    Raises:
        UserError: an unknown or impossible precision or backend.
    """
    check_precision(precision, device)
    check_backend(backend)
    precisions = [precision] if precision != "auto" else machine.precisions(device)
    if device.type != "cpu":
        precisions = precisions[-1:]
    ways: list[Way] = []
    if backend in ("auto", "fused"):
        with ThreadPoolExecutor() as pool:  # who asks for kernels for the first time has them compiled
            answers = list(pool.map(lambda each: machine.why_not_fused(model, device, each, sizes), precisions))
        ways += [("fused", each) for each, reason in zip(precisions, answers, strict=True) if reason is None]
        reasons = [reason for reason in answers if reason is not None]
        if backend == "fused" and not ways:
            raise kernels_error(reasons[0])
        if not ways:
            notice(without_kernels(reasons[0]))
    if backend != "fused":
        ways += [("eager", each) for each in precisions]
    speeds: Mapping[str, float] = {}
    if device.type == "cpu" and "auto" in (precision, backend) and len(ways) > 1:
        speeds = measured_speeds(model, device, ways, sizes[0], machine, clock=clock)
    chosen = prefer(ways, speeds)
    name = chosen[0]
    if name == "eager":
        name = plain_backend(num_steps, device, notice) if backend == "auto" else backend
    choice = Choice(chosen[1], name, speeds)
    if speeds:
        notice(str(choice))
    return choice


def prefer(ways: Sequence[Way], speeds: Mapping[str, float]) -> Way:
    """Return the first way that is within `MARGIN` of the fastest; a way that was not measured is too slow."""
    fastest = max(speeds.values(), default=0.0)
    return next((way for way in ways if speeds.get(" ".join(way), 0.0) * MARGIN >= fastest), ways[0])


def measured_speeds(
    model: ResNet,
    device: torch.device,
    ways: Sequence[Way],
    size: int,
    machine: Machine = HERE,
    *,
    clock: Callable[[], float] = perf_counter,
    lock_seconds: float = 60.0,
) -> dict[str, float]:
    """Return the images per second of each way, from the user's cache or by measuring, one process at a time.

    Another process that measures the same is waited for `lock_seconds` at most.
    """
    key = describe_measurement(model, device, ways, size, machine)
    path = cache_file(key)
    with _alone(path.with_suffix(".lock"), lock_seconds):
        if (speeds := read_speeds(path, key)) is None:
            speeds = measure(model, device, ways, size, machine, clock)
            with suppress(OSError, UserError):  # a cache that cannot be written
                write_json(path, {"key": key, "images_per_second": speeds})
        return speeds


@contextmanager
def _alone(path: Path, seconds: float) -> Iterator[None]:
    """Hold a lock, unless that is impossible or another process takes too long."""
    lock = FileLock(path, timeout=seconds)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def describe_measurement(
    model: nn.Module, device: torch.device, ways: Sequence[Way], size: int, machine: Machine = HERE
) -> dict[str, Any]:
    """Return what a measurement depends on, as plain data."""
    kind = type(model)
    return {
        **machine.describe(device),
        "net": f"{kind.__module__}.{kind.__qualname__} {digest(str(model).encode())}",
        "image_size": size,
        "ways": [" ".join(way) for way in ways],
    }


def digest(content: bytes) -> str:
    """Return a short hash."""
    return sha256(content).hexdigest()[:16]


def cache_file(key: Mapping[str, Any]) -> Path:
    """Return where a measurement is kept."""
    return user_cache_path("deepres") / "speed" / f"{digest(json.dumps(key, sort_keys=True).encode())}.json"


def read_speeds(path: Path, key: Mapping[str, Any]) -> dict[str, float] | None:
    """Return what was measured before; None if nothing was, or the file is damaged."""
    try:
        content = read_json(path, required=("key", "images_per_second"))
    except UserError:
        return None
    speeds = content["images_per_second"]
    if content["key"] != key or not isinstance(speeds, dict) or not speeds or not speeds.keys() <= set(key["ways"]):
        return None
    if not all(isinstance(speed, float) and math.isfinite(speed) and speed > 0 for speed in speeds.values()):
        return None
    return speeds


def measure(
    model: ResNet,
    device: torch.device,
    ways: Sequence[Way],
    size: int,
    machine: Machine,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Return the images per second of training steps, without the optimizer's share, of each way.

    The ways take turns, and of each the fastest step counts, for other programs come and go. A way for which the time
    would not do, or that raises an error, is missing in the answer.
    """
    begun = clock()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(LARGE_BATCH, 3, size, size, generator=generator).to(device)
    labels = torch.zeros(LARGE_BATCH, dtype=torch.int64, device=device)  # a class that every net has
    backends: dict[Way, Backend] = {}
    error: Exception | None = None

    def build(way: Way, capacity: int) -> None:
        backends[way] = machine.build(way[0], deepcopy(model), device, way[1], capacity, lambda _: None)

    def seconds_per_image(way: Way, num_images: int) -> float:
        start = clock()
        backends[way].forward_backward(images[:num_images], labels[:num_images])
        return (clock() - start) / num_images

    seconds: dict[Way, float] = {}
    for way in ways:
        known = way[0] in {backend for backend, _ in seconds}
        expected = 2 * SMALL_BATCH * max(seconds.values(), default=0.0) * (2 if known else 5)  # at most, by experience
        if clock() - begun + expected > SECONDS:
            continue
        try:
            build(way, SMALL_BATCH)
            seconds[way] = min(seconds_per_image(way, SMALL_BATCH) for _ in range(2))
        except (RuntimeError, UserError) as failure:
            error = failure
    if not seconds:
        raise UserError(f"a training step of this net fails ({first_line(error or RuntimeError())})") from error

    num_images = max(SMALL_BATCH, min(LARGE_BATCH, int(STEP_SECONDS / min(seconds.values()))))
    rounds: list[dict[Way, float]] = []
    while True:
        running = rounds[0] if rounds else seconds
        best = {way: min(times[way] for times in rounds if way in times) for way in running} if rounds else seconds
        far = FAR_BEHIND[min(len(rounds), len(FAR_BEHIND) - 1)]
        contenders = sorted((way for way in running if best[way] < far * min(best.values())), key=best.__getitem__)
        left = SECONDS - (clock() - begun)
        while len(contenders) > 1 and num_images * sum(best[way] for way in contenders) > left:
            contenders.pop()
        if len(contenders) == 1:
            return {" ".join(way): 1 / time for way, time in {**seconds, **best}.items()}
        if not rounds and num_images > SMALL_BATCH:
            for way in contenders:
                build(way, num_images)
        rounds.append({way: seconds_per_image(way, num_images) for way in contenders})
