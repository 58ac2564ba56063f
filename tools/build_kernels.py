"""Compile all kernels that work on this machine, on all its cores at once.

The tests compile what they need too, but then one process compiles while another waits for the same kernels.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from deepres.backends.fused.build import PRECISION_FLAGS, SIZES, KernelsUnavailable, load_kernels, why_no_tiles
from deepres.backends.machine import num_cores


def build(variant: tuple[str, int, str]) -> None:
    """Compile one variant, unless the cache has it or it does not work here."""
    with suppress(KernelsUnavailable):
        load_kernels(*variant)


def main() -> None:
    """Compile the variants, the slowest first."""
    all_tiles = [tiles for tiles in ("scalar", "amx", "none") if tiles != "amx" or why_no_tiles() is None]
    variants = [
        (precision, size, tiles)
        for tiles in all_tiles
        for precision in PRECISION_FLAGS
        for size in SIZES
        if tiles == "none" or precision == "bfloat16"
    ]
    with ThreadPoolExecutor(num_cores()) as pool:
        list(pool.map(build, variants))


if __name__ == "__main__":
    main()
