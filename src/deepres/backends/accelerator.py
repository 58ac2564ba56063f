"""What is known of a GPU or the like before it computes anything, and the rules that follow from that alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

FIRST_BFLOAT16 = (8, 0)  # compute capability of the first NVIDIA GPUs that multiply bfloat16 matrices: Ampere
FIRST_FLOAT16 = (7, 0)  # and float16 matrices: Volta, Turing (T4)
# AMD's that multiply bfloat16 matrices at full speed: Instinct from MI200, Radeon from RDNA 3.
AMD_BFLOAT16 = re.compile(r"gfx(90a|94|95|11|12)")


@dataclass(frozen=True)
class Accelerator:
    """A device that is not the CPU, as torch describes it."""

    kind: str
    """"cuda" (NVIDIA), "rocm" (AMD, whose device torch calls cuda too), "mps" (Apple) or "xpu" (Intel)."""
    name: str
    capability: tuple[int, int] = (0, 0)
    """NVIDIA's compute capability."""
    architecture: str = ""
    """AMD's, such as gfx90a."""
    built_for: tuple[str, ...] = ()
    """What this build of torch has kernels for, as `torch.cuda.get_arch_list` has it."""

    @classmethod
    def of(cls, device: torch.device) -> "Accelerator":
        """Ask torch."""
        if device.type == "mps":
            return cls("mps", "Apple GPU")
        if device.type == "xpu":
            return cls("xpu", torch.xpu.get_device_name(device))
        name = torch.cuda.get_device_name(device)
        if torch.version.hip is not None:
            return cls("rocm", name, architecture=torch.cuda.get_device_properties(device).gcnArchName)
        capability, built_for = torch.cuda.get_device_capability(device), tuple(torch.cuda.get_arch_list())
        return cls("cuda", name, capability, built_for=built_for)

    @property
    def precisions(self) -> list[str]:
        """The precisions in which it computes nets, the one that "auto" takes last."""
        match self.kind:
            case "cuda" if self.capability >= FIRST_BFLOAT16:
                return ["float32", "float16", "bfloat16"]
            case "cuda" if self.capability >= FIRST_FLOAT16:
                return ["float32", "float16"]
            case "rocm" if AMD_BFLOAT16.match(self.architecture):
                return ["float32", "bfloat16"]
            case "xpu":
                return ["float32", "bfloat16"]
        return ["float32"]

    @property
    def replays(self) -> bool:
        """Whether steps are recorded as graphs. AMD's have been silently wrong; the others have none."""
        return self.kind == "cuda"

    @property
    def repeats(self) -> bool:
        """Whether plain torch gives the same bits each time, by its choice of algorithms, see `fix_rounding`."""
        return self.kind == "cuda"

    @property
    def why_no_kernels(self) -> str | None:
        """Why this build of torch does not run on it, or None."""
        return why_no_gpu(self.capability, self.built_for) if self.kind == "cuda" else None

    def __str__(self) -> str:
        """Name it with what its precisions depend on."""
        detail = {"cuda": f" (compute capability {self.capability[0]}.{self.capability[1]})"}
        return f"{self.name}{detail.get(self.kind, f' ({self.architecture})' if self.architecture else '')}"


def why_no_gpu(capability: tuple[int, int], architectures: Sequence[str]) -> str | None:
    """Return why a build of torch does not run on an NVIDIA GPU, or None.

    Binary code ("sm_86") runs on GPUs of the same major and at least the minor number, code for one architecture alone
    ("sm_90a") on that one; "compute_90" is compiled for any later GPU when it is loaded.

    Args:
        capability: the GPU's, as `torch.cuda.get_device_capability` has it.
        architectures: what the build is for, as `torch.cuda.get_arch_list` has it. AMD's are not judged.
    """
    known = [match for name in architectures if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name))]
    for kind, major, minor, suffix in (match.groups() for match in known):
        built_for = int(major), int(minor)
        if suffix == "a":
            covered = capability == built_for
        elif kind == "sm":
            covered = capability[0] == built_for[0] and capability >= built_for
        else:
            covered = capability >= built_for
        if covered:
            return None
    if not known:
        return None
    return f"this build of torch has no kernels for a GPU of compute capability {capability[0]}.{capability[1]}"
