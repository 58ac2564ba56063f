"""A grid on a Ray cluster: Ray places the runs, this module brings their files home and starts lost ones again.

No storage is shared. A run trains in a temporary folder of its node and sends its files home at each checkpoint, to a
mailbox on the node of this program, which writes them into the run directory. When a node is lost its runs are
submitted again, with the files that lie at home, so that they continue from their last checkpoint.
"""

import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deepres.data.fetch import fetch_cifar10
from deepres.errors import UserError, first_line
from deepres.files import write_atomically
from deepres.grid.display import GridDisplay
from deepres.grid.plan import Job
from deepres.grid.train_process import Event, Outcome, TrainProcess, this_program
from deepres.runs.directory import RunDir, checkpoint_step
from deepres.training.stopping import StopRequest

RETRIES = 3  # nodes that a run may lose without a new checkpoint in between
POLL_SECONDS = 0.5
CONNECT_SECONDS = 20.0

Files = dict[str, bytes]
"""Contents by path within a run directory."""


@dataclass(frozen=True)
class Message:
    """What a run sends home: an event, files, or only a sign of life."""

    run: str
    attempt: int
    event: Event | None
    files: Files


class Mailbox:
    """A place where runs leave messages and learn when to stop, on the node of the program that reads them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._stop = False

    def put(self, message: Message) -> bool:
        """Leave a message; return whether the run is to save its state and end."""
        if message.event is not None or message.files:
            self._messages.append(message)
        return self._stop

    def take(self) -> list[Message]:
        """Return the messages that were not taken yet."""
        taken, self._messages = self._messages, []
        return taken

    def stop(self) -> None:
        """Ask all runs to save their state and end."""
        self._stop = True


@dataclass(frozen=True)
class Resources:
    """What Ray sets aside for each run."""

    cpus: float = 1.0
    gpus: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPUs", *([f"{self.gpus:g} GPUs"] if self.gpus else [])]
        return " and ".join(parts)


def train_on_node(
    run: str,
    attempt: int,
    arguments: Sequence[str],
    data_dir: str | None,
    threads: int,
    program: Sequence[str],
    files: Files,
    sources: Files,
    mailbox: Any,
) -> Outcome:
    """Train one run on the node that Ray has chosen, from the files of an earlier attempt if there are any.

    Args:
        run: its name.
        attempt: counts the times that the run was submitted.
        arguments: those of `deepres train`.
        data_dir: where CIFAR-10 lies on this node, or is to lie; fetched there by the first run that needs it.
        threads: of the computation.
        program: see `this_program`.
        files: what lies at home.
        sources: files of the user's own that the run needs, by their paths from the folder in which it works.
        mailbox: handle of a `Mailbox`.
    """
    sent: dict[str, tuple[int, int]] = {}

    # A task whose main thread waits for Ray lends its cores to other tasks; another thread may wait.
    waiting = ThreadPoolExecutor(1)

    def tell(event: Event | None = None, files: Files | None = None) -> bool:
        message = Message(run, attempt, event, files or {})
        return waiting.submit(lambda: bool(ray.get(mailbox.put.remote(message)))).result()

    folder = Path(tempfile.mkdtemp(prefix=f"deepres-{run}-"))
    try:
        tell({"event": "placed", "node": ray.get_runtime_context().get_node_id()})
        if "--data" not in arguments:
            fetch_cifar10(data_dir)
        run_dir = RunDir(folder / run)
        write_files(run_dir, files)
        for name, content in sources.items():
            (folder / "sources" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "sources" / name).write_bytes(content)
        here = folder / "sources" if sources else None
        events: SimpleQueue[Event | None] = SimpleQueue()
        environment = {"OMP_NUM_THREADS": str(threads)}
        process = TrainProcess(
            arguments, run_dir, program=program, environment=environment, listen=events.put, folder=here
        )
        try:
            while True:
                try:
                    event = events.get(timeout=POLL_SECONDS)
                except Empty:
                    must_stop = tell()
                else:
                    if event is None:
                        break
                    news = event["event"] in ("saved", "epoch")
                    must_stop = tell(event, changed_files(run_dir, sent) if news else {})
                if must_stop:
                    process.stop()
            outcome = process.outcome()
            tell(None, changed_files(run_dir, sent, everything=True))
            return outcome
        finally:
            process.kill()
    finally:
        waiting.shutdown(wait=False)
        shutil.rmtree(folder, ignore_errors=True)


def changed_files(run_dir: RunDir, sent: dict[str, tuple[int, int]], *, everything: bool = False) -> Files:
    """Return the files that have changed since they were sent: those that a run continues from, or all of them.

    Of the checkpoints that is the newest. `sent` is brought up to date.
    """
    paths = [run_dir.recipe, run_dir.environment, run_dir.metrics, run_dir.log]
    if everything:
        paths = [path for path in run_dir.path.rglob("*") if path.is_file() and path.parent != run_dir.checkpoints]
    changed: Files = {}
    for path in [*paths, *run_dir.checkpoint_paths()[:1]]:
        name = path.relative_to(run_dir.path).as_posix()
        try:
            status = path.stat()
            if not path.name.startswith(".") and sent.get(name) != (signature := (status.st_mtime_ns, status.st_size)):
                changed[name] = path.read_bytes()
                sent[name] = signature
        except FileNotFoundError:
            continue  # not there yet, or replaced by a newer one just now, of which the next message tells
    return changed


def write_files(run_dir: RunDir, files: Files) -> None:
    """Write files into a run directory, each atomically, the result last of all.

    TensorBoard events replace those that are there: each start of a run writes all its rows, in a file of another
    name.
    """
    if any(name.startswith(f"{run_dir.tensorboard.name}/") for name in files):
        shutil.rmtree(run_dir.tensorboard, ignore_errors=True)
    for name in sorted(files, key=lambda name: name == run_dir.result.name):
        path = run_dir.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent == run_dir.checkpoints:
            run_dir.write_checkpoint(checkpoint_step(path), files[name])
        else:
            write_atomically(path, files[name])


def files_to_go_on(run_dir: RunDir) -> Files:
    """Return what a run needs to continue elsewhere."""
    files = {
        path.name: path.read_bytes() for path in (run_dir.recipe, run_dir.environment, run_dir.log) if path.exists()
    }
    if found := run_dir.latest_checkpoint():
        path, content, _ = found
        files[path.relative_to(run_dir.path).as_posix()] = content
    return files


def newest_step(run_dir: RunDir) -> int:
    """Return the step of the newest checkpoint; 0 without one."""
    paths = run_dir.checkpoint_paths()
    return checkpoint_step(paths[0]) if paths else 0


@dataclass
class Submitted:
    """A run in the hands of the cluster."""

    job: Job
    home: ExitStack
    """Holds the lock of its run directory."""
    attempt: int = 0
    step: int = 0
    """The step of the newest checkpoint at home."""
    retries: int = RETRIES
    placed: bool = False


def fits(resources: Resources, node: Mapping[str, float]) -> bool:
    """Tell whether a node, by what it has in all, could take a run."""
    return resources.cpus <= node.get("CPU", 0) and resources.gpus <= node.get("GPU", 0)


def check_reachable(address: str | None) -> None:
    """Raise ConnectionError if nobody listens at HOST:PORT, for which Ray would wait very long."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from None


