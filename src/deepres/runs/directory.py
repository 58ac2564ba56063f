"""The run directory: sole owner of the names on disk. Every write is atomic; nothing here needs torch."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deepres.errors import UserError
from deepres.files import write_atomically

LOOKING_SECONDS = 0.5  # more than `in_use` holds a lock for
CHECKPOINTS_KEPT = 2  # the latest, and the one before it should the latest be damaged
ANOTHER_PLACE = "another --run-dir (for a grid: another --out)"  # the way out where a run cannot be in its directory

Row = dict[str, Any]


def run_name(
    model: str,
    recipe: str,
    seed: int,
    *,
    option: str = "A",
    split: str = "50k",
    fraction: float = 1.0,
    data: str = "cifar10",
) -> str:
    """Return a run directory's usual name: MODEL-RECIPE-seedN, with what departs from the usual in between."""
    variants = [f"option{option}"] * (option != "A") + [f"split{split}"] * (split != "50k")
    variants += [data] * (data != "cifar10")
    variants += [f"fraction{fraction:g}"] * (fraction != 1)
    return "-".join([model, recipe, *variants, f"seed{seed}"])


class RunDir:
    """One training run on disk.

    | name | what it holds |
    |---|---|
    | recipe.json | what determines the run: model, recipe, seed, precision, data and how it is evaluated |
    | environment.json | versions, device, commit and command of each start |
    | metrics.jsonl | a line per epoch |
    | tensorboard/ | the same as TensorBoard events, where TensorBoard is installed |
    | checkpoints/ | the last two states, from which the run resumes |
    | model.safetensors | the trained weights with their normalisation |
    | model-ema.safetensors | the running mean of the weights, where the recipe keeps one |
    | predictions.npz | for each test image its label, the predicted class, its probability, and all logits |
    | result.json | the outcome; its presence means finished |
    | curve.png | errors against steps, where Matplotlib is installed; drawn last, and may be missing |
    | log.txt | what a run that a grid started said on standard error |
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "model.safetensors"
        self.mean_weights = self.path / "model-ema.safetensors"
        self.predictions = self.path / "predictions.npz"
        self.curve = self.path / "curve.png"
        self.result = self.path / "result.json"
        self.log = self.path / "log.txt"

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and hold it for this process alone.

        Raises:
            UserError: another process trains here, or the directory cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            lock = self._lock()
            lock.acquire(timeout=LOOKING_SECONDS)
        except Timeout:
            raise UserError(
                f"run directory {self} is in use by another process: wait for it, or give {ANOTHER_PLACE}"
            ) from None
        except OSError as error:
            raise UserError(f"cannot write run directory {self} ({error.strerror}): give {ANOTHER_PLACE}") from None
        try:
            yield
        finally:
            lock.release()

    def in_use(self) -> bool:
        """Tell whether another process trains here."""
        if not self.path.is_dir():
            return False
        try:
            with self._lock().acquire(timeout=LOOKING_SECONDS):
                return False
        except Timeout:
            return True
        except OSError:
            return False  # it cannot be written: training there will say so

    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock")

    def read_metrics(self) -> list[Row]:
        """Return the rows of metrics.jsonl, one per epoch.

        Raises:
            UserError: the file is missing, unreadable or damaged.
        """
        try:
            return [json.loads(line) for line in self.metrics.read_text().splitlines()]
        except OSError as error:
            raise UserError(f"cannot read {self.metrics} ({error.strerror})") from None
        except (ValueError, RecursionError) as error:  # no JSON, or no text
            raise UserError(f"{self.metrics} is damaged ({error}): train again and give {ANOTHER_PLACE}") from None

    def write_metrics(self, rows: Sequence[Row]) -> None:
        """Write all rows anew. A run has a few hundred at most, so that rewriting costs nothing."""
        write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write_checkpoint(self, step: int, state: bytes) -> Path:
        """Write the state after `step` mini-batches, in place of an earlier one of that step, and drop the oldest.

        Its name carries its checksum.
        """
        path = self.checkpoints / f"step-{step:08d}-{sha256(state).hexdigest()[:16]}.pt"
        write_atomically(path, state)
        for same in self.checkpoints.glob(f"step-{step:08d}-*.pt"):
            if same != path:
                same.unlink()
        for old in self.checkpoint_paths()[CHECKPOINTS_KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def latest_checkpoint(self) -> tuple[Path, bytes, list[Path]] | None:
        """Return the newest undamaged checkpoint, its content, and the newer ones found damaged.

        Raises:
            UserError: there are checkpoints, and all of them are damaged.
        """
        damaged: list[Path] = []
        for path in self.checkpoint_paths():
            state = path.read_bytes()
            if path.stem.endswith(sha256(state).hexdigest()[:16]):
                return path, state, damaged
            damaged.append(path)
        if damaged:
            raise UserError(
                f"every checkpoint in {self.checkpoints} is damaged: delete {self} to train from the start"
            )
        return None

    def checkpoint_paths(self) -> list[Path]:
        """List the checkpoints, newest first; temporary files of a killed process are not among them."""
        name = re.compile(r"step-\d+-[0-9a-f]{16}\.pt")
        return sorted((p for p in self.checkpoints.glob("step-*") if name.fullmatch(p.name)), reverse=True)


def checkpoint_step(path: Path) -> int:
    """Return the step after which a checkpoint was made, from its name."""
    return int(path.name.split("-")[1])
