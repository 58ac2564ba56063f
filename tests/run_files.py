"""Run directories made by hand, as light as the committed ones: tests of reports need no training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepres.files import write_json
from deepres.recipes.named import get_recipe
from deepres.recipes.recipe import SPLITS, Recipe
from deepres.runs.directory import RunDir
from deepres.runs.predictions import Predictions


def write_run(
    path: Path,
    model: str = "resnet20",
    recipe: str | Recipe = "paper",
    seed: int = 0,
    test_errors: tuple[float, ...] = (30.0, 8.0, 9.0),
    *,
    split: str = "50k",
    precision: str = "float32",
    finished: bool = True,
    flop: float | None = 242_421_504,
    predictions: Predictions | None = None,
) -> Path:
    """Write a run with one error per epoch; with split "45k" they are val errors, and the test error is the last."""
    recipe = replace(get_recipe(recipe) if isinstance(recipe, str) else recipe, split=split)
    run_dir = RunDir(path)
    path.mkdir(parents=True)
    content: dict[str, Any] = {"model": model, "option": "A", "seed": seed, "precision": precision, "workers": 1}
    write_json(run_dir.recipe, {**content, "recipe": recipe.to_json()})
    held_out = "test" if split == "50k" else "val"
    steps = recipe.total_steps(SPLITS[split])
    rows = [
        {
            "step": steps * (i + 1) // len(test_errors),
            "epoch": i + 1,
            "learning_rate": 0.1,
            "train_loss": 1.0 / (i + 1),
            "train_error": 20.0 / (i + 1),
            f"{held_out}_error": error,
            "seconds": 60.0 * (i + 1),
            "images_per_second": 1000.0,
        }
        for i, error in enumerate(test_errors)
    ]
    run_dir.write_metrics(rows)
    environment = {"started": "2026-01-01T00:00:00+00:00", "deepres": "0.1.0", "commit": "0" * 40, "python": "3.11.0"}
    environment |= {"torch": "2.13.0+cpu", "numpy": "2.4.6", "platform": "Linux", "device": "cpu"}
    environment |= {"device_name": "AMD EPYC, 1 threads", "num_threads": 1, "precision": precision}
    write_json(run_dir.environment, {**environment, "backend": "fused", "workers": 1, "earlier_starts": []})
    if finished:
        best = test_errors.index(min(test_errors))
        result = {"model": model, "option": "A", "recipe": recipe.name, "split": split, "seed": seed}
        result |= {"num_parameters": 269_722, "steps": steps, "total_steps": steps, "epochs": 163.84}
        result |= {"train_error": rows[-1]["train_error"], "test_error_last": test_errors[-1]}
        result |= {"test_error_best": min(test_errors) if split == "50k" else None}
        if split == "45k":
            result |= {"val_error_last": test_errors[-1], "val_error_best": min(test_errors)}
        result |= {} if flop is None else {"flop_per_image": flop, "compute": recipe.compute(SPLITS[split])}
        if predictions is not None:
            run_dir.predictions.write_bytes(predictions.encode())
        result |= {"best_epoch": best + 1, "seconds": 60.0 * len(test_errors), "images_per_second": 1000.0}
        write_json(
            run_dir.result, {**result, "device": "cpu", "precision": precision, "backend": "fused", "workers": 1}
        )
    return path


def change_json(path: Path, **changes: Any) -> None:
    """Replace values of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
