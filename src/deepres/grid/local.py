"""A grid on this machine: each run a process, or on a GPU several runs in one."""

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from queue import Empty, SimpleQueue
from typing import Any

from deepres.backends.machine import memory_bytes, num_cores
from deepres.errors import UserError
from deepres.grid.display import GridDisplay
from deepres.grid.plan import Job
from deepres.grid.train_process import Event, Outcome, SharedProcess, TrainProcess, this_program
from deepres.runs.directory import RunDir
from deepres.training.stopping import StopRequest

RUN_MEMORY = 2 << 30  # bytes that a run takes at most, but for nets of 110 layers and more
TOGETHER_ON_GPU = 6  # runs that share a GPU in one process: on an H100 they take half as long as one by one


def default_parallel(num_runs: int, num_gpus: int, *, cores: int | None = None, memory: int | None = None) -> int:
    """Return how many processes to train in at the same time: one per GPU, else one per core, as far as memory goes.

    Two runs of one thread each train more images a second than one run of two threads.

    Args:
        num_runs: of the grid.
        num_gpus: how many GPUs there are; 0 for the CPU.
        cores: how many cores there are; None: this machine's.
        memory: in bytes; None: this machine's.
    """
    if num_gpus:
        return max(1, min(num_gpus, num_runs))
    memory = memory or memory_bytes() or RUN_MEMORY
    return max(1, min(cores or num_cores(), num_runs, memory // RUN_MEMORY))


def default_together(num_runs: int, num_processes: int, replays: bool) -> int:
    """Return how many runs take turns in each process: several on a GPU that replays recorded steps, else one.

    Where the host starts every operation of a step, one run keeps it busy, and on a CPU one run keeps a core busy.
    """
    return min(TOGETHER_ON_GPU, ceil(num_runs / num_processes)) if replays else 1


def place_environment(place: int, num_parallel: int, num_gpus: int, cores: int | None = None) -> dict[str, str]:
    """Return the variables of a process at a place: its GPU and its share of the threads, unless the user set that."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (cores or num_cores()) // num_parallel))
    environment = {"OMP_NUM_THREADS": threads}
    if num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(gpu) for gpu in range(num_gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return environment


@dataclass(eq=False)
class Place:
    """A part of the machine: where a process computes, and the runs that it trains now, by name."""

    number: int
    process: TrainProcess | SharedProcess | None = None
    jobs: dict[str, Job] = field(default_factory=dict)

    def has_room(self, together: int) -> bool:
        """Tell whether another run may begin here."""
        if isinstance(self.process, SharedProcess):
            return self.process.is_open and len(self.jobs) < together
        return self.process is None


def run_local(
    jobs: Sequence[Job],
    num_processes: int,
    num_gpus: int,
    settings: Sequence[str],
    display: GridDisplay,
    stop: StopRequest,
    together: int = 1,
    cores: int | None = None,
) -> dict[str, Outcome]:
    """Train runs and return how each ended, by its name.

    Args:
        jobs: in this order.
        num_processes: processes at the same time.
        num_gpus: how many GPUs they share; 0 for the CPU.
        settings: further arguments of `deepres train`.
        display: is informed of the progress.
        stop: once asked, the running ones save their state and end, and nothing more is begun.
        together: how many runs take turns in a process; 1: each has a process of its own. If such a process dies, its
            runs begin again once.
        cores: which the processes share; None: this machine's.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = deque(jobs)
    places = [Place(number) for number in range(num_processes)]
    events: SimpleQueue[tuple[Place, Event | None]] = SimpleQueue()
    begun_again: set[str] = set()

    def end(job: Job, outcome: Outcome) -> None:
        outcomes[job.name] = outcome
        display.ended(job, outcome)

    def start(job: Job, place: Place) -> None:
        run_dir = RunDir(job.path)
        if run_dir.in_use():
            end(job, Outcome("busy", "another process trains there"))
            return
        others: dict[str, Any] = {
            "program": this_program(),
            "environment": place_environment(place.number, num_processes, num_gpus, cores),
            "listen": lambda event: events.put((place, event)),
        }
        try:
            if together == 1:
                place.process = TrainProcess([*job.arguments(), *settings], run_dir, **others)
            elif place.process is None:
                log = job.path.parent / f"process{place.number}.log"
                place.process = SharedProcess(together, settings, log, **others)
        except UserError as error:
            end(job, Outcome("failed", str(error)))
            return
        place.jobs[job.name] = job
        display.started(job)
        if isinstance(place.process, SharedProcess):
            place.process.begin([*job.arguments(), *settings], run_dir)

    def end_process(place: Place, outcome: Outcome) -> None:
        left, place.jobs, place.process = place.jobs, {}, None
        for job in left.values():
            if together > 1 and outcome.state == "failed" and job.name not in begun_again:
                begun_again.add(job.name)
                waiting.append(job)
                display.lost(job, f"lost with its process ({outcome.message}), to begin again")
            else:
                end(job, outcome)

    def receive(place: Place, event: Event) -> None:
        name = next(iter(place.jobs)) if together == 1 else event.get("run")
        if name not in place.jobs:
            return  # of a library that prints
        job = place.jobs[name]
        if event["event"] == "ended":
            del place.jobs[job.name]
            end(job, Outcome(event["state"], event["message"]))
        else:
            display.event(job, event)

    try:
        while any(place.process for place in places) or (waiting and stop.signal_number is None):
            while waiting and stop.signal_number is None:
                roomy = [place for place in places if place.has_room(together)]
                if not roomy:
                    break
                start(waiting.popleft(), min(roomy, key=lambda place: len(place.jobs)))
            running = [place.process for place in places if place.process is not None]
            if stop.signal_number is not None:
                display.stopping()
            for process in running:
                if stop.signal_number is not None:
                    process.stop()
                if isinstance(process, SharedProcess) and (stop.signal_number is not None or not waiting):
                    process.close()
            try:
                place, event = events.get(timeout=0.2)
            except Empty:
                continue
            if event is not None:
                receive(place, event)
            elif place.process is not None:
                end_process(place, place.process.outcome())
    finally:
        for place in places:  # after a second Ctrl-C, or an error here
            if place.process is not None:
                place.process.kill()
    return outcomes
