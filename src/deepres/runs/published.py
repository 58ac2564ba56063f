"""What others published for the same nets: test error on CIFAR-10 in percent."""

from dataclasses import dataclass
from types import MappingProxyType

FIGURE6_DEPTHS = (20, 32, 44, 56)  # of those in the paper's figure 6: the plain nets shown, and their residual twins


@dataclass(frozen=True)
class Published:
    """Published test errors of one net, in percent; None where there is none."""

    paper: float | None
    """He et al., CVPR 2016, table 6; for plain nets read off figure 6."""
    repository_best: float | None
    """The public PyTorch reproduction github.com/a-martyn/resnet, its best epoch of one run."""
    repository_last: float | None
    """The same run at its last epoch."""
    note: str = ""
    """What else there is to know of the paper's number."""
    paper_mean: float | None = None
    """The paper's mean of several runs, where it gives one: what a mean is to be compared with."""


PUBLISHED = MappingProxyType(
    {
        "plain20": Published(9.5, 9.50, 9.69, "read off figure 6"),
        "plain32": Published(10.0, 9.92, 10.04, "read off figure 6"),
        "plain44": Published(12.0, 11.35, 11.56, "read off figure 6"),
        "plain56": Published(13.5, 12.76, 13.07, "read off figure 6"),
        "resnet20": Published(8.75, 8.00, 8.04),
        "resnet32": Published(7.51, 7.51, 7.79),
        "resnet44": Published(7.17, 7.38, 7.51),
        "resnet56": Published(6.97, 7.33, 7.46),
        "resnet110": Published(6.43, None, None, "best of 5 runs, mean 6.61", paper_mean=6.61),
        "resnet1202": Published(7.93, None, None),
    }
)


def published_notes() -> str:
    """Return what else there is to know of the paper's numbers, such as "plain20, plain32: read off figure 6"."""
    names: dict[str, list[str]] = {}
    for name, published in PUBLISHED.items():
        if published.note:
            names.setdefault(published.note, []).append(name)
    return "; ".join(f"{', '.join(group)}: {note}" for note, group in names.items())
