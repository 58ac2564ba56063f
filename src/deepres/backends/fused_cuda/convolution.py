"""3x3 convolutions and their gradients as Triton kernels, on maps whose channels lie innermost.

The sums for the batch normalization behind a convolution are made on its way out, so that they cost no pass over
memory; and the same in the backward pass. Normalization and ReLU are passes of their own: a convolution reads each
value nine times and would apply them as often, and GPUs are busier with its instructions than with its memory.

A program computes the output of a tile of pixels. Sums over all pixels are left as one number for each tile, which
`deepres.backends.fused_cuda.normalization` adds in a fixed order. There are no atomic additions, so the same inputs
give the same bits each time.

Arguments: names with `_ptr` are tensors of the shape that stands beside them, B images of S x S pixels in C channels;
names in capitals are known when a kernel is compiled. A tensor that is None leaves out what it is needed for.
"""

import triton
import triton.language as tl


@triton.jit
def conv3x3_forward(
    input_ptr,  # (B, IN_SIZE, IN_SIZE, IN_CHANNELS)
    weight_ptr,  # (OUT_CHANNELS, 3, 3, IN_CHANNELS)
    output_ptr,  # (B, OUT_SIZE, OUT_SIZE, OUT_CHANNELS)
    sums_ptr,  # (2, OUT_CHANNELS, tiles) or None: of each tile the sum of outputs, and of squares around their mean
    num_pixels,  # B * OUT_SIZE * OUT_SIZE
    IN_SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,  # pixels of a tile
):
    """Convolve with padding 1 and stride STRIDE."""
    in_channels = tl.arange(0, IN_CHANNELS if IN_CHANNELS > 16 else 16)  # matrix products take 16 at least
    out_channels = tl.arange(0, OUT_CHANNELS)
    pixels = tl.program_id(0) * TILE + tl.arange(0, TILE)
    image = pixels // (OUT_SIZE * OUT_SIZE)
    y = pixels // OUT_SIZE % OUT_SIZE * STRIDE - 1
    x = pixels % OUT_SIZE * STRIDE - 1

    output = tl.zeros((TILE, OUT_CHANNELS), tl.float32)
    for tap in range(9):
        values = _load_values(
            input_ptr, pixels < num_pixels, image, y + tap // 3, x + tap % 3, in_channels, IN_SIZE, IN_CHANNELS
        )
        at = (out_channels[None, :] * 9 + tap) * IN_CHANNELS + in_channels[:, None]
        weight = tl.load(weight_ptr + at, mask=in_channels[:, None] < IN_CHANNELS, other=0.0)
        output = tl.dot(values, weight, output, input_precision="ieee")

    real = (pixels < num_pixels)[:, None]
    at = pixels[:, None] * OUT_CHANNELS + out_channels[None, :]
    tl.store(output_ptr + at, output.to(output_ptr.dtype.element_ty), mask=real)
    if sums_ptr is not None:
        count = tl.minimum(num_pixels - tl.program_id(0) * TILE, TILE)
        total = tl.sum(output, 0)  # outputs beyond the last pixel are 0
        deviation = tl.where(real, output - (total / count)[None, :], 0.0)
        store_sums(sums_ptr, total, tl.sum(deviation * deviation, 0), out_channels, OUT_CHANNELS)


