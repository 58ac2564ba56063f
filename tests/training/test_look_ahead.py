"""Gradients taken ahead of the weights: against the formulas, number by number."""

import pytest
import torch

from deepres.errors import UserError
from deepres.models import build_model
from deepres.recipes.recipe import LookAhead
from deepres.training.look_ahead import LookingAhead, looking_ahead


def test_parameters_move_as_the_formulas_say():
    """A quadratic loss by gradient descent, in plain numbers beside."""
    rule = LookAhead(reach=0.6, decay=0.9, begin=0.2, end=0.8)
    parameter = torch.tensor([2.0, -1.0], dtype=torch.float64)
    ahead = LookingAhead(rule, [parameter])
    weights, mean, point = [2.0, -1.0], [0.0, 0.0], [2.0, -1.0]
    total = 20
    for step in range(total):
        rate = 1 - step / total
        ahead.set_reach(step, total, rate)
        parameter -= 0.1 * rate * parameter
        ahead.move()
        for i in range(2):
            new = point[i] - 0.1 * rate * point[i]
            mean[i] = 0.9 * mean[i] + 0.1 * (new - weights[i])
            weights[i] = new
            point[i] = new + (0.6 * rate * mean[i] if 4 <= step + 1 < 16 else 0.0)
        assert parameter.tolist() == pytest.approx(point, rel=1e-6), step
    assert parameter.tolist() == pytest.approx(weights, rel=1e-6), "the last steps start from the weights themselves"


def test_the_last_layer_stays():
    model = build_model("resnet20")
    ahead = looking_ahead(LookAhead(reach=0.6), model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ahead.set_reach(5, 10, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    ahead.move()
    moved = {name: round((p - before[name]).mean().item(), 4) for name, p in model.named_parameters()}
    assert moved.pop("fc.weight") == moved.pop("fc.bias") == 1.0
    assert set(moved.values()) == {1.006}
    assert looking_ahead(None, model) is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"reach": 0.0}, "reach"), ({"decay": 1.0}, "decay"), ({"begin": -0.1}, "begin"), ({"end": 0.1}, "end")],
)
def test_bad_settings_are_errors(settings, named):
    with pytest.raises(UserError, match=rf"look_ahead\.{named}"):
        LookAhead(**{"reach": 0.6, **settings})
