"""Images that a kernel makes, against those that torch makes."""

from dataclasses import replace

import pytest
import torch
from fused_variants import ON_X86, needs_float32

from deepres.backends.fused.build import KernelsUnavailable
from deepres.backends.fused.images import ImageMaker, resampling
from deepres.data.augment import shrink
from deepres.data.loader import build_stream
from deepres.recipes.named import fast as fast_recipe
from deepres.recipes.named import paper
from deepres.training.fast_images import FastImages, use_fast_images
from deepres.training.trainer import Trainer

CPU = torch.device("cpu")
SIZES = (None, 24, 16)  # of 24 rows 24 is all of them

pytestmark = needs_float32


def stream_of(recipe, rows=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, rows, rows), dtype=torch.uint8, generator=generator)
    return build_stream(images, torch.randint(10, (50,), generator=generator), replace(recipe, batch_size=40), seed=3)


def fast_images(recipe, rows=32):
    """A stream whose images the kernel makes, and what makes them."""
    stream = stream_of(recipe, rows)
    use_fast_images(stream, "float32")
    assert isinstance(stream.make_images, FastImages)
    return stream, stream.make_images


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pad": 0},
        {"pad": 31, "padding": "zeros"},
        {"pad": 31, "padding": "reflection"},
        {"normalization": "channel"},
        {"normalization": "channel", "padding": "reflection", "flips": "none"},
    ],
)
@pytest.mark.parametrize("rows", [32, 24])
def test_they_have_the_bits_of_torchs(changes, rows):
    recipe = replace(paper(), **{**changes, "pad": min(changes.get("pad", 4), rows - 1)})
    torchs, (kernels, fast) = stream_of(recipe, rows), fast_images(recipe, rows)
    for step in range(3):  # the second straddles epochs
        for size in SIZES:
            expected = torchs.make_images(torchs.choose(step), size)
            assert torch.equal(kernels.make_images(kernels.choose(step), size), expected)
            if ON_X86 or size is None:  # by itself: torch takes its place where it makes others
                assert torch.equal(fast._kernels(kernels.choose(step), size), expected)
    assert fast.agrees == dict.fromkeys(SIZES, True) or not ON_X86
    share = slice(7, 19)
    assert torch.equal(kernels.batch(1, share)[0], torchs.batch(1, share)[0])


def test_what_differs_is_left_to_torch():
    stream, torchs = stream_of(fast_recipe()), stream_of(fast_recipe())
    normalization = stream.normalization
    other = ImageMaker(stream.images, normalization.mean + 1, normalization.std, stream.pad, stream.padding, "float32")
    fast = FastImages(stream, other)
    choice = stream.choose(0)
    for size in SIZES:
        assert torch.equal(fast(choice, size), torchs.make_images(choice, size))
    assert fast.agrees == dict.fromkeys(SIZES, False)


@pytest.mark.parametrize(("small_images", "rows", "size"), [("cropped", 32, 24), ("resampled", 16, 24)])
def test_images_that_are_cropped_or_enlarged_are_torchs(small_images, rows, size):
    recipe = replace(fast_recipe(), small_images=small_images)
    torchs, (kernels, fast) = stream_of(recipe, rows), fast_images(recipe, rows)
    choice = kernels.choose(0)
    assert torch.equal(kernels.make_images(choice, size), torchs.make_images(choice, size))
    assert fast.agrees == {size: False}
    if size > rows:
        with pytest.raises(ValueError, match="size is 24: images have 16 rows"):
            fast._kernels(choice, size)


@pytest.mark.parametrize(
    ("images", "deviations", "pad"),
    [((3, 28, 28), 3, 4), ((1, 32, 32), 1, 4), ((3, 32, 32), 3, 32), ((3, 32, 32), 3 * 32 * 32, 4)],
)
def test_there_is_not_a_kernel_for_everything(images, deviations, pad):
    std = torch.ones(3, 32, 32) if deviations > 3 else torch.ones(images[0], 1, 1)
    with pytest.raises(KernelsUnavailable):
        ImageMaker(torch.zeros(2, *images, dtype=torch.uint8), torch.zeros_like(std), std, pad, "zeros", "float32")


@pytest.mark.parametrize(("rows", "size"), [(32, 24), (32, 16), (24, 18), (32, 31), (32, 1)])
def test_an_image_is_resampled_by_a_few_weights(rows, size):
    firsts, weights = resampling(rows, size)
    line = torch.randn(rows, dtype=torch.float64)
    inputs = firsts + torch.arange(len(weights))[:, None]
    expected = shrink(line.expand(1, 1, rows, rows), size)[0, 0, 0]
    torch.testing.assert_close((line[inputs] * weights).sum(dim=0), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("backend", "fast_ones"), [("fused", True), ("eager", False)])
def test_a_trainer_takes_them_with_the_fused_kernels(backend, fast_ones):
    recipe = replace(fast_recipe(), steps=3, epochs=None)
    trainer = Trainer(
        name="resnet20",
        option="A",
        recipe=recipe,
        seed=3,
        stream=stream_of(recipe),
        total_steps=3,
        device=CPU,
        precision="float32",
        backend=backend,
        notice=pytest.fail,
    )
    assert isinstance(trainer.stream.make_images, FastImages) == fast_ones
    trainer.use_stream(other := stream_of(recipe))
    assert isinstance(other.make_images, FastImages) == fast_ones
