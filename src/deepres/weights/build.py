"""From finished run directories to the zoo: of each net and recipe the run with the median error, and its card."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from deepres.data.cifar10 import Split
from deepres.errors import UserError
from deepres.rundir import RunDir, read_json, write_atomically, write_json
from deepres.training.checkpoint import load_weights
from deepres.training.evaluate import error_percent
from deepres.weights.card import Card, same_card
from deepres.weights.classifier import PixelClassifier
from deepres.weights.zoo import file_sha256

RESULT_KEYS = ("model", "option", "recipe", "split", "seed", "steps", "total_steps", "epochs", "test_error_last")
ENVIRONMENT_KEYS = ("commit", "torch", "python", "device_name", "earlier_starts")


@dataclass(frozen=True)
class FinishedRun:
    """The files of one run that count here, as they were read."""

    run_dir: RunDir
    result: dict[str, Any]
    config: dict[str, Any]
    """recipe.json."""
    environment: dict[str, Any]

    @property
    def error(self) -> float:
        """Test error of the last epoch, in percent."""
        return float(self.result["test_error_last"])

    @property
    def name(self) -> str:
        """What the zoo calls the weights of such runs: NAME-RECIPE, and what departs from the defaults."""
        option, split = self.result["option"], self.result["split"]
        variants = [f"option{option}"] * (option != "A") + [f"split{split}"] * (split != "50k")
        return "-".join([self.result["model"], self.result["recipe"], *variants])


def build_zoo(run_dirs: Iterable[Path], folder: Path, test: Split, notice: Callable[[str], None]) -> list[Card]:
    """Write the weights and the cards of all nets and recipes among the run directories; return the cards.

    What is there already and would come out the same is left untouched; entries of other nets and recipes stay.

    Args:
        run_dirs: runs; those that have not finished are skipped with a notice.
        folder: the zoo.
        test: the test images, on which each new file is evaluated before it is let in.
        notice: is told what was done.

    Raises:
        UserError: a run is damaged, two runs of a recipe differ in more than their seed, a seed comes twice, or
            weights do not give the error that their run states.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for path in run_dirs:
        run = read_run(path)
        if run is None:
            notice(f"{path} has not finished its recipe: skipped")
        else:
            groups.setdefault(run.name, []).append(run)
    if not groups:
        raise UserError("there is no finished run among these folders")
    for runs in groups.values():
        check_alike(runs)
    return [write_entry(runs, folder, test, notice) for runs in groups.values()]


def read_run(path: Path) -> FinishedRun | None:
    """Read a run directory; None if its recipe was not trained to the end.

    Raises:
        UserError: it is no run directory, or damaged.
    """
    run_dir = RunDir(path)
    if not run_dir.recipe.is_file():
        raise UserError(f"{path} is no run directory: it holds no recipe.json")
    if not run_dir.result.is_file():
        return None
    result = read_json(run_dir.result, required=RESULT_KEYS)
    if result["steps"] < result["total_steps"]:
        return None
    config = read_json(run_dir.recipe, required=("recipe", "precision", "workers"))
    return FinishedRun(run_dir, result, config, read_json(run_dir.environment, required=ENVIRONMENT_KEYS))


def check_alike(runs: Sequence[FinishedRun]) -> None:
    """Check that the runs of one entry are repetitions of each other.

    Raises:
        UserError: their recipes differ, or two have the same seed.
    """
    first, seeds = runs[0], dict[int, RunDir]()
    for run in runs:
        a, b = first.config["recipe"], run.config["recipe"]
        if differing := [key for key in {**a, **b} if a.get(key) != b.get(key)]:
            raise UserError(
                f"{first.run_dir} and {run.run_dir} are both of recipe {first.result['recipe']} but differ in "
                f"{', '.join(differing)}: give runs of one version of the recipe"
            )
        seed = run.result["seed"]
        if seed in seeds:
            raise UserError(f"{seeds[seed]} and {run.run_dir} have the same seed {seed}: give one of them")
        seeds[seed] = run.run_dir


