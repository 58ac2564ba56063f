"""Batch normalization around the convolutions, residual sums and pooling as Triton kernels.

See `deepres.backends.fused_cuda.convolution` for what the arguments' names say.
"""

import triton
import triton.language as tl

from deepres.backends.fused_cuda.convolution import store_gradient


@triton.jit
def batch_statistics(
    sums_ptr,  # (2, channels, tiles): of each tile the sum of outputs, and of squares around their mean
    weight_ptr,  # (channels,), as all tensors but the counter
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    num_batches_ptr,  # a scalar, int64
    mean_ptr,
    inverse_std_ptr,
    scale_ptr,
    shift_ptr,
    num_tiles,
    num_pixels,
    momentum,
    eps,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,  # channels of a program
    CHUNK: tl.constexpr,  # tiles that are added at once
    CHUNKS: tl.constexpr,
):
    """Make a batch's statistics of its tiles', and from them normalization and running statistics."""
    channels = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    total = tl.zeros((GROUP, CHUNK), tl.float32)
    for i in range(CHUNKS):
        total += _load_sums(sums_ptr, channels, i, num_tiles, CHUNK)
    mean = tl.sum(total, 1) / num_pixels

    squares = tl.zeros((GROUP, CHUNK), tl.float32)
    for i in range(CHUNKS):
        tile = i * CHUNK + tl.arange(0, CHUNK)
        count = tl.maximum(tl.minimum(num_pixels - tile * TILE, TILE), 1)[None, :]
        distance = _load_sums(sums_ptr, channels, i, num_tiles, CHUNK) / count - mean[:, None]
        around_mean = _load_sums(sums_ptr + CHANNELS * num_tiles, channels, i, num_tiles, CHUNK)
        squares += tl.where((tile < num_tiles)[None, :], around_mean + count * distance * distance, 0.0)
    sum_of_squares = tl.sum(squares, 1)

    running_mean = tl.load(running_mean_ptr + channels)
    tl.store(running_mean_ptr + channels, running_mean + momentum * (mean - running_mean))
    running_var = tl.load(running_var_ptr + channels)
    unbiased = sum_of_squares / (num_pixels - 1)
    tl.store(running_var_ptr + channels, running_var + momentum * (unbiased - running_var))
    if tl.program_id(0) == 0:
        tl.store(num_batches_ptr, tl.load(num_batches_ptr) + 1)

    inverse_std = 1 / tl.sqrt_rn(sum_of_squares / num_pixels + eps)
    scale = tl.load(weight_ptr + channels) * inverse_std
    tl.store(mean_ptr + channels, mean)
    tl.store(inverse_std_ptr + channels, inverse_std)
    tl.store(scale_ptr + channels, scale)
    tl.store(shift_ptr + channels, tl.load(bias_ptr + channels) - mean * scale)


@triton.jit
def _load_sums(sums_ptr, channels, chunk, num_tiles, CHUNK: tl.constexpr):
    """Return the sums of a chunk of tiles, (channels, CHUNK)."""
    tile = chunk * CHUNK + tl.arange(0, CHUNK)
    return tl.load(
        sums_ptr + channels[:, None] * num_tiles + tile[None, :], mask=(tile < num_tiles)[None, :], other=0.0
    )


@triton.jit
def running_normalization(
    weight_ptr, bias_ptr, running_mean_ptr, running_var_ptr, scale_ptr, shift_ptr, eps, CHANNELS: tl.constexpr
):
    """Make the normalization of evaluation mode; one program, all tensors (CHANNELS,)."""
    channels = tl.arange(0, CHANNELS)
    scale = tl.load(weight_ptr + channels) / tl.sqrt_rn(tl.load(running_var_ptr + channels) + eps)
    tl.store(scale_ptr + channels, scale)
    mean = tl.load(running_mean_ptr + channels)
    tl.store(shift_ptr + channels, tl.load(bias_ptr + channels) - mean * scale)


