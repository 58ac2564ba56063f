"""A grid on this machine: each run a process."""

import os
from collections import deque
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from deepres.backends.machine import memory_bytes, num_cores
from deepres.errors import UserError
from deepres.grid.display import GridDisplay
from deepres.grid.plan import Job
from deepres.grid.train_process import Event, Outcome, TrainProcess, this_program
from deepres.runs.directory import RunDir
from deepres.training.stopping import StopRequest

RUN_MEMORY = 2 << 30  # bytes that a run takes at most, but for nets of 110 layers and more


def default_parallel(num_runs: int, num_gpus: int) -> int:
    """Return how many runs to train at the same time: one per GPU, else one per core, as far as memory goes.

    Two runs of one thread each train more images a second than one run of two threads.
    """
    if num_gpus:
        return max(1, min(num_gpus, num_runs))
    return max(1, min(num_cores(), num_runs, (memory_bytes() or RUN_MEMORY) // RUN_MEMORY))


def place_environment(place: int, num_parallel: int, num_gpus: int) -> dict[str, str]:
    """Return the variables of the run at a place: its share of the threads, unless the user set it, and its GPU."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // num_parallel))
    environment = {"OMP_NUM_THREADS": threads}
    if num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(gpu) for gpu in range(num_gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return environment


def run_local(
    jobs: Sequence[Job],
    num_parallel: int,
    num_gpus: int,
    settings: Sequence[str],
    display: GridDisplay,
    stop: StopRequest,
) -> dict[str, Outcome]:
    """Train runs, `num_parallel` at a time, and return how each ended, by its name.

    Args:
        jobs: in this order.
        num_parallel: processes at the same time.
        num_gpus: how many GPUs they share; 0 for the CPU.
        settings: further arguments of `deepres train`.
        display: is informed of the progress.
        stop: once asked, the running ones save their state and end, and nothing more is begun.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = deque(jobs)
    running: dict[str, tuple[Job, TrainProcess]] = {}
    places = list(range(num_parallel))
    taken: dict[str, int] = {}
    events: SimpleQueue[tuple[Job, Event | None]] = SimpleQueue()

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.name] = outcome
        display.ended(job, outcome)

    def start(job: Job) -> None:
        run_dir = RunDir(job.path)
        if run_dir.in_use():
            end(job, Outcome("busy", "another process trains there"))
            return
        place = places[0]
        try:
            process = TrainProcess(
                [*job.arguments(), *settings],
                run_dir,
                program=this_program(),
                environment=place_environment(place, num_parallel, num_gpus),
                listen=lambda event: events.put((job, event)),
            )
        except UserError as error:
            end(job, Outcome("failed", str(error)))
            return
        places.remove(place)
        taken[job.name] = place
        running[job.name] = job, process
        display.started(job)

    try:
        while running or (waiting and stop.signal_number is None):
            while waiting and places and stop.signal_number is None:
                start(waiting.popleft())
            if stop.signal_number is not None:
                display.stopping()
                for _, process in running.values():
                    process.stop()
            try:
                job, event = events.get(timeout=0.2)
            except Empty:
                continue
            if event is not None:
                display.event(job, event)
                continue
            _, process = running.pop(job.name)
            end(job, process.outcome())
            places.append(taken.pop(job.name))
    finally:
        for _, process in running.values():  # after a second Ctrl-C, or an error here
            process.kill()
    return outcomes