@triton.jit
def conv3x3_weight_gradient(
    input_ptr,  # (B, IN_SIZE, IN_SIZE, IN_CHANNELS)
    output_gradient_ptr,  # (B, OUT_SIZE, OUT_SIZE, OUT_CHANNELS)
    parts_ptr,  # (parts, OUT_CHANNELS, 3, 3, IN_CHANNELS), float32
    num_pixels,  # B * OUT_SIZE * OUT_SIZE
    IN_SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,  # of a part
):
    """Sum the gradient of a row of taps over a part of the pixels.

    The first index of a program is its part, the second its row of taps.
    """
    part = tl.program_id(0)
    row = tl.program_id(1)
    in_channels = tl.arange(0, IN_CHANNELS if IN_CHANNELS > 16 else 16)
    out_channels = tl.arange(0, OUT_CHANNELS)

    left = tl.zeros((OUT_CHANNELS, in_channels.shape[0]), tl.float32)
    middle = tl.zeros((OUT_CHANNELS, in_channels.shape[0]), tl.float32)
    right = tl.zeros((OUT_CHANNELS, in_channels.shape[0]), tl.float32)
    for i in range(TILES):
        pixels = (part * TILES + i) * TILE + tl.arange(0, TILE)
        real = pixels < num_pixels
        at = pixels[:, None] * OUT_CHANNELS + out_channels[None, :]
        gradient = tl.trans(tl.load(output_gradient_ptr + at, mask=real[:, None], other=0.0))

        image = pixels // (OUT_SIZE * OUT_SIZE)
        y = pixels // OUT_SIZE % OUT_SIZE * STRIDE - 1 + row
        x = pixels % OUT_SIZE * STRIDE - 1
        values = _load_values(input_ptr, real, image, y, x, in_channels, IN_SIZE, IN_CHANNELS)
        left = tl.dot(gradient, values, left, input_precision="ieee")
        values = _load_values(input_ptr, real, image, y, x + 1, in_channels, IN_SIZE, IN_CHANNELS)
        middle = tl.dot(gradient, values, middle, input_precision="ieee")
        values = _load_values(input_ptr, real, image, y, x + 2, in_channels, IN_SIZE, IN_CHANNELS)
        right = tl.dot(gradient, values, right, input_precision="ieee")

    at = ((part * OUT_CHANNELS + out_channels[:, None]) * 9 + row * 3) * IN_CHANNELS + in_channels[None, :]
    real = in_channels[None, :] < IN_CHANNELS
    tl.store(parts_ptr + at, left, mask=real)
    tl.store(parts_ptr + at + IN_CHANNELS, middle, mask=real)
    tl.store(parts_ptr + at + 2 * IN_CHANNELS, right, mask=real)


