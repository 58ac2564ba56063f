import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepres.data.augment import Augmentation, Normalization, crop_and_flip
from deepres.errors import UserError

# Training-set statistics of pixels / 255, as widely published.
MEAN = (0.49139968, 0.48215841, 0.44653091)
STD = (0.24703223, 0.24348513, 0.26158784)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def crop_and_flip_by_hand(image, row, column, flip, pad):
    """The definition, pixel by pixel: image (C, H, W)."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                y, x = i + row - pad, (width - 1 - j if flip else j) + column - pad
                out[c, i, j] = image[c, y, x] if 0 <= y < height and 0 <= x < width else 0
    return out


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    pad=st.integers(0, 4),
    seed=st.integers(0, 2**32),
)
def test_crop_and_flip_is_its_definition(shape, pad, seed):
    g = generator(seed)
    images = torch.randint(256, shape, generator=g, dtype=torch.uint8)
    choices = Augmentation.draw(shape[0], pad, g)
    before = images.clone()
    out = crop_and_flip(images, choices, pad)
    assert torch.equal(images, before)
    for i in range(shape[0]):
        row, column = choices.offsets[i].tolist()
        expected = crop_and_flip_by_hand(images[i].numpy(), row, column, bool(choices.flips[i]), pad)
        np.testing.assert_array_equal(out[i].numpy(), expected)


def test_every_offset_is_reached_equally_often():
    n = 81_000
    choices = Augmentation.draw(n, 4, generator())
    cells = choices.offsets[:, 0] * 9 + choices.offsets[:, 1]
    counts = torch.bincount(cells, minlength=81)
    assert len(counts) == 81
    assert counts.min() > 0
    chi_square = ((counts - n / 81) ** 2 / (n / 81)).sum().item()
    assert chi_square < 143  # 80 degrees of freedom: exceeded by chance once in 100,000 seeds
    assert abs(choices.flips.double().mean().item() - 0.5) < 5 * 0.5 / n**0.5


def test_centred_crop_is_the_image_and_flip_reverses_the_columns():
    images = torch.randn(3, 3, 32, 32, generator=generator())
    centre = Augmentation(torch.full((3, 2), 4), torch.tensor([False, True, False]))
    out = crop_and_flip(images, centre, 4)
    assert torch.equal(out[0], images[0])
    assert torch.equal(out[1], images[1].flip(-1))


def test_corner_crop_shows_the_padding():
    images = torch.ones(1, 3, 32, 32)
    out = crop_and_flip(images, Augmentation(torch.tensor([[0, 8]]), torch.tensor([False])), 4)
    assert not out[:, :, :4].any()
    assert not out[:, :, :, 28:].any()
    assert out[:, :, 4:, :28].all()


def test_reflected_padding_is_numpys():
    images = torch.randn(6, 3, 8, 8, generator=generator())
    choices = Augmentation.draw(6, 4, generator())
    out = crop_and_flip(images, choices, 4, "reflection")
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    for i in range(6):
        row, column = choices.offsets[i].tolist()
        crop = padded[i, :, row : row + 8, column : column + 8]
        np.testing.assert_array_equal(out[i].numpy(), crop[..., ::-1] if choices.flips[i] else crop)


def test_same_generator_state_same_choices():
    first, again, other = (Augmentation.draw(50, 4, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.offsets, again.offsets)
    assert torch.equal(first.flips, again.flips)
    assert not torch.equal(first.offsets, other.offsets)


@pytest.fixture(scope="module")
def train_images(whole_cifar10):
    return whole_cifar10.train.images


def test_channel_statistics_of_the_real_data(train_images):
    normalization = Normalization.fit(torch.from_numpy(train_images), "channel")
    assert normalization.mean.shape == normalization.std.shape == (3, 1, 1)
    assert normalization.mean.flatten().tolist() == pytest.approx(MEAN, abs=1e-7)
    assert normalization.std.flatten().tolist() == pytest.approx(STD, abs=1e-7)


def test_pixel_mean_of_the_real_data(train_images):
    normalization = Normalization.fit(torch.from_numpy(train_images), "pixel_mean")
    assert normalization.mean.shape == (3, 32, 32)
    np.testing.assert_allclose(normalization.mean, train_images.mean(axis=0) / 255, rtol=1e-6)
    assert torch.equal(normalization.std, torch.ones(3, 1, 1))
    assert normalization.mean.mean(dim=(1, 2)).tolist() == pytest.approx(MEAN, abs=1e-6)


@pytest.mark.parametrize("kind", ["channel", "pixel_mean"])
def test_normalized_training_images_are_centred(train_images, kind):
    images = torch.from_numpy(train_images[:2000])
    normalization = Normalization.fit(images, kind)
    out = normalization(images)
    assert out.dtype == torch.float32
    assert out.shape == images.shape
    expected = (images.numpy() / 255 - normalization.mean.numpy()) / normalization.std.numpy()
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    dims = (0, 2, 3) if kind == "channel" else (0,)
    assert out.mean(dim=dims).abs().max() < 1e-4
    if kind == "channel":
        np.testing.assert_allclose(out.std(dim=dims, correction=0).numpy(), np.ones(3), atol=1e-4)


def test_normalization_leaves_its_input_alone():
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8, generator=generator())
    before = images.clone()
    Normalization.fit(images, "channel")(images)
    assert torch.equal(images, before)


def test_unknown_normalization():
    with pytest.raises(UserError, match="unknown normalization 'imagenet': choose from pixel_mean, channel"):
        Normalization.fit(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "imagenet")
