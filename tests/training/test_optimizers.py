import copy
from dataclasses import replace

import pytest
import torch

from deepres.models import build_model
from deepres.recipes.named import one_cycle, paper
from deepres.recipes.recipe import Adam as AdamRule
from deepres.recipes.recipe import Chain
from deepres.recipes.recipe import Muon as MuonRule
from deepres.seeding import Stream, derive_generator
from deepres.training.muon import Muon, StackedMuon, orthogonalize
from deepres.training.optimizer import ParamGroup
from deepres.training.optimizers import SGD, Adam, build_optimizers
from deepres.training.start import chain_length

MUON = MuonRule(learning_rate=0.05, momentum=0.8)


@pytest.mark.parametrize(("make_recipe", "decay", "nesterov"), [(paper, 1e-4, False), (one_cycle, 5e-4, True)])
def test_sgd_against_its_formula(make_recipe, decay, nesterov):
    """With gradients that are known, to the last digits: decay and momentum show."""
    recipe = replace(make_recipe(), muon=None, momentum=0.9, weight_decay=decay, nesterov=nesterov)
    model = build_model("resnet20", generator=derive_generator(3, Stream.WEIGHTS))
    (optimizer,) = build_optimizers(replace(recipe, decay_norm_and_bias=True), model)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in expected.items()}
    for step in range(3):
        for group in optimizer.groups:
            group.lr.fill_(0.1)
        for name, p in model.named_parameters():
            p.grad = torch.full_like(p, 0.01 * (step + 1))
            gradient = 0.01 * (step + 1) + decay * expected[name]
            velocity[name] = 0.9 * velocity[name] + gradient
            expected[name] -= 0.1 * (gradient + 0.9 * velocity[name] if nesterov else velocity[name])
        optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach().double(), expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, False), (0.9, True), (0.0, False)])
def test_sgd_takes_the_steps_of_torchs_bit_for_bit_and_goes_on_from_its_state(momentum, nesterov):
    model = build_model("resnet20", generator=derive_generator(3, Stream.WEIGHTS))
    model.to(memory_format=torch.channels_last)
    torchs = copy.deepcopy(model)
    settings = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01, "fused": True}
    theirs = torch.optim.SGD(torchs.parameters(), **settings)
    generator = torch.Generator().manual_seed(0)

    def new_optimizer():
        group = ParamGroup(list(model.parameters()), peak_lr=0.1, weight_decay=0.01)
        group.lr.fill_(0.1)
        return SGD([group], momentum=momentum, nesterov=nesterov)

    def same_step(ours):
        for p, other in zip(model.parameters(), torchs.parameters(), strict=True):
            other.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
            p.grad = other.grad.clone()
        ours.step()
        theirs.step()
        assert all(map(torch.equal, model.parameters(), torchs.parameters()))

    ours = new_optimizer()
    for _ in range(3):
        same_step(ours)
    if momentum:
        ours = new_optimizer()
        ours.load_state_dict(theirs.state_dict())
        same_step(ours)
    ours.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_decay_may_spare_batch_norm_and_biases():
    model = build_model("resnet20")
    recipe = replace(paper(), weight_decay=0.01)
    for spare, decays in ((True, [0.01, 0.0]), (False, [0.01, 0.01])):
        (optimizer,) = build_optimizers(replace(recipe, decay_norm_and_bias=not spare), model)
        weights, others = optimizer.groups
        assert [weights.weight_decay, others.weight_decay] == decays
        assert len(weights.params) == 20  # 19 convolutions and the linear layer
        assert len(weights.params) + len(others.params) == len(list(model.parameters()))


def test_muon_takes_the_convolutions_and_sgd_all_else():
    model = build_model("resnet20")
    muon, sgd = build_optimizers(replace(one_cycle(), muon=MUON), model)
    assert {p.shape[2:] for group in muon.groups for p in group.params} == {(3, 3)}
    held = [p for optimizer in (muon, sgd) for group in optimizer.groups for p in group.params]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    assert [group.peak_lr for group in muon.groups] == [0.05]


def test_adam_takes_scales_and_shifts_and_sgd_the_linear_layer():
    model = build_model("resnet20")
    rule = AdamRule(learning_rate=0.01, betas=(0.9, 0.99), eps=1e-10)
    muon, sgd, adam = build_optimizers(replace(one_cycle(), muon=MUON, norm_adam=rule), model)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [[names[id(p)] for group in optimizer.groups for p in group.params] for optimizer in (muon, sgd, adam)]
    assert held[1] == ["fc.weight", "fc.bias"]
    assert all("bn" in name for name in held[2])
    assert sorted(name for of_one in held for name in of_one) == sorted(names.values())
    assert [(group.peak_lr, group.weight_decay) for group in adam.groups] == [(0.01, 0.0)]