@triton.jit
def batch_gradients(
    sums_ptr,  # (2, channels, tiles): of each tile the sum of gradients, and that of gradient * normalized output
    weight_ptr,  # (channels,), as all that follow
    mean_ptr,
    inverse_std_ptr,
    weight_gradient_ptr,
    bias_gradient_ptr,
    a_ptr,  # the gradient of the convolution's output is a * gradient + b * output + c
    b_ptr,
    c_ptr,
    num_tiles,
    num_pixels,
    CHANNELS: tl.constexpr,
    GROUP: tl.constexpr,  # as above, as all that follow
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Compute the gradients of a batch normalization's parameters, and its own derivative."""
    channels = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    gradients = tl.zeros((GROUP, CHUNK), tl.float32)
    products = tl.zeros((GROUP, CHUNK), tl.float32)
    for i in range(CHUNKS):
        gradients += _load_sums(sums_ptr, channels, i, num_tiles, CHUNK)
        products += _load_sums(sums_ptr + CHANNELS * num_tiles, channels, i, num_tiles, CHUNK)
    bias_gradient = tl.sum(gradients, 1)
    weight_gradient = tl.sum(products, 1)
    tl.store(bias_gradient_ptr + channels, bias_gradient)
    tl.store(weight_gradient_ptr + channels, weight_gradient)

    inverse_std = tl.load(inverse_std_ptr + channels)
    a = tl.load(weight_ptr + channels) * inverse_std
    b = -a * inverse_std * weight_gradient / num_pixels
    tl.store(a_ptr + channels, a)
    tl.store(b_ptr + channels, b)
    tl.store(c_ptr + channels, -a * bias_gradient / num_pixels - b * tl.load(mean_ptr + channels))


@triton.jit
def residual_sum(
    output_ptr,  # (B, SIZE, SIZE, CHANNELS), of a convolution
    scale_ptr,  # (CHANNELS,)
    shift_ptr,  # (CHANNELS,)
    shortcut_ptr,  # (B, SIZE, SIZE, CHANNELS), (B, 2 SIZE, 2 SIZE, SHORTCUT_CHANNELS), or None
    values_ptr,  # (B, SIZE, SIZE, CHANNELS)
    num_pixels,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SHORTCUT_CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute ReLU(scale * output + shift + shortcut); a shortcut of other size is option A of section 3.3.

    That one takes every other pixel and has zeros in the channels that it lacks.
    """
    channels = tl.arange(0, CHANNELS)
    pixels = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = (pixels < num_pixels)[:, None]
    at = pixels[:, None] * CHANNELS + channels[None, :]
    scale = tl.load(scale_ptr + channels)[None, :]
    shift = tl.load(shift_ptr + channels)[None, :]
    values = tl.load(output_ptr + at, mask=real, other=0.0).to(tl.float32) * scale + shift
    if shortcut_ptr is not None:
        if SHORTCUT_CHANNELS == CHANNELS:
            shortcut = tl.load(shortcut_ptr + at, mask=real, other=0.0)
        else:
            corner = (pixels // SIZE * 2 * (2 * SIZE) + pixels % SIZE * 2)[:, None]  # rows of all images are counted
            corner_at = corner * SHORTCUT_CHANNELS + channels[None, :]
            shortcut = tl.load(
                shortcut_ptr + corner_at, mask=real & (channels < SHORTCUT_CHANNELS)[None, :], other=0.0
            )
        values += shortcut.to(tl.float32)
    values = tl.maximum(values, 0.0, propagate_nan=tl.PropagateNan.ALL)  # NaN stays NaN, so that a loss shows it
    tl.store(values_ptr + at, values.to(values_ptr.dtype.element_ty), mask=real)


@triton.jit
def output_gradient(
    gradient_ptr,  # (num_pixels, CHANNELS): behind the batch normalization of a convolution's output
    output_ptr,  # (num_pixels, CHANNELS)
    a_ptr,  # (CHANNELS,), as `batch_gradients` leaves them
    b_ptr,
    c_ptr,
    output_gradient_ptr,  # (num_pixels, CHANNELS)
    num_pixels,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Compute the gradient of the output itself, a * gradient + b * output + c."""
    channels = tl.arange(0, CHANNELS)
    pixels = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = (pixels < num_pixels)[:, None]
    at = pixels[:, None] * CHANNELS + channels[None, :]
    gradient = tl.load(gradient_ptr + at, mask=real, other=0.0).to(tl.float32)
    output = tl.load(output_ptr + at, mask=real, other=0.0).to(tl.float32)
    a, b, c = tl.load(a_ptr + channels), tl.load(b_ptr + channels), tl.load(c_ptr + channels)
    gradient = a[None, :] * gradient + (b[None, :] * output + c[None, :])
    tl.store(output_gradient_ptr + at, gradient.to(output_gradient_ptr.dtype.element_ty), mask=real)


@triton.jit
def pool_gradient(
    pooled_gradient_ptr,  # (B, CHANNELS), float32: of the mean over the pixels of an image
    values_ptr,  # (B, SIZE, SIZE, CHANNELS): what was pooled
    output_ptr,  # (B, SIZE, SIZE, CHANNELS), of the last convolution
    mean_ptr,  # (CHANNELS,)
    inverse_std_ptr,  # (CHANNELS,)
    gradient_ptr,  # (B, SIZE, SIZE, CHANNELS): behind the last batch normalization
    sums_ptr,  # (2, CHANNELS, tiles), as `conv3x3_input_gradient` leaves them
    num_pixels,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Take the gradient of the pooled features through pooling and ReLU."""
    channels = tl.arange(0, CHANNELS)
    pixels = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = pixels < num_pixels
    at = pixels[:, None] * CHANNELS + channels[None, :]
    image_at = (pixels // (SIZE * SIZE))[:, None] * CHANNELS + channels[None, :]
    gradient = tl.load(pooled_gradient_ptr + image_at, mask=real[:, None], other=0.0) / (SIZE * SIZE)
    passes = tl.load(values_ptr + at, mask=real[:, None], other=0.0) > 0
    output = tl.load(output_ptr + at, mask=real[:, None], other=0.0).to(tl.float32)
    store_gradient(
        gradient_ptr,
        sums_ptr,
        mean_ptr,
        inverse_std_ptr,
        tl.where(passes, gradient, 0.0),
        output,
        pixels,
        real,
        channels,
        CHANNELS,
    )
