import pytest
import torch

from deepres.backends.device import check_precision, native_precisions, resolve_device, why_no_gpu
from deepres.errors import UserError

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


@pytest.fixture
def gpu(monkeypatch):
    def set_up(capability, architectures=CU128):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)

    return set_up


def test_auto_takes_a_gpu_that_torch_has_kernels_for(gpu):
    gpu((9, 0))
    assert resolve_device("auto", pytest.fail) == CUDA
    assert resolve_device("cuda", pytest.fail) == CUDA
    assert resolve_device("cpu", pytest.fail) == torch.device("cpu")


def test_a_gpu_without_kernels_is_left_alone_and_said(gpu):
    gpu((6, 1))
    notices = []
    assert resolve_device("auto", notices.append) == torch.device("cpu")
    (notice,) = notices
    assert "no kernels for a GPU of compute capability 6.1: the CPU computes" in notice
    assert resolve_device("cpu", pytest.fail) == torch.device("cpu")
    with pytest.raises(
        UserError, match=r"device 'cuda': this build of torch has no kernels .* 6\.1: use --device cpu"
    ):
        resolve_device("cuda")


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", pytest.fail) == torch.device("cpu")
    with pytest.raises(UserError, match="device 'cuda': torch sees no GPU here: use --device cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)])
def test_bfloat16_is_for_ampere_and_later(gpu, capability, native):
    gpu(capability)
    assert native_precisions(CUDA) == ["float32", "bfloat16"][: 1 + native]
    check_precision("float32", CUDA)
    check_precision("auto", CUDA)
    if native:
        check_precision("bfloat16", CUDA)
    else:
        with pytest.raises(
            UserError, match=r"'bfloat16' needs a GPU of compute capability 8\.0, this one has 7\.5: use"
        ):
            check_precision("bfloat16", CUDA)


@pytest.mark.parametrize(
    ("capabilities", "native"), [({}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)]
)
def test_bfloat16_on_a_cpu_is_for_those_that_multiply_in_it(monkeypatch, capabilities, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_precisions(torch.device("cpu")) == ["float32", "bfloat16"][: 1 + native]
    check_precision("bfloat16", torch.device("cpu"))  # slow is no error


def test_unknown_precision():
    with pytest.raises(UserError, match=r"unknown precision 'bfloat' \(did you mean bfloat16\?\)"):
        check_precision("bfloat", torch.device("cpu"))
