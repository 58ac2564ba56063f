"""What the tests of single kernels share: tensors, torch's shapes, and the precision that a result must have."""

import torch

B = 5
DTYPES = [torch.float32, torch.bfloat16]
# Relative errors, of norms. What a kernel computes in float32 has FLOAT32. What it stores in bfloat16 is compared with
# float64 rounded as it is: the two differ in the few numbers that float32 puts on the other side of the middle between
# two of bfloat16's. A rounding to its 8 significant bits that is missing, or another one, makes 2**-9.4 on average.
FLOAT32 = 2e-6
STORED = {torch.float32: FLOAT32, torch.bfloat16: 2**-11}


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def stored(values, dtype):
    """Numbers in float64 as a kernel leaves them in a tensor, in float64 again."""
    return values.to(dtype).double() if dtype == torch.bfloat16 else values.double()


def planes(maps):
    """Maps with channels innermost as torch's convolutions take them, in float64."""
    return maps.double().permute(0, 3, 1, 2)


def maps(planes):
    return planes.permute(0, 2, 3, 1)


def relu(x):
    return x.clamp_min(0)


def tiles_of(pixels, tile):
    """Pixels (n, channels) as a list of tiles."""
    return [pixels[start : start + tile].double() for start in range(0, len(pixels), tile)]
