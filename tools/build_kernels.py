"""Compile all kernels that work on this machine, on all its cores at once.

The tests compile what they need too, but then one process compiles while another waits for the same kernels.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from deepres.backends.fused.build import SIZES, KernelsUnavailable, load_kernels, why_no_tiles
from deepres.backends.machine import num_cores


def build(variant: tuple[str, int, str]) -> None:
    """Compile one variant, unless the cache has it or it does not work here."""
    with suppress(KernelsUnavailable):
        load_kernels(*variant)


def main() -> None:
    """Compile the variants, the slowest first."""
    bfloat16 = ("scalar", "amx", "vectors") if why_no_tiles() is None else ("scalar", "vectors")
    units = [*(("bfloat16", unit) for unit in bfloat16), ("float32", "narrow"), ("float32", "vectors")]
    variants = [(precision, size, unit) for precision, unit in units for size in SIZES]
    with ThreadPoolExecutor(num_cores()) as pool:
        list(pool.map(build, variants))


if __name__ == "__main__":
    main()
