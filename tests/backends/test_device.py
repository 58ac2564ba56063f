import os

import pytest
import torch

from deepres.backends.accelerator import Accelerator, why_no_gpu
from deepres.backends.device import (
    check_precision,
    describe_device,
    first_failure,
    native_precisions,
    replays_graphs,
    resolve_device,
    resumes_exactly,
)
from deepres.errors import UserError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
CU128 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
OLD = ["sm_50", "sm_60", "sm_70"]


@pytest.mark.parametrize(
    ("capability", "architectures", "works"),
    [
        ((8, 0), CU128, True),
        ((8, 9), CU128, True),  # by sm_86: same major number
        ((9, 0), CU128, True),
        ((7, 5), CU128, True),
        ((12, 1), CU128, True),
        ((13, 0), CU128, True),  # compute_120 is compiled when loaded
        ((7, 0), CU128, False),
        ((6, 1), CU128, False),
        ((3, 7), CU128, False),
        ((10, 3), CU128, True),
        ((11, 0), CU128, False),
        ((7, 5), OLD, True),
        ((8, 0), OLD, False),  # no compute_70 to compile from
        ((8, 0), [*OLD, "compute_70"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # AMD's are not judged
        ((8, 0), [], True),
    ],
)
def test_which_gpus_a_build_of_torch_covers(capability, architectures, works):
    reason = why_no_gpu(capability, architectures)
    assert (reason is None) == works
    if reason:
        assert f"compute capability {capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize(
    ("accelerator", "precisions", "replays"),
    [
        (Accelerator("cuda", "B200", (10, 0)), ["float32", "float16", "bfloat16"], True),
        (Accelerator("cuda", "A100", (8, 0)), ["float32", "float16", "bfloat16"], True),
        (Accelerator("cuda", "Tesla T4", (7, 5)), ["float32", "float16"], True),
        (Accelerator("cuda", "Tesla V100", (7, 0)), ["float32", "float16"], True),
        (Accelerator("cuda", "Tesla P100", (6, 0)), ["float32"], True),
        (Accelerator("rocm", "MI250X", architecture="gfx90a:sramecc+:xnack-"), ["float32", "bfloat16"], False),
        (Accelerator("rocm", "MI300X", architecture="gfx942:sramecc+:xnack-"), ["float32", "bfloat16"], False),
        (Accelerator("rocm", "RX 7900", architecture="gfx1100"), ["float32", "bfloat16"], False),
        (Accelerator("rocm", "RX 6800", architecture="gfx1030"), ["float32"], False),
        (Accelerator("rocm", "MI50", architecture="gfx906"), ["float32"], False),
        (Accelerator("mps", "Apple GPU"), ["float32"], False),
        (Accelerator("xpu", "Arc A770"), ["float32", "bfloat16"], False),
    ],
)
def test_what_a_device_computes_in_follows_from_its_kind(accelerator, precisions, replays):
    assert accelerator.precisions == precisions  # "auto" takes the last
    assert accelerator.replays == accelerator.repeats == replays


def compute_as(monkeypatch, failure):
    """Let torch compute on the CPU, or fail, where another device is to prove itself."""
    ones = torch.ones

    def on_the_device(*size, device=None):
        if failure is not None:
            raise RuntimeError(failure)
        return ones(*size)

    monkeypatch.setattr(torch, "ones", on_the_device)


@pytest.fixture
def gpu(monkeypatch):
    def set_up(capability, architectures=CU128, failure=None):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
        compute_as(monkeypatch, failure)

    return set_up


@pytest.fixture
def other(monkeypatch):
    """A machine without CUDA and with an accelerator of another kind."""

    def set_up(kind, failure=None):
        found = None if kind is None else torch.device(kind)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.xpu, "get_device_name", lambda device=None: "Arc A770")
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
        compute_as(monkeypatch, failure)

    return set_up


def test_auto_takes_a_gpu_that_torch_has_kernels_for(gpu):
    gpu((9, 0))
    assert resolve_device("auto", pytest.fail) == CUDA
    assert resolve_device("cuda", pytest.fail) == CUDA
    assert resolve_device("cpu", pytest.fail) == CPU


def test_what_an_nvidia_gpu_compiles_anew_may_add_up_otherwise(gpu):
    gpu((9, 0))
    assert [resumes_exactly(CUDA, backend) for backend in ("eager", "fused", "compiled")] == [True, True, False]
    assert resumes_exactly(CPU, "compiled")


def test_a_gpu_without_kernels_is_left_alone_and_said(gpu):
    gpu((6, 1))
    notices = []
    assert resolve_device("auto", notices.append) == CPU
    (notice,) = notices
    assert "no kernels for a GPU of compute capability 6.1: the CPU computes" in notice
    assert resolve_device("cpu", pytest.fail) == CPU
    with pytest.raises(
        UserError, match=r"device 'cuda': this build of torch has no kernels .* 6\.1: use --device cpu"
    ):
        resolve_device("cuda")