class RayCluster:
    """A connection to a Ray cluster that runs already.

    Args:
        address: as `ray.init` takes it; None for $RAY_ADDRESS or the cluster of this machine.
        resources: for each run.
        notice: is given a line if no node has them.

    Raises:
        UserError: there is no such cluster.
    """

    def __init__(self, address: str | None, resources: Resources, notice: Callable[[str], None]) -> None:
        self._resources = resources
        try:
            check_reachable(address)
            ray.init(address or "auto", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            raise UserError(
                f"no Ray cluster {f'at {address}' if address else 'here'} ({first_line(error)}): "
                "give the --address of one, or start it with `ray start --head`"
            ) from None
        if not any(fits(resources, node.get("Resources", {})) for node in ray.nodes() if node["Alive"]):
            notice(f"no node of the cluster has {resources} for a run: the runs wait until one joins")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
        self._train = ray.remote(train_on_node).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0
        )

    def run(
        self,
        jobs: Sequence[Job],
        num_parallel: int,
        settings: Sequence[str],
        data_dir: Path | None,
        display: GridDisplay,
        stop: StopRequest,
    ) -> dict[str, Outcome]:
        """Train runs, at most `num_parallel` in the hands of the cluster; see `deepres.grid.local.run_local`."""
        outcomes: dict[str, Outcome] = {}
        waiting = deque(jobs)
        active: dict[Any, Submitted] = {}

        def submit(run: Submitted) -> None:
            run.attempt += 1
            run.placed = False
            reference = self._train.remote(
                run.job.name,
                run.attempt,
                [*run.job.arguments(), *settings],
                None if data_dir is None else str(data_dir.absolute()),
                max(1, int(self._resources.cpus)),
                this_program(),
                files_to_go_on(RunDir(run.job.path)),
                run.job.sources(),
                self._mailbox,
            )
            active[reference] = run

        def end(job: Job, outcome: Outcome) -> None:
            outcomes[job.name] = outcome
            display.ended(job, outcome)

        def begin(job: Job) -> None:
            run_dir, home = RunDir(job.path), ExitStack()
            if run_dir.in_use():
                end(job, Outcome("busy", "another process trains there"))
                return
            try:
                home.enter_context(run_dir.locked())
                submit(Submitted(job, home, step=newest_step(run_dir)))
            except UserError as error:
                home.close()
                end(job, Outcome("failed", str(error)))

        def settle(reference: Any) -> None:
            run = active.pop(reference)
            try:
                outcome = ray.get(reference)
            except RayTaskError as error:
                outcome = Outcome("failed", first_line(error.cause or error))
            except RayError as error:
                what = type(error).__name__
                if stop.signal_number is not None:
                    outcome = Outcome("stopped")
                elif run.retries == 0:
                    outcome = Outcome("failed", f"lost {RETRIES + 1} times without a new checkpoint ({what})")
                else:
                    run.retries -= 1
                    display.lost(run.job, f"lost with its node ({what}), submitted again after step {run.step:,}")
                    submit(run)
                    return
            run.home.close()
            end(run.job, outcome)

        def receive(message: Message) -> None:
            run = next((r for r in active.values() if r.job.name == message.run), None)
            if run is None or run.attempt != message.attempt:
                return  # of a node that was taken for lost
            write_files(RunDir(run.job.path), message.files)
            match message.event:
                case None:
                    pass
                case {"event": "placed", "node": node}:
                    run.placed = True
                    display.started(run.job, f"on node {node[:8]}")
                case {"event": "saved", "step": step}:
                    run.step, run.retries = step, RETRIES
                case event:
                    display.event(run.job, event)

        try:
            while active or (waiting and stop.signal_number is None):
                while waiting and len(active) < num_parallel and stop.signal_number is None:
                    begin(waiting.popleft())
                if stop.signal_number is not None:
                    display.stopping()
                    self._mailbox.stop.remote()
                    for reference in [reference for reference, run in active.items() if not run.placed]:
                        ray.cancel(reference)
                ready, _ = ray.wait(list(active), num_returns=len(active), timeout=POLL_SECONDS)
                for message in ray.get(self._mailbox.take.remote()):
                    receive(message)
                for reference in ready:
                    settle(reference)
        finally:
            for run in active.values():
                run.home.close()
        return outcomes
