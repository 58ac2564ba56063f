"""Speed of making training images on a CPU: torch against the kernel that does it in one pass, measured in one run.

    python benchmarks/image_speed.py

A mini-batch is chosen, normalized, cropped, flipped and made smaller, as the recipe does it, of the images of
CIFAR-10. Both sides make the same bits. They take turns, round after round; the table has medians of milliseconds and
of ratios.
"""

import argparse
import os
from functools import partial

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `deepres` does

import torch
from turns import in_turns

from deepres.backends.device import describe_device, limit_threads, native_precisions
from deepres.backends.memory import keep_freed_memory
from deepres.data.cifar10 import load_cifar10
from deepres.data.loader import build_stream
from deepres.recipes.named import get_recipe
from deepres.training.fast_images import use_fast_images

CPU = torch.device("cpu")
STEP = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["paper", "fast"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=30, help="calls of a round")
    arguments = parser.parse_args()
    keep_freed_memory()
    limit_threads()
    train = load_cifar10().train
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    print(describe_device(CPU))
    print(f"{'recipe':10}{'images':>18}{'torch, ms':>11}{'kernel, ms':>12}{'ratio':>8}")
    for name in arguments.recipes:
        recipe = get_recipe(name)
        sizes = [None, *recipe.small_sizes]
        torchs, kernels = (build_stream(images, labels, recipe, seed=0) for _ in range(2))
        use_fast_images(kernels, native_precisions(CPU)[-1])
        choice = torchs.choose(STEP)
        for size in sizes:
            by_torch, by_kernel = (partial(stream.make_images, choice, size) for stream in (torchs, kernels))
            assert torch.equal(by_torch(), by_kernel())
            before, after, ratio = in_turns(by_torch, by_kernel, arguments.rounds, arguments.times)
            what = f"{recipe.batch_size} of {size or 32} x {size or 32}"
            print(f"{name:10}{what:>18}{before:>11.2f}{after:>12.2f}{ratio:>7.1f}x")


if __name__ == "__main__":
    main()
