"""benchmarks/tuning.py: its factors are what the committed rows were trained by, and `fast` is what it found."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deepres.recipes.named import fast, faster, paper

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CHOSEN = "adam+shifts2+smaller+warmup+less_momentum+lower_head"
CHOSEN_FOR_FASTER = "second+ahead+lower+fastest_norms"


@pytest.fixture(scope="module")
def tuning():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import tuning
    finally:
        sys.path.remove(str(BENCHMARKS))
    return tuning


def test_the_factors_are_those_of_the_committed_rows(tuning):
    rows = json.loads((BENCHMARKS / "results" / "tuning.json").read_text())["rows"]
    # The settings of chains have changed since plain nets were tuned.
    residual = [row for row in rows if row["model"].startswith("resnet")]
    assert len(residual) > 20
    for row in residual:
        made = json.loads(json.dumps(tuning.make_recipe(row["variant"], row["fraction"]).to_json()))
        assert made == row["recipe"], row["variant"]


def test_fast_is_what_the_tuning_ended_with(tuning):
    compute = 0.1 * paper().compute(50_000)
    chosen = replace(tuning.make_recipe(CHOSEN, 0.1), split="50k").with_compute(compute)
    rate = chosen.learning_rate * chosen.head_rate  # with Adam and Muon the last layer's alone
    expected = replace(chosen, learning_rate=round(rate, 6), head_rate=1.0, chain=fast().chain)
    assert fast() == expected


def test_faster_is_what_its_tuning_ended_with(tuning):
    chosen = tuning.make_recipe(CHOSEN_FOR_FASTER, 0.0625)
    muon = replace(chosen.muon, learning_rate=round(chosen.muon.learning_rate, 6))
    compute = 0.0625 * paper().compute(50_000)
    expected = replace(chosen, name="faster", muon=muon, split="50k", chain=faster().chain).with_compute(compute)
    assert faster() == expected
