import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from deepres.backends.accelerator import Accelerator
from deepres.backends.build import build_backend, why_not_fused
from deepres.backends.fused_cuda import availability
from deepres.backends.fused_cuda.availability import why_no_triton_kernels
from deepres.backends.torch_backend import TorchBackend
from deepres.errors import UserError
from deepres.models import build_model

CUDA = torch.device("cuda")
H100 = Accelerator("cuda", "H100", (9, 0))


def fresh(name="resnet8", **options):
    return build_model(name, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize(
    "accelerator", [Accelerator("cuda", "A100", (8, 0)), H100, Accelerator("cuda", "RTX 5090", (12, 0))]
)
def test_gpus_of_capability_8_and_later_have_kernels(accelerator):
    assert why_no_triton_kernels(accelerator, "bfloat16", [32, 24, 16, 64], has_triton=True) is None


@pytest.mark.parametrize(
    ("accelerator", "precision", "size", "has_triton", "reason"),
    [
        (
            Accelerator("cuda", "T4", (7, 5)),
            "float16",
            32,
            True,
            "there are none for T4 (compute capability 7.5), which",
        ),
        (
            Accelerator("rocm", "MI300X", architecture="gfx942"),
            "bfloat16",
            32,
            True,
            "there are none for MI300X (gfx942)",
        ),
        (Accelerator("xpu", "Arc A770"), "bfloat16", 32, True, "there are none for Arc A770"),
        (Accelerator("mps", "Apple GPU"), "float32", 32, True, "there are none for Apple GPU"),
        (H100, "float32", 32, True, "on a GPU there are none of precision 'float32', but of 'bfloat16'"),
        (H100, "float16", 32, True, "on a GPU there are none of precision 'float16'"),
        (H100, "bfloat16", 30, True, "on a GPU there are none for images of 30 x 30, which is no multiple of 4"),
        (H100, "bfloat16", 32, False, "on a GPU they need Triton, which is not installed: pip install triton"),
    ],
)
def test_what_is_missing_is_said(accelerator, precision, size, has_triton, reason):
    found = why_no_triton_kernels(accelerator, precision, [32, size], has_triton=has_triton)
    assert found is not None
    assert found.startswith(reason)


@pytest.fixture
def h100(monkeypatch):
    """A machine with a GPU and Triton, as far as the rules can see."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    triton = ModuleType("triton")
    triton.__spec__ = ModuleSpec("triton", None)
    monkeypatch.setitem(sys.modules, "triton", triton)


def test_other_nets_are_left_alone(h100):
    reasons = [
        why_not_fused(fresh(option="B"), CUDA, "bfloat16", [32]),
        why_not_fused(fresh("resnet8x2"), CUDA, "bfloat16", [32]),
        why_not_fused(fresh(), CUDA, "bfloat16", [32]),  # which is not on that GPU
    ]
    assert reasons[0] == "there are no kernels for shortcut option B"
    assert "conv1" in reasons[1]
    assert reasons[2] == "conv1.weight is on cpu, torch.strided"


def test_kernels_that_fail_give_way_to_plain_torch(h100, monkeypatch):
    """Triton is missing, or finds no GPU: whatever goes wrong is said, and leaves the net as it was."""
    monkeypatch.setattr(availability, "why_not_standard", lambda model, device_type: None)
    net, untouched, notices = fresh(), fresh(), []
    generator = torch.Generator().manual_seed(0)
    examples = [(torch.randn(4, 3, 16, 16, generator=generator), torch.arange(4))]
    arguments = CUDA, "bfloat16", 4
    backend = build_backend("fused", net, *arguments, notices.append, examples=examples, fall_back=True)
    assert isinstance(backend, TorchBackend)
    assert backend.name == "eager"
    (notice,) = notices
    assert notice.startswith("no fused kernels (")
    assert notice.endswith("): going on without them, slower")
    assert all(torch.equal(tensor, untouched.state_dict()[key]) for key, tensor in net.state_dict().items())
    with pytest.raises(
        UserError, match=r"the fused kernels do not work here \(.+\): give --backend compiled or eager"
    ):
        build_backend("fused", net, *arguments, notices.append, examples=examples)