@triton.jit
def conv3x3_input_gradient(
    output_gradient_ptr,  # (B, OUT_SIZE, OUT_SIZE, OUT_CHANNELS)
    weight_ptr,  # (OUT_CHANNELS, 3, 3, IN_CHANNELS)
    shortcut_gradient_ptr,  # (B, OUT_SIZE, OUT_SIZE, OUT_CHANNELS) or None: of what a shortcut has made of the input
    values_ptr,  # (B, IN_SIZE, IN_SIZE, IN_CHANNELS): the input
    previous_ptr,  # (B, IN_SIZE, IN_SIZE, IN_CHANNELS): the convolution's output that the input was made from
    mean_ptr,  # (IN_CHANNELS,): of that output's batch normalization
    inverse_std_ptr,  # (IN_CHANNELS,)
    gradient_ptr,  # (B, IN_SIZE, IN_SIZE, IN_CHANNELS): behind that batch normalization
    sums_ptr,  # (2, IN_CHANNELS, programs): of each the sum of gradients, and that of gradient * normalized output
    num_pixels,  # B * IN_SIZE * IN_SIZE
    IN_SIZE: tl.constexpr,
    OUT_SIZE: tl.constexpr,
    IN_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute the gradient of the input, add the shortcut's, and take it through the ReLU before.

    Where the stride is 2, a program computes pixels of even or odd rows and of even or odd columns, whose outputs have
    the same taps, four at most: a program in four begins at an even row and column.
    """
    in_channels = tl.arange(0, IN_CHANNELS)
    out_channels = tl.arange(0, OUT_CHANNELS)
    odd = tl.program_id(0) % (STRIDE * STRIDE)
    odd_row = odd // STRIDE
    odd_column = odd % STRIDE
    corners = tl.program_id(0) // (STRIDE * STRIDE) * TILE + tl.arange(0, TILE)  # of squares of stride x stride
    real = corners < num_pixels // (STRIDE * STRIDE)
    image = corners // (OUT_SIZE * OUT_SIZE)
    corner_y = corners // OUT_SIZE % OUT_SIZE
    corner_x = corners % OUT_SIZE
    pixels = corners
    if STRIDE != 1:
        pixels = (image * IN_SIZE + corner_y * STRIDE + odd_row) * IN_SIZE + corner_x * STRIDE + odd_column

    gradient = tl.zeros((TILE, IN_CHANNELS), tl.float32)
    for tap in range(9):
        # The output whose tap this pixel is.
        down = odd_row + 1 - tap // 3
        right = odd_column + 1 - tap % 3
        if STRIDE == 1 or (down % 2 == 0 and right % 2 == 0):
            out_y = corner_y + down // STRIDE
            out_x = corner_x + right // STRIDE
            there = real & (out_y >= 0) & (out_y < OUT_SIZE) & (out_x >= 0) & (out_x < OUT_SIZE)
            at = ((image * OUT_SIZE + out_y) * OUT_SIZE + out_x)[:, None] * OUT_CHANNELS + out_channels[None, :]
            output_gradient = tl.load(output_gradient_ptr + at, mask=there[:, None], other=0.0)
            weight = tl.load(weight_ptr + (out_channels[:, None] * 9 + tap) * IN_CHANNELS + in_channels[None, :])
            gradient = tl.dot(output_gradient, weight, gradient, input_precision="ieee")

    at = pixels[:, None] * IN_CHANNELS + in_channels[None, :]
    if shortcut_gradient_ptr is not None:  # where the stride is 2, every other pixel went into the first channels
        corner_at = corners[:, None] * OUT_CHANNELS + in_channels[None, :]
        shortcut = tl.load(shortcut_gradient_ptr + corner_at, mask=(real & (odd == 0))[:, None], other=0.0)
        gradient += shortcut.to(tl.float32)
    previous = tl.load(previous_ptr + at, mask=real[:, None], other=0.0).to(tl.float32)
    passes = tl.load(values_ptr + at, mask=real[:, None], other=0.0) > 0
    store_gradient(
        gradient_ptr,
        sums_ptr,
        mean_ptr,
        inverse_std_ptr,
        tl.where(passes, gradient, 0.0),
        previous,
        pixels,
        real,
        in_channels,
        IN_CHANNELS,
    )


@triton.jit
def store_gradient(
    gradient_ptr, sums_ptr, mean_ptr, inverse_std_ptr, gradient, output, pixels, real, channels, CHANNELS: tl.constexpr
):
    """Store a tile of the gradient behind a batch normalization, and the sums that its own gradients are made from.

    Args: `gradient` and `output`, of the convolution before it: (pixels, channels), 0 where a pixel is not `real`.
    """
    at = pixels[:, None] * CHANNELS + channels[None, :]
    tl.store(gradient_ptr + at, gradient.to(gradient_ptr.dtype.element_ty), mask=real[:, None])
    mean = tl.load(mean_ptr + channels)
    inverse_std = tl.load(inverse_std_ptr + channels)
    products = gradient * ((output - mean[None, :]) * inverse_std[None, :])
    store_sums(sums_ptr, tl.sum(gradient, 0), tl.sum(products, 0), channels, CHANNELS)


@triton.jit
def store_sums(sums_ptr, first, second, channels, CHANNELS: tl.constexpr):
    """Store two sums of this program's tile: (2, CHANNELS, tiles)."""
    at = channels * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums_ptr + at, first)
    tl.store(sums_ptr + CHANNELS * tl.num_programs(0) + at, second)


@triton.jit
def _load_values(input_ptr, real, image, y, x, channels, SIZE: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the input's values at (image, y, x), (pixels, channels): 0 beyond its border and beyond its channels."""
    there = (real & (y >= 0) & (y < SIZE) & (x >= 0) & (x < SIZE))[:, None]
    if CHANNELS < 16:
        there = there & (channels < CHANNELS)[None, :]
    at = ((image * SIZE + y) * SIZE + x)[:, None] * CHANNELS + channels[None, :]
    return tl.load(input_ptr + at, mask=there, other=0.0)
