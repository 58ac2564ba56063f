import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from deepres.backends.build import build_backend, check_backend, plain_backend, why_not_fused
from deepres.backends.device import COMPILED_VARIANTS, limit_threads, resolve_device
from deepres.backends.torch_backend import LOSS_SCALE, TorchBackend
from deepres.errors import UserError
from deepres.models import build_model
from deepres.recipes.named import fast, one_cycle, paper
from deepres.training.bench import Speed, measure_speed

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cores", "variable", "threads"), [(1, None, 1), (1, "2", 2), (3, None, 2), (64, None, 2)])
def test_no_more_threads_than_the_container_has_cores(monkeypatch, cores, variable, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(2)
    try:
        limit_threads(cores)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_to_choose_a_device_limits_the_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    try:
        resolve_device("cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_sizes_that_there_are_no_kernels_for_are_told_before_the_first_step():
    model, notices = build_model("resnet20"), []
    examples = [(torch.zeros(8, 3, size, size), torch.arange(8)) for size in (32, 8)]
    reason = "there are no kernels for images of 8 x 8"
    if why_not_fused(model, CPU, "float32", [32]) is None:
        assert why_not_fused(model, CPU, "float32", [32, 8]) == reason
        with pytest.raises(UserError, match=reason):
            build_backend("fused", model, CPU, "float32", 16, notices.append, examples=examples)
        build = partial(build_backend, "fused", model, CPU, "float32", 16, notices.append)
        assert build(examples=examples, fall_back=True).name == "eager"
        assert notices == [f"no fused kernels ({reason}): going on without them, slower"]


@pytest.mark.parametrize("training", [True, False])
def test_compilation_that_fails_at_another_size_of_image_goes_on_plainly(monkeypatch, training):
    """As at the change from small images to whole ones: torch.compile compiles once for each shape."""
    compiled_for = []

    def for_the_first_size_only(function, *, dynamic):
        def call(images, *labels):
            result = function(images, *labels)  # has moved the running statistics when the compiler gives up
            if images.shape not in compiled_for:
                if compiled_for:
                    raise RuntimeError("no space left\nand so on")
                compiled_for.append(images.shape)
            return result

        return call

    monkeypatch.setattr(torch, "compile", for_the_first_size_only)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    models = [build_model("resnet20", generator=generator) for generator in generators]
    notices = []
    compiled = build_backend("compiled", models[0], CPU, "float32", 4, notices.append)
    plain = build_backend("eager", models[1], CPU, "float32", 4, pytest.fail)
    for size in (24, 24, 32, 24, 32):
        images, labels = torch.randn(4, 3, size, size, generator=generators[0]), torch.arange(4)
        if training:
            for model, backend in zip(models, (compiled, plain), strict=True):
                model.zero_grad(set_to_none=True)
                backend.forward_backward(images, labels)
            assert all(torch.equal(p.grad, q.grad) for p, q in zip(*(m.parameters() for m in models), strict=True))
        else:
            assert torch.equal(compiled.logits(images), plain.logits(images))
        buffers = dict(models[1].named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in models[0].named_buffers())
    assert notices == ["torch.compile does not work here (no space left): going on without it, slower"]


def test_a_process_compiles_many_nets_on_no_more_cores_than_it_computes_on():
    """As each process of a grid has its share of them. Torch reads the variable once, so a new one is asked."""
    program = (
        "from deepres.backends.device import compile_function; compile_function(print); "
        "from torch._inductor import config; print(config.compile_threads); "
        "import torch; print(torch._dynamo.config.recompile_limit)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_COMPILE_THREADS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.stdout.split() == ["1", str(COMPILED_VARIANTS)], done.stderr


def test_asking_for_kernels_that_are_not_there_says_why(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    lacking = r"fused kernels do not work here \(the processor lacks avx2, fma3\): give --back"
    with pytest.raises(UserError, match=lacking):
        build_backend("fused", build_model("resnet20"), CPU, "float32", 16, print)
    with pytest.raises(UserError, match=r"\(there are no kernels for shortcut option B\)"):
        build_backend("fused", build_model("resnet20", option="B"), CPU, "float32", 16, print)


def test_backends_that_kernels_do_not_cover_are_torchs():
    model = build_model("resnet20", option="C")
    assert why_not_fused(model, CPU, "float32", [32]) == "there are no kernels for shortcut option C"
    assert isinstance(build_backend("eager", model, CPU, "float32", 16, print), TorchBackend)


def test_unknown_backend():
    with pytest.raises(UserError, match=r"unknown backend 'fusd' \(did you mean fused\?\): choose from auto, fused"):
        check_backend("fusd")


FAULTS = """
import resource, torch
from deepres.backends.memory import keep_freed_memory
if {keep}: keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20): torch.ones(2_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    def faults(keep):
        command = [sys.executable, "-c", FAULTS.format(keep=keep)]
        environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}  # as glibc begins
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    assert faults(False) > 20 * 1000
    assert faults(True) < 100


def test_estimated_time_by_hand():
    speed = Speed(train=1000.0, evaluate=4000.0, precision="float32", backend="eager")
    # 30 epochs: 11,719 steps of 128 images, and 10,000 test images each; 64,000 steps, 164 epochs.
    assert speed.seconds(one_cycle()) == pytest.approx(11_719 * 128 / 1000 + 30 * 10_000 / 4000)
    assert speed.seconds(paper()) == pytest.approx(64_000 * 128 / 1000 + 164 * 10_000 / 4000)
    # 5,446 steps of 256 images: 1,089 on images of 16 rows, 3,268 on those of 24, 1,089 on whole ones; 28 epochs.
    small = replace(speed, small=[(16, 3000.0), (24, 1500.0)])
    by_hand = 1089 * 256 / 3000 + 3268 * 256 / 1500 + 1089 * 256 / 1000 + 28 * 10_000 / 4000
    assert small.seconds(fast()) == pytest.approx(by_hand)
    assert small.scaled(2).seconds(fast()) == pytest.approx(2 * by_hand)


def test_speed_is_measured():
    speed = measure_speed("resnet20", [one_cycle(), fast()], CPU, "float32", seconds=0.1)
    assert 1 < speed.train < 1e6
    assert [size for size, _ in speed.small] == [16, 24]
    assert 1 < speed.small[0][1] < 1e6
    assert 1 < speed.evaluate < 1e7
    assert speed.scaled(4).train == speed.train / 4
    assert speed.precision == "float32"
    assert speed.backend in ("fused", "compiled", "eager")


class TinyNet(torch.nn.Module):
    """With gradients of activations that float16 does not tell from zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 10)
        self.fc.weight.data.mul_(1e-5)

    def forward(self, x):
        return self.fc(self.conv(x).mean(dim=(2, 3)))


def test_float16_computes_the_gradients_of_a_multiple_of_the_loss():
    images, labels = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    losses, gradients = {}, {}
    for precision in ("float32", "float16"):
        net = TinyNet()
        losses[precision], wrong = build_backend("eager", net, CPU, precision, 8, pytest.fail).forward_backward(
            images, labels
        )
        assert wrong.dtype == torch.int64
        gradients[precision] = {name: p.grad for name, p in net.named_parameters()}
    assert losses["float16"].item() == pytest.approx(losses["float32"].item(), rel=1e-3)
    for name, gradient in gradients["float16"].items():
        assert gradient.dtype == torch.float32
        assert (gradient - gradients["float32"][name]).norm() < 0.02 * gradient.norm()

    # By hand, to the last bit: the scaled gradients, divided. And without the scale they are not there.
    for scale, there in ((LOSS_SCALE, True), (1.0, False)):
        net = TinyNet()
        with torch.autocast("cpu", dtype=torch.float16):
            logits = net(images.contiguous(memory_format=torch.channels_last))
        (torch.nn.functional.cross_entropy(logits.float(), labels) * scale).backward()
        assert torch.equal(net.conv.weight.grad / scale, gradients["float16"]["conv.weight"]) == there


def test_a_gpu_computes_plainly_however_long_the_run():
    assert plain_backend(10**6, torch.device("cuda"), pytest.fail) == "eager"
    assert plain_backend(10, CPU, pytest.fail) == "eager"
