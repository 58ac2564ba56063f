"""Muon's steps by a kernel, against those of torch."""

import copy
from dataclasses import replace

import pytest
import torch
from fused_variants import VARIANTS, error, needs_float32, parameter

from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.muon import MuonKernel
from deepres.data.loader import build_stream
from deepres.recipes.named import fast
from deepres.training.fast_muon import FastMuon, muon_kernel
from deepres.training.muon import NEGLIGIBLE, NEWTON_SCHULZ_STEPS, QUINTIC, Muon, orthogonalize
from deepres.training.optimizers import build_optimizers
from deepres.training.trainer import Trainer

CPU = torch.device("cpu")
SHAPES = [(16, 3, 3, 3), (16, 16, 3, 3), (32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3)]


def random_banks(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def kernel_of(precision, unit):
    return MuonKernel(0.8, NEGLIGIBLE, QUINTIC, NEWTON_SCHULZ_STEPS, precision, unit)


@pytest.mark.parametrize(("precision", "unit"), VARIANTS)
def test_steps_are_torchs_up_to_rounding(precision, unit):
    ours, theirs = random_banks(), random_banks()
    buffers = [torch.zeros_like(bank) for bank in ours]
    torchs = Muon(theirs, peak_lr=0.05, momentum=0.8)
    kernel = kernel_of(precision, unit)
    kernel.check(ours)
    for step in range(1, 4):
        gradients = random_banks(step)
        gradients[2][5] = 0  # a filter without a gradient
        before = [bank.clone() for bank in theirs]
        for bank, gradient in zip(theirs, gradients, strict=True):
            bank.grad = gradient
        torchs.set_rate(1.0, 1.0)
        torchs.step()
        kernel(ours, gradients, buffers, 0.05)
        for i, shape in enumerate(SHAPES):
            assert error(ours[i] - before[i], theirs[i] - before[i]) < 1e-4, (shape, step)
            assert torch.equal(buffers[i], torchs._buffers[theirs[i]])
            ours[i].copy_(theirs[i])


@pytest.mark.parametrize(("precision", "unit"), VARIANTS)
def test_bits_depend_on_neither_threads_nor_company(precision, unit):
    kernel, before = kernel_of(precision, unit), torch.get_num_threads()
    results = []
    try:
        for threads, chosen in ((1, range(6)), (2, range(6)), (3, (5, 0, 3, 2, 4, 1)), (1, (4, 2))):
            torch.set_num_threads(threads)
            banks, gradients, buffers = ([banks[i] for i in chosen] for banks in map(random_banks, (0, 1, 2)))
            kernel(banks, gradients, buffers, 0.05)
            results.append(dict(zip(chosen, banks, strict=True)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(results[0][i], bank) for i, bank in other.items())


@needs_float32
def test_negligible_entries_are_left_out():
    threshold = 1e-2  # of 9,216 entries of norm 1, two thirds
    kernel = MuonKernel(0.8, threshold, QUINTIC, NEWTON_SCHULZ_STEPS, "float32")
    bank, gradient = random_banks()[3], random_banks(1)[3]
    before, target_norm = bank.clone(), 32**0.5
    kernel([bank], [gradient], [torch.zeros_like(bank)], 0.05)
    update = orthogonalize(1.8 * gradient.flatten(1)[None], threshold)[0].view_as(bank)
    assert error(update, orthogonalize(gradient.flatten(1)[None])[0].view_as(bank)) > 0.1
    assert error(before * target_norm / before.norm() - bank, 0.05 * update) < 1e-4


@needs_float32
def test_a_bank_without_any_gradient_only_takes_its_norm():
    bank, still = random_banks()[1], torch.zeros(16, 16, 3, 3)
    expected = bank * 4 / bank.norm()
    kernel_of("float32", None)([bank], [still], [still.clone()], 0.05)
    assert error(bank, expected) < 1e-6


@needs_float32
def test_nan_goes_through():
    kernel = kernel_of("float32", None)
    bank, gradient = random_banks()[1], random_banks(1)[1]
    gradient[0, 0, 0, 0] = float("nan")
    kernel([bank], [gradient], [torch.zeros_like(bank)], 0.05)
    assert bank.isnan().all()


@needs_float32
@pytest.mark.parametrize("bank", [torch.zeros(24, 16, 3, 3), torch.zeros(128, 16, 3, 3), torch.zeros(16, 65, 3, 3)])
def test_other_banks_are_left_to_torch(bank):
    with pytest.raises(KernelsUnavailable, match="no step of Muon"):
        kernel_of("float32", None).check([bank])
    with pytest.raises(KernelsUnavailable, match="plain ones"):
        kernel_of("float32", None).check([torch.zeros(16, 16, 3, 3).to(memory_format=torch.channels_last)])


def trainer_of(backend, precision="float32"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8, generator=generator)
    recipe = replace(fast(), batch_size=40)
    stream = build_stream(images, torch.randint(10, (50,), generator=generator), recipe, seed=3)
    return Trainer(
        name="resnet8",
        option="A",
        recipe=recipe,
        seed=0,
        stream=stream,
        total_steps=10,
        device=CPU,
        precision=precision,
        backend=backend,
        notice=print,
    )


@pytest.mark.parametrize("precision", [parameter("float32"), parameter("bfloat16")])
def test_the_fused_backend_has_it(precision):
    assert isinstance(trainer_of("fused", precision).optimizers[0], FastMuon)


@needs_float32
def test_a_resumed_training_takes_the_same_steps():
    straight, resumed = trainer_of("fused"), trainer_of("fused")
    for step in range(4):
        if step == 2:
            resumed.load_state(copy.deepcopy(straight.state()))
        straight.advance()
        if step >= 2:
            resumed.advance()
    found, expected = resumed.state()["model"], straight.state()["model"]
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@needs_float32
def test_others_have_torchs():
    assert type(trainer_of("eager").optimizers[0]) is Muon
    wide = torch.nn.Conv2d(3, 24, 3)
    assert type(build_optimizers(fast(), torch.nn.Sequential(wide), kernels="float32")[0]) is Muon


@needs_float32
def test_a_kernel_that_differs_is_not_taken():
    with pytest.raises(KernelsUnavailable, match="differs from torch's"):
        FastMuon(random_banks(), 0.05, 0.8, muon_kernel(0.8, "float32", num_iterations=4))