def median_run(runs: Sequence[FinishedRun]) -> FinishedRun:
    """Return the run with the median error; of an even number the worse of the two in the middle.

    The worse one, so that published weights are never better than the median of the runs behind them.
    """
    return in_order(runs)[len(runs) // 2]


def in_order(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Sort by error, best first; equal ones by seed."""
    return sorted(runs, key=lambda run: (run.error, run.result["seed"]))


def write_entry(runs: Sequence[FinishedRun], folder: Path, test: Split, notice: Callable[[str], None]) -> Card:
    """Write an entry's three files, unless they are there and the same."""
    run = median_run(runs)
    trained = load_weights(run.run_dir.weights)
    classifier = PixelClassifier(trained.model, trained.normalization, run.name)
    card = make_card(runs, classifier)
    weights, json_file, markdown = (folder / f"{card.name}.{suffix}" for suffix in ("safetensors", "json", "md"))
    chosen = f"{card.name}: seed {card.seed}, {card.test_error_last:.2f}%, the median of {card.num_seeds}"
    if weights.is_file() and file_sha256(weights) == card.sha256 and same_card(json_file, card):
        notice(f"{chosen}: unchanged")
    else:
        error = error_percent(classifier.predict_logits(torch.from_numpy(test.images)), torch.from_numpy(test.labels))
        if error != card.test_error_last:
            raise UserError(
                f"{run.run_dir.weights} has {error:.2f}% test error, but its run ended with "
                f"{card.test_error_last:.2f}%: it is not the file of this run"
            )
        write_atomically(weights, run.run_dir.weights.read_bytes())
        write_json(json_file, card.to_json())
        notice(f"{chosen}: written")
    if not markdown.is_file() or markdown.read_text() != card.markdown():
        write_atomically(markdown, card.markdown().encode())
    return card


def make_card(runs: Sequence[FinishedRun], classifier: PixelClassifier) -> Card:
    """Return the card of an entry from its runs and the weights of the median one."""
    run = median_run(runs)
    result, environment = run.result, run.environment
    errors = [r.error for r in runs]
    starts = [*environment["earlier_starts"], environment]
    net = classifier.net
    return Card(
        name=run.name,
        model=result["model"],
        option=result["option"],
        num_parameters=sum(p.numel() for p in net.parameters()),
        recipe=result["recipe"],
        split=result["split"],
        seed=result["seed"],
        test_error_last=run.error,
        test_error_mean=round(mean(errors), 2),
        test_error_std=round(stdev(errors), 2) if len(errors) > 1 else None,
        num_seeds=len(runs),
        runs=[{"seed": r.result["seed"], "test_error_last": r.error} for r in in_order(runs)],
        normalization={
            "kind": "channel" if classifier.mean.numel() == 3 else "pixel_mean",
            "mean": [round(value, 6) for value in classifier.mean.mean(dim=(1, 2)).tolist()],
            "std": [round(value, 6) for value in classifier.std.mean(dim=(1, 2)).tolist()],
        },
        classes=list(classifier.classes),
        epochs=result["epochs"],
        steps=result["steps"],
        command=train_command(run),
        commits=list(dict.fromkeys(start["commit"] for start in starts if start.get("commit"))),
        environment={
            "precision": run.config["precision"],
            "workers": run.config["workers"],
            "device": environment["device_name"],
            "torch": environment["torch"],
            "python": environment["python"],
        },
        sha256=file_sha256(run.run_dir.weights),
        num_bytes=run.run_dir.weights.stat().st_size,
    )


def train_command(run: FinishedRun) -> str:
    """Return the command that trains this run again, wherever: without the folders of the machine it was made on."""
    result, config = run.result, run.config
    words = ["deepres", "train", result["model"], "--recipe", result["recipe"], "--seed", str(result["seed"])]
    words += ["--option", result["option"]] if result["option"] != "A" else []
    words += ["--split", result["split"]] if result["split"] != "50k" else []
    words += ["--precision", config["precision"]]
    words += ["--workers", str(config["workers"])] if config["workers"] != 1 else []
    return shlex.join(words)
