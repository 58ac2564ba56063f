import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepres.models import MODELS, build_model
from deepres.models.cost import flop_per_image


def test_resnet20_counted_by_hand():
    first = 3 * 3 * 3 * 16 * 32 * 32
    stage1 = 6 * 3 * 3 * 16 * 16 * 32 * 32
    stage2 = (3 * 3 * 16 * 32 + 5 * 3 * 3 * 32 * 32) * 16 * 16
    stage3 = (3 * 3 * 32 * 64 + 5 * 3 * 3 * 64 * 64) * 8 * 8
    multiply_adds = first + stage1 + stage2 + stage3 + 64 * 10
    assert round(multiply_adds / 1e6) == 41
    assert flop_per_image(build_model("resnet20")) == 2 * (3 * multiply_adds - first)


@pytest.mark.parametrize(
    ("name", "option"), [("plain20", "A"), ("resnet32", "A"), ("resnet20", "B"), ("resnet20", "C")]
)
@pytest.mark.parametrize("size", [32, 24, 21])
def test_as_torch_counts_what_it_runs(name, option, size):
    model = build_model(name, option=option)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, size, size)).sum().backward()
    assert counter.get_total_flops() == 2 * flop_per_image(model, size)


@pytest.mark.parametrize("name", ["plain20", "resnet56"])
def test_shortcuts_of_option_a_cost_nothing_and_the_model_is_left_alone(name):
    model = build_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    flop = flop_per_image(model)
    assert flop == flop_per_image(MODELS[name.replace("plain", "resnet")]())
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    if name == "resnet56":
        assert flop < flop_per_image(build_model(name, option="B"))
