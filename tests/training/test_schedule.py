from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.recipes.named import one_cycle, paper
from deepres.recipes.recipe import OneCycle
from deepres.training.schedule import SlowStartGate, learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.1),
        (31_999, 0.1),  # the 32,000th iteration is the last at 0.1
        (32_000, 0.01),
        (47_999, 0.01),
        (48_000, 0.001),
        (63_999, 0.001),
    ],
)
def test_paper_at_every_boundary(step, rate):
    assert learning_rate(paper(), step, 64_000) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        # 20 steps, a quarter of them up: 1/6, 2/6, ... of the rate, then 15 equal steps down.
        (0, 1 / 6),
        (4, 5 / 6),
        (5, 1.0),
        (6, 14 / 15),
        (19, 1 / 15),
    ],
)
def test_one_cycle_by_hand(step, rate):
    recipe = replace(one_cycle(), learning_rate=2.0, schedule=OneCycle(warmup=0.25))
    assert learning_rate(recipe, step, 20) == pytest.approx(2.0 * rate)


@given(total=st.integers(1, 5000), warmup=st.floats(0, 0.9))
def test_one_cycle_goes_up_then_down_and_stays_positive(total, warmup):
    recipe = replace(one_cycle(), schedule=OneCycle(warmup=warmup))
    rates = [learning_rate(recipe, step, total) for step in range(total)]
    assert all(0 < rate <= recipe.learning_rate * (1 + 1e-9) for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_lengths():
    assert paper().total_steps(50_000) == 64_000
    assert paper().total_steps(45_000) == 64_000
    assert paper().total_epochs(50_000) == 164  # 163.84 passes
    assert one_cycle().total_steps(50_000) == 11_719  # 30 * 50,000 / 128 = 11,718.75
    assert one_cycle().total_epochs(50_000) == 30


def test_slow_start_applies_from_110_layers_on():
    rule = paper().slow_start
    assert not SlowStartGate(rule, depth=56).open
    assert SlowStartGate(rule, depth=56).rate(0.1) == 0.1
    assert SlowStartGate(rule, depth=110).open
    assert SlowStartGate(rule, depth=1202).rate(0.1) == 0.01
    assert not SlowStartGate(one_cycle().slow_start, depth=110).open


def test_slow_start_ends_when_a_full_window_is_below_the_bound():
    gate = SlowStartGate(paper().slow_start, depth=110)
    for _ in range(100):
        gate.record(num_wrong=103, num_images=128)  # 80.5%
    assert gate.open
    # 80% of 12,800 images is 10,240 errors; k mini-batches with 102 and 100 - k with 103 make 10,300 - k.
    for _ in range(60):
        gate.record(num_wrong=102, num_images=128)
        assert gate.open
    gate.record(num_wrong=102, num_images=128)
    assert not gate.open
    assert gate.rate(0.1) == 0.1
    gate.record(num_wrong=128, num_images=128)
    assert not gate.open  # for good


def test_slow_start_needs_a_full_window():
    gate = SlowStartGate(paper().slow_start, depth=110)
    for _ in range(99):
        gate.record(num_wrong=0, num_images=128)
    assert gate.open
    gate.record(num_wrong=0, num_images=128)
    assert not gate.open


def test_slow_start_resumes_where_it_was():
    gate = SlowStartGate(paper().slow_start, depth=110)
    for _ in range(60):
        gate.record(num_wrong=0, num_images=128)
    resumed = SlowStartGate(paper().slow_start, depth=110)
    resumed.load_state(gate.state())
    for either in (gate, resumed):
        for _ in range(39):
            either.record(num_wrong=0, num_images=128)
        assert either.open
        either.record(num_wrong=0, num_images=128)
        assert not either.open
    resumed = SlowStartGate(paper().slow_start, depth=110)
    resumed.load_state(gate.state())
    assert not resumed.open