def test_adam_takes_the_steps_of_torchs_bit_for_bit_and_goes_on_from_its_state():
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(size, generator=generator) for size in (16, 64)]
    torchs = [p.clone().requires_grad_() for p in params]
    theirs = torch.optim.Adam(torchs, lr=0.01, betas=(0.9, 0.99), eps=1e-10, fused=True)

    def new_optimizer():
        adam = Adam([ParamGroup(params, peak_lr=0.01)], betas=(0.9, 0.99), eps=1e-10)
        adam.set_rate(0.3, highest=0.3)
        return adam

    def same_step(ours):
        for p, other in zip(params, torchs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            other.grad = p.grad.clone()
        ours.step()
        theirs.step()
        assert all(map(torch.equal, params, torchs))

    ours = new_optimizer()
    for _ in range(3):
        same_step(ours)
    for state in (ours.state_dict(), theirs.state_dict()):
        ours = new_optimizer()
        ours.load_state_dict(copy.deepcopy(state))
        same_step(ours)


@pytest.mark.parametrize(("name", "rate"), [("plain20", 0.05), ("plain56", 0.05 / 3), ("resnet56", 0.05)])
def test_muons_rate_falls_with_a_chains_length(name, rate):
    model = build_model(name)
    recipe = replace(one_cycle(), muon=MUON, chain=Chain(full_rate_length=18)).for_chain(chain_length(model))
    muon, _ = build_optimizers(recipe, model)
    assert [group.peak_lr for group in muon.groups] == [pytest.approx(rate)]


def test_filters_without_a_gradient_leave_no_denormal_numbers():
    """With which a CPU multiplies many times more slowly; the others have the same bits."""
    matrices = torch.randn(2, 16, 144, generator=torch.Generator().manual_seed(0))
    matrices[:, 5] = 0
    expected = orthogonalize(matrices)
    matrices[:, 5] = 1e-42
    found = orthogonalize(matrices)
    assert torch.equal(found, expected)
    assert not found[:, 5].any()
    kept = orthogonalize(matrices, negligible=0.0)
    assert kept[:, 5].any()
    others = torch.arange(16) != 5
    assert torch.equal(kept[:, others], expected[:, others])


def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_values():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 16, 144, generator=generator).double()
    matrices[1] *= 1e-3  # the scale does not matter
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.diagonal(u.mT @ orthogonalize(matrices) @ vh.mT, dim1=1, dim2=2)
    assert values.min() > 0.65
    assert values.max() < 1.25
    torch.testing.assert_close(u @ torch.diag_embed(values) @ vh, orthogonalize(matrices))


def test_muon_against_torchs_own():
    """torch.optim.Muon knows matrices alone, computes in bfloat16 and does not keep the weights' norm."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 8, 3, 3, generator=generator)
    start *= 4 / start.norm()
    filters, matrix = start.clone().requires_grad_(), start.flatten(1).clone().requires_grad_()
    ours = Muon([filters], peak_lr=0.1, momentum=0.8)
    ours.set_rate(1.0, highest=1.0)
    theirs = torch.optim.Muon([matrix], lr=0.1, momentum=0.8, weight_decay=0.0, adjust_lr_fn="original")
    velocity = torch.zeros_like(start)
    for _ in range(3):
        gradient = torch.randn(start.shape, generator=generator)
        velocity = 0.8 * velocity + gradient
        filters.grad = gradient.clone()
        # Theirs averages where ours sums, and the scale of what is orthogonalised does not matter.
        matrix.grad = gradient.flatten(1).clone()
        with torch.no_grad():
            matrix *= 4 / matrix.norm()
        ours.step()
        theirs.step()
        torch.testing.assert_close(filters.detach().flatten(1), matrix.detach(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", [Muon, StackedMuon])
@pytest.mark.parametrize(("shape", "norm"), [((32, 16, 3, 3), 32**0.5), ((32, 16, 1, 1), 16**0.5)])
def test_muon_keeps_filter_banks_at_one_norm_and_turns_them_by_the_rate(shape, norm, kind):
    """A convolution, and the projection of a shortcut, whose matrix has more rows than columns."""
    generator = torch.Generator().manual_seed(0)
    banks = [torch.randn(shape, generator=generator) * scale for scale in (0.01, 1, 100)]
    optimizer = kind(banks, peak_lr=0.05, momentum=0.9)
    optimizer.set_rate(1.0, highest=1.0)
    for bank in banks:
        bank.grad = torch.randn(bank.shape, generator=generator) * 1e-4
    before = [bank / bank.norm() * norm for bank in banks]
    optimizer.step()
    for bank, old in zip(banks, before, strict=True):
        assert (bank - old).norm() / old.norm() == pytest.approx(0.05, rel=0.3)  # singular values are 0.7 to 1.2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "option"), [("resnet20", "C"), ("plain20", "A")])
def test_muon_in_one_stack_is_muon(name, option, channels_last):
    """Banks of all shapes, 1x1 projections among them; and each goes on from the other's state."""
    generator = torch.Generator().manual_seed(0)
    models = [build_model(name, option=option, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    if channels_last:
        models = [model.to(memory_format=torch.channels_last) for model in models]
    recipe = replace(one_cycle(), muon=MUON)
    optimizers = [build_optimizers(recipe, models[i], stacked=bool(i))[0] for i in range(2)]
    assert [type(optimizer) for optimizer in optimizers] == [Muon, StackedMuon]
    banks = [optimizer.groups[0].params for optimizer in optimizers]
    for step in range(6):
        if step == 3:
            states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            for optimizer, state in zip(optimizers, reversed(states), strict=True):
                optimizer.load_state_dict(state)
        for one, other in zip(*banks, strict=True):
            one.grad = torch.empty_like(one).copy_(torch.randn(one.shape, generator=generator))
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.set_rate(0.1 * (step + 1), highest=1.0)
            optimizer.step()
    for one, other in zip(*banks, strict=True):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    buffers = [optimizer.tensors() for optimizer in optimizers]
    for one, other in zip(*buffers, strict=True):
        torch.testing.assert_close(one, other)
