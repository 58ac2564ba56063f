import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from deepres.errors import UserError
from deepres.models import build_model
from deepres.recipes import fast, one_cycle, paper
from deepres.training.backends import COMPILE_STEPS, TorchBackend, build_backend, check_backend, choose_backend
from deepres.training.bench import Speed, measure_speed
from deepres.training.device import resolve_device
from deepres.training.fused import why_unsupported
from deepres.training.kernels import KernelsUnavailable

CPU = torch.device("cpu")


@pytest.mark.parametrize(("cores", "variable", "threads"), [(1, None, 1), (1, "2", 2), (3, None, 2), (64, None, 2)])
def test_no_more_threads_than_the_container_has_cores(monkeypatch, cores, variable, threads):
    before = torch.get_num_threads()
    monkeypatch.setattr("deepres.training.device.num_cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(2)
    try:
        resolve_device("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def no_kernels(precision, size=32):
    raise KernelsUnavailable("the processor lacks avx512_f")


def test_without_kernels_the_choice_is_torch(monkeypatch):
    monkeypatch.setattr("deepres.training.backends.load_kernels", no_kernels)
    model = build_model("resnet20")
    monkeypatch.setattr("deepres.training.backends.find_compiler", lambda: "g++")
    notices = []
    assert choose_backend(model, CPU, "float32", COMPILE_STEPS, notices.append) == "compiled"
    assert choose_backend(model, CPU, "float32", COMPILE_STEPS - 1, notices.append) == "eager"
    assert notices == ["no fused kernels (the processor lacks avx512_f): going on without them, slower"] * 2
    monkeypatch.setattr("deepres.training.backends.find_compiler", lambda: None)
    assert choose_backend(model, CPU, "float32", COMPILE_STEPS, notices.append) == "eager"
    assert notices[-1] == "no C++ compiler found, which torch.compile needs: going on without it, slower"


def test_kernels_must_be_there_for_every_size_of_image(monkeypatch):
    """As where a full cache holds those of one size."""

    def for_whole_images_only(precision, size=32):
        if size != 32:
            raise KernelsUnavailable("no space left")

    monkeypatch.setattr("deepres.training.backends.load_kernels", for_whole_images_only)
    model, notices = build_model("resnet20"), []
    if why_unsupported(model, CPU, "float32") is None:
        assert choose_backend(model, CPU, "float32", 1, notices.append) == "fused"
        assert choose_backend(model, CPU, "float32", 1, notices.append, fast().small_sizes) == "eager"
        assert notices == ["no fused kernels (no space left): going on without them, slower"]


def test_asking_for_kernels_that_are_not_there_says_why(monkeypatch):
    monkeypatch.setattr("deepres.training.backends.load_kernels", no_kernels)
    monkeypatch.setattr("deepres.training.fused.load_kernels", no_kernels)
    with pytest.raises(
        UserError, match=r"fused kernels do not work here \(the processor lacks avx512_f\): give --back"
    ):
        build_backend("fused", build_model("resnet20"), CPU, "float32", 16, print)
    with pytest.raises(UserError, match=r"\(there are no kernels for shortcut option B\)"):
        build_backend("fused", build_model("resnet20", option="B"), CPU, "float32", 16, print)


def test_backends_that_kernels_do_not_cover_are_torchs():
    model = build_model("resnet20", option="C")
    assert choose_backend(model, CPU, "float32", 1, pytest.fail) == "eager"
    assert isinstance(build_backend("eager", model, CPU, "float32", 16, print), TorchBackend)


def test_unknown_backend():
    with pytest.raises(UserError, match=r"unknown backend 'fusd' \(did you mean fused\?\): choose from auto, fused"):
        check_backend("fusd")


FAULTS = """
import resource, torch
from deepres.memory import keep_freed_memory
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
    speed = Speed(train=1000.0, evaluate=4000.0, backend="eager")
    # 30 epochs: 11,719 steps of 128 images, and 10,000 test images each; 64,000 steps, 164 epochs.
    assert speed.seconds(one_cycle()) == pytest.approx(11_719 * 128 / 1000 + 30 * 10_000 / 4000)
    assert speed.seconds(paper()) == pytest.approx(64_000 * 128 / 1000 + 164 * 10_000 / 4000)
    # 4,471 steps of 256 images, 65% of them on images of 24 rows; 23 epochs.
    small = replace(speed, small=[(24, 1500.0)])
    by_hand = 2906 * 256 / 1500 + 1565 * 256 / 1000 + 23 * 10_000 / 4000
    assert small.seconds(fast()) == pytest.approx(by_hand)
    assert small.scaled(2).seconds(fast()) == pytest.approx(2 * by_hand)


def test_speed_is_measured():
    speed = measure_speed("resnet20", [one_cycle(), fast()], CPU, "float32", seconds=0.1)
    assert 1 < speed.train < 1e6
    assert [size for size, _ in speed.small] == [24]
    assert 1 < speed.small[0][1] < 1e6
    assert 1 < speed.evaluate < 1e7
    assert speed.scaled(4).train == speed.train / 4
    assert speed.backend in ("fused", "compiled", "eager")