def test_a_gpu_that_does_not_compute_is_left_alone_and_said(gpu):
    """Whatever the list of architectures says."""
    gpu((7, 0), [], failure="CUDA error: no kernel image is available for execution on the device")
    notices = []
    assert resolve_device("auto", notices.append) == CPU
    assert len(notices) == 1
    assert notices[0].startswith("Some GPU does not compute (CUDA error: no kernel image is available")
    with pytest.raises(UserError, match=r"device 'cuda': Some GPU does not compute \(CUDA error"):
        resolve_device("cuda")
    assert resolve_device("auto", pytest.fail, prove=False) == CUDA  # the runs will find out


def test_the_proof_is_a_sum():
    assert first_failure(CPU) is None
    assert "meta" in (first_failure(torch.device("meta")) or "")  # which computes nothing


def test_no_gpu(other):
    other(None)
    assert resolve_device("auto", pytest.fail) == CPU
    for name, what in (("cuda", "GPU"), ("mps", "Apple GPU"), ("xpu", "Intel GPU")):
        with pytest.raises(UserError, match=f"device '{name}': torch sees no {what} here: use --device cpu"):
            resolve_device(name)


@pytest.mark.parametrize(("kind", "what", "name"), [("mps", "Apple", "Apple GPU"), ("xpu", "Intel", "Arc A770")])
def test_other_accelerators_compute_on_request(other, kind, what, name):
    other(kind)
    notices = []
    assert resolve_device("auto", notices.append) == CPU
    assert notices == [f"the CPU computes: deepres is not tested on {what} GPUs; --device {kind} uses this one"]
    device = resolve_device(kind, pytest.fail)
    assert device == torch.device(kind)
    assert describe_device(device) == name
    assert not replays_graphs(device)
    assert not resumes_exactly(device, "eager")
    with pytest.raises(UserError, match=f"precision 'float16' does not suit {name}: use --precision float32"):
        check_precision("float16", device)
    other(kind, failure="out of memory")
    with pytest.raises(
        UserError, match=rf"device '{kind}': {name} does not compute \(out of memory\): use --device cpu"
    ):
        resolve_device(kind)


def test_unknown_device():
    with pytest.raises(UserError, match=r"unknown device 'gpu'.*: choose from auto, cpu, cuda, mps, xpu"):
        resolve_device("gpu")


def test_a_gpu_rounds_the_same_way_each_time(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for name, value in (("allow_tf32", True), ("deterministic", False), ("benchmark", True)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    torch.backends.cuda.matmul.allow_tf32 = True
    resolve_device("cpu")
    cudnn = torch.backends.cudnn
    assert (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark) == (False, True, False)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_which_runs_resume_exactly(gpu):
    gpu((9, 0))
    assert resumes_exactly(CPU, "fused")
    assert resumes_exactly(CPU, "compiled")
    assert resumes_exactly(CUDA, "eager")
    assert resumes_exactly(CUDA, "fused")
    assert not resumes_exactly(CUDA, "compiled")
    assert replays_graphs(CUDA)
    assert not replays_graphs(CPU)


@pytest.mark.parametrize(
    ("capability", "native", "refused"),
    [
        ((6, 1), ["float32"], {"float16": "float32", "bfloat16": "float32"}),
        ((7, 5), ["float32", "float16"], {"bfloat16": "float32 or float16"}),
        ((8, 0), ["float32", "float16", "bfloat16"], {}),
        ((12, 0), ["float32", "float16", "bfloat16"], {}),
    ],
)
def test_narrow_precisions_are_for_gpus_that_multiply_in_them(gpu, capability, native, refused):
    gpu(capability)
    assert native_precisions(CUDA) == native
    for precision in ("auto", *native):
        check_precision(precision, CUDA)
    for precision, others in refused.items():
        what = rf"'{precision}' does not suit Some GPU \(compute capability {capability[0]}\.{capability[1]}\)"
        with pytest.raises(UserError, match=rf"precision {what}: use --precision {others}$"):
            check_precision(precision, CUDA)


@pytest.mark.parametrize(
    ("capabilities", "native"), [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_bfloat16_on_a_cpu_is_for_those_that_multiply_in_it(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_precisions(CPU) == ["float32", "bfloat16"][: 1 + native]
    check_precision("bfloat16", CPU)  # slow is no error


def test_float16_is_not_for_cpus():
    with pytest.raises(UserError, match="'float16' is for GPUs: on a CPU use --precision float32 or bfloat16"):
        check_precision("float16", CPU)
    check_precision("float16")  # of a device that is not known yet


def test_unknown_precision():
    for device in (CPU, None):
        with pytest.raises(UserError, match=r"unknown precision 'bfloat' \(did you mean bfloat16\?\)"):
            check_precision("bfloat", device)
