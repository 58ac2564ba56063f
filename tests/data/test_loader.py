from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepres.data.augment import Augmentation, Normalization, crop_and_flip
from deepres.data.loader import TrainStream, build_stream
from deepres.recipes.named import one_cycle
from deepres.recipes.recipe import LowResolution
from deepres.seeding import Stream, derive_generator, derive_seed

IDENTITY = Normalization(mean=torch.zeros(3, 1, 1), std=torch.full((3, 1, 1), 1 / 255))


def stream_of(num_images, batch_size, *, seed=0, pad=0, size=1):
    """A stream whose labels are the images' own numbers."""
    labels = torch.arange(num_images)
    images = (labels % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, size, size).contiguous()
    return TrainStream(images, labels, normalization=IDENTITY, batch_size=batch_size, pad=pad, seed=seed)


@settings(deadline=None, max_examples=50)
@given(num_images=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_epochs_follow_one_another_without_a_seam(num_images, batch_size, seed):
    stream = stream_of(num_images, batch_size, seed=seed)
    num_steps = 3 * num_images // batch_size + 2
    batches = [stream.batch(step) for step in range(num_steps)]
    assert all(labels.shape == (batch_size,) for _, labels in batches)
    assert all(images.shape == (batch_size, 3, 1, 1) for images, _ in batches)
    numbers = torch.cat([labels for _, labels in batches]).tolist()
    for start in range(0, len(numbers) - num_images + 1, num_images):  # every whole epoch
        assert sorted(numbers[start : start + num_images]) == list(range(num_images))


def test_images_go_with_their_labels():
    stream = stream_of(200, 64)
    for step in range(8):
        images, labels = stream.batch(step)
        assert torch.equal(images[:, 0, 0, 0].round().long(), labels)


def test_a_batch_depends_on_seed_and_step_alone():
    ordered, jumping, other = stream_of(100, 30, pad=2, size=4), stream_of(100, 30, pad=2, size=4), None
    expected = {step: ordered.batch(step) for step in range(12)}
    for step in (11, 0, 7, 3, 3, 10):
        images, labels = jumping.batch(step)
        assert torch.equal(images, expected[step][0])
        assert torch.equal(labels, expected[step][1])
    other = stream_of(100, 30, pad=2, size=4, seed=1)
    assert not torch.equal(other.batch(0)[1], expected[0][1])


def test_epochs_have_different_orders_and_choices():
    stream = stream_of(64, 64, pad=4, size=8)
    (first, first_labels), (second, second_labels) = stream.batch(0), stream.batch(1)
    assert not torch.equal(first_labels, second_labels)
    in_order = [images[labels.argsort()] for images, labels in ((first, first_labels), (second, second_labels))]
    assert not torch.equal(*in_order)


def test_images_are_normalized_before_they_are_padded():
    images = torch.full((8, 3, 4, 4), 200, dtype=torch.uint8)
    normalization = Normalization(mean=torch.full((3, 1, 1), 0.5), std=torch.full((3, 1, 1), 0.25))
    stream = TrainStream(
        images, torch.zeros(8, dtype=torch.long), normalization=normalization, batch_size=8, pad=4, seed=0
    )
    batch, _ = stream.batch(0)
    inside = (200 / 255 - 0.5) / 0.25
    assert batch.unique().tolist() == pytest.approx([0.0, inside])


def test_a_batch_is_normalization_then_crop_and_flip():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (10, 3, 8, 8), generator=generator, dtype=torch.uint8)
    normalization = Normalization.fit(images, "pixel_mean")
    stream = TrainStream(images, torch.arange(10), normalization=normalization, batch_size=10, pad=4, seed=9)
    batch, labels = stream.batch(0)
    plan = derive_generator(9, Stream.BATCHES, 0)
    order = torch.randperm(10, generator=plan)
    choices = Augmentation.draw(10, 4, plan)
    assert torch.equal(labels, order)
    assert torch.equal(batch, crop_and_flip(normalization(images[order]), choices, 4))


def test_alternating_flips_show_each_side_every_other_epoch():
    """Images whose left half is dark; an epoch has 32 of them in 4 batches."""
    images = torch.zeros(32, 3, 2, 2, dtype=torch.uint8)
    images[..., 1] = 255
    stream = TrainStream(
        images, torch.arange(32), normalization=IDENTITY, batch_size=8, pad=0, seed=5, flips="alternating"
    )
    flipped = torch.zeros(6, 32, dtype=torch.bool)
    for step in range(24):
        batch, labels = stream.batch(step)
        flipped[step // 4, labels] = batch[:, 0, 0, 0] > 0
    assert 5 < int(flipped[0].sum()) < 27  # which images begin flipped is a coin's choice
    for epoch in range(1, 6):
        assert torch.equal(flipped[epoch], ~flipped[epoch - 1])


def test_early_steps_show_windows_of_the_image_where_they_are_cropped():
    images = torch.arange(20 * 3 * 64).remainder(251).to(torch.uint8).view(20, 3, 8, 8)
    recipe = replace(
        one_cycle(), normalization="channel", batch_size=20, pad=2, low_resolutions=(LowResolution(16, until=0.5),)
    )
    plain = build_stream(images, torch.arange(20), replace(recipe, low_resolutions=()), seed=9)
    stream = build_stream(images, torch.arange(20), replace(recipe, small_images="cropped"), seed=9)
    assert stream.image_size(0) == 4
    (full, _), (found, labels) = plain.batch(0), stream.batch(0)
    assert torch.equal(found, full[:, :, 2:6, 2:6])
    windows = plain.normalization(images).unfold(2, 4, 1).unfold(3, 4, 1).flatten(2, 3)  # (20, 3, 25, 4, 4)
    for image, label in zip(found, labels, strict=True):
        shown = [(windows[label] == one[:, None]).all(dim=3).all(dim=2).all(dim=0) for one in (image, image.flip(-1))]
        assert torch.cat(shown).any()  # no pixel of the padding


def test_early_steps_show_the_same_crops_smaller():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8)
    arguments = {"normalization": IDENTITY, "batch_size": 5, "pad": 1, "seed": 9}
    plain = TrainStream(images, torch.arange(20), **arguments)
    stream = TrainStream(images, torch.arange(20), **arguments, image_size=lambda step: 4 if step < 2 else None)
    for step in range(4):
        (expected, numbers), (found, labels) = plain.batch(step), stream.batch(step)
        assert torch.equal(labels, numbers)
        if step < 2:
            assert found.shape == (5, 3, 4, 4)
            # A triangle over four pixels each way: 1, 3, 3, 1 eighths; away from the border.
            weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
            inner = torch.einsum("ncij,i,j->nc", expected[:, :, 1:5, 3:7], weights, weights)
            torch.testing.assert_close(found[:, :, 1, 2], inner)
        else:
            assert torch.equal(found, expected)


def test_streams_of_a_seed_are_independent():
    seeds = {derive_seed(seed, kind, index) for seed in range(5) for kind in Stream for index in range(5)}
    assert len(seeds) == 5 * len(Stream) * 5
