"""Speed of Muon's steps on a CPU: by torch and by the kernel, and by torch where filters have stopped learning.

    python benchmarks/muon_speed.py

The first table has whole steps of the convolutions of nets. The second has the orthogonalization by torch with all
entries kept, and with the negligible left out: a filter that gets no gradient any more keeps a momentum that decays
into denormal numbers, with which a processor multiplies many times more slowly. Matrices of the shapes of ResNet-20's
filter banks, of which some rows hold such numbers, are orthogonalized either way. The sides take turns; the tables
have medians of milliseconds and of ratios.
"""

import argparse
import sys
from functools import partial

import torch
from turns import in_turns

from deepres.backends.device import describe_device, limit_threads, native_precisions
from deepres.models import build_model
from deepres.recipes.named import fast
from deepres.training.fast_muon import FastMuon
from deepres.training.muon import NEGLIGIBLE, orthogonalize
from deepres.training.optimizer import Optimizer
from deepres.training.optimizers import build_optimizers

SHAPES = ((7, 16, 144), (1, 32, 144), (5, 32, 288), (1, 64, 288), (5, 64, 576))  # banks, filters, weights of a filter
DENORMAL = 1e-42
CPU = torch.device("cpu")


def stacks(dead: float) -> list[torch.Tensor]:
    """Return matrices of random numbers, of which a share of the rows is denormal."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(*shape, generator=generator) for shape in SHAPES]
    for stack in made:
        stack[:, : round(dead * stack.shape[1])] = DENORMAL
    return made


def orthogonalize_all(made: list[torch.Tensor], negligible: float) -> None:
    """Orthogonalize all matrices."""
    for stack in made:
        orthogonalize(stack, negligible)


def muon_of(name: str, kernels: str | None) -> Optimizer:
    """Return Muon of a net with gradients."""
    torch.manual_seed(0)
    model = build_model(name)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = build_optimizers(fast(), model, kernels=kernels)[0]
    if kernels is not None and not isinstance(optimizer, FastMuon):
        sys.exit(f"there is no kernel for Muon's steps of {name} here")
    optimizer.set_rate(0.1, 0.1)
    return optimizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dead", nargs="+", type=float, default=[0.0, 0.01, 0.05, 0.2], help="shares of the filters")
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=5, help="calls of a round")
    arguments = parser.parse_args()
    limit_threads()
    print(describe_device(CPU))
    print(f"{'a step':26}{'torch, ms':>14}{'kernel, ms':>14}{'ratio':>8}")
    for name in arguments.models:
        by_torch, by_kernel = (muon_of(name, kernels).step for kernels in (None, native_precisions(CPU)[-1]))
        before, after, ratio = in_turns(by_torch, by_kernel, arguments.rounds, arguments.times)
        print(f"{name:26}{before:>14.2f}{after:>14.2f}{ratio:>7.1f}x")
    print(f"{'filters without gradient':26}{'all kept, ms':>14}{'left out, ms':>14}{'ratio':>8}")
    for dead in arguments.dead:
        made = stacks(dead)
        all_kept, left_out = (partial(orthogonalize_all, made, negligible) for negligible in (0.0, NEGLIGIBLE))
        before, after, ratio = in_turns(all_kept, left_out, arguments.rounds, arguments.times)
        print(f"{dead:<26.0%}{before:>14.2f}{after:>14.2f}{ratio:>7.1f}x")


if __name__ == "__main__":
    main()
