"""From finished run directories to the zoo: of each net and recipe the run with the median error, and its card."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch

from deepres.data.cifar10 import Split
from deepres.errors import UserError
from deepres.files import write_atomically, write_json
from deepres.models import count_parameters
from deepres.recipes.read import arguments_of
from deepres.runs.directory import RunDir, run_name
from deepres.runs.finished import FinishedRun, load_runs
from deepres.runs.groups import RunGroup, group_runs
from deepres.weights.classifier import PixelClassifier
from deepres.weights.evaluate import error_percent
from deepres.weights.file import load_weights
from deepres.zoo.card import Card, same_card
from deepres.zoo.catalogue import file_sha256
from deepres.zoo.verify import same_error, tolerance


def build_zoo(paths: Iterable[Path], folder: Path, test: Split, notice: Callable[[str], None]) -> list[Card]:
    """Write the weights and the card of each net and recipe among finished runs; return the cards.

    What is there already and would come out the same is left untouched; entries of other nets and recipes stay.

    Args:
        paths: run directories, or folders that hold some; what has not finished is left out with a notice.
        folder: the zoo.
        test: the test images, on which each new file is evaluated before it is let in.
        notice: is given a line on what was done.

    Raises:
        UserError: there is no finished run of which a card would be true, see `is_for_the_zoo`; runs of one name
            differ in more than their seed; or weights are missing or do not give the error that their run states.
    """
    finished, skipped = load_runs(paths)
    for run in skipped:
        notice(f"left out {run.path}: {run.reason}")
    if not finished:
        raise UserError(f"no finished run in {', '.join(map(str, paths))}")
    fitting = [run for run in finished if is_for_the_zoo(run)]
    for other_run in finished:
        if other_run not in fitting:
            notice(f"left out {other_run.path}: cards are of deepres's nets, trained from scratch on all of CIFAR-10")
    if not fitting:
        raise UserError(
            f"no run in {', '.join(map(str, paths))} is for the zoo: train a net of deepres on all of CIFAR-10"
        )
    entries: dict[str, RunGroup] = {}
    for group in group_runs(fitting):
        other = entries.setdefault(entry_name(group.runs[0]), group)
        if other is not group:
            raise UserError(
                f"runs of {entry_name(group.runs[0])} differ in more than their seed, as {other.runs[0].path} "
                f"({other.label}) and {group.runs[0].path} ({group.label}) do: name runs of one kind"
            )
    return [write_entry(name, group.runs, folder, test, notice) for name, group in entries.items()]


def is_for_the_zoo(run: FinishedRun) -> bool:
    """Tell whether a card says what is true of a run: of one of our nets, from scratch, on all of CIFAR-10."""
    data = run.record.data
    return data.name == "CIFAR-10" and data.fraction == 1 and run.record.is_from_scratch


def entry_name(run: FinishedRun) -> str:
    """Return what the zoo calls the weights of such runs: NAME-RECIPE, and what departs from the usual."""
    named = run_name(run.model, run.recipe, run.seed, option=run.option, split=run.split)
    return named.removesuffix(f"-seed{run.seed}")


def in_order(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Sort by the error of the last epoch, best first; equal ones by seed."""
    return sorted(runs, key=lambda run: (run.test_error_last, run.seed))


def median_run(runs: Sequence[FinishedRun]) -> FinishedRun:
    """Return the run with the median error; of an even number the worse of the two in the middle.

    The worse one, so that published weights are never better than the median of the runs that they stand for.
    """
    return in_order(runs)[len(runs) // 2]


def write_entry(
    name: str, runs: Sequence[FinishedRun], folder: Path, test: Split, notice: Callable[[str], None]
) -> Card:
    """Write an entry's three files, unless they are there and the same."""
    run = median_run(runs)
    source = RunDir(run.path).weights
    trained = load_weights(source)
    classifier = trained.classifier(name)
    card = make_card(name, runs, classifier)
    weights, json_file, markdown = (folder / f"{name}.{suffix}" for suffix in ("safetensors", "json", "md"))
    chosen = f"{name}: seed {card.seed}, {card.test_error_last:.2f}%, the median of {card.num_seeds}"
    if weights.is_file() and file_sha256(weights) == card.sha256 and same_card(json_file, card):
        notice(f"{chosen}: unchanged")
    else:
        logits = classifier.predict_logits(test.images)
        error = error_percent(logits, torch.from_numpy(test.labels))
        if not same_error(error, card.test_error_last, len(test.labels)):
            raise UserError(
                f"{source} has {error:.2f}% test error, but its run ended with {card.test_error_last:.2f}%: it is not "
                "the file of this run"
            )
        write_atomically(weights, source.read_bytes())
        write_json(json_file, card.to_json())
        here = "" if error == card.test_error_last else f"; {error:.2f}% here, {tolerance(len(test.labels))}"
        notice(f"{chosen}: written{here}")
    if not markdown.is_file() or markdown.read_text() != card.markdown():
        write_atomically(markdown, card.markdown().encode())
    return card


def make_card(name: str, runs: Sequence[FinishedRun], classifier: PixelClassifier) -> Card:
    """Return the card of an entry from its runs and the weights of the median one."""
    run = median_run(runs)
    source = RunDir(run.path).weights
    errors = [r.test_error_last for r in runs]
    starts = [*run.environment.earlier_starts, run.environment.to_json()]
    return Card(
        name=name,
        model=run.model,
        option=run.option,
        num_parameters=count_parameters(classifier.net),
        recipe=run.recipe,
        split=run.split,
        seed=run.seed,
        test_error_last=run.test_error_last,
        test_error_mean=round(mean(errors), 2),
        test_error_std=round(stdev(errors), 2) if len(errors) > 1 else None,
        num_seeds=len(runs),
        runs=[{"seed": r.seed, "test_error_last": r.test_error_last} for r in in_order(runs)],
        normalization={
            "kind": run.record.recipe["normalization"],
            "mean": [round(value, 6) for value in classifier.mean.mean(dim=(1, 2)).tolist()],
            "std": [round(value, 6) for value in classifier.std.mean(dim=(1, 2)).tolist()],
        },
        classes=list(classifier.classes),
        steps=run.steps,
        epochs=run.epochs,
        command=train_command(run),
        commits=list(dict.fromkeys(start["commit"] for start in starts if start.get("commit"))),
        environment={
            "precision": run.precision,
            "workers": run.record.workers,
            "device": run.device_name,
            "torch": run.environment.torch,
            "python": run.environment.python,
        },
        sha256=file_sha256(source),
        num_bytes=source.stat().st_size,
    )


def train_command(run: FinishedRun) -> str:
    """Return the command that trains this run again anywhere: without the folders of the machine it was made on."""
    record, workers = run.record, run.record.workers
    words = ["torchrun", "--standalone", "--nproc-per-node", str(workers), "-m"] if workers != 1 else []
    recipe = arguments_of(record.recipe, lambda setting: record.applies(f"recipe.{setting}"))
    words += ["deepres", "train", run.model, *recipe, "--seed", str(run.seed)]
    words += ["--option", run.option] if run.option != "A" else []
    words += ["--split", run.split] if run.split != "50k" else []
    words += ["--precision", run.precision]
    return shlex.join(words)
