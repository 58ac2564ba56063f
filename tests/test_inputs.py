"""What counts as pixels and as labels."""

import numpy as np
import pytest
import torch

from deepres.errors import UserError
from deepres.inputs import as_images, check_labels, check_pixels

RIGHT = [3, 0, 2]


@pytest.mark.parametrize(
    "labels",
    [
        RIGHT,
        tuple(RIGHT),
        np.array(RIGHT),
        np.array(RIGHT, np.uint8),
        np.array(RIGHT, np.float64),
        np.array(RIGHT)[:, None],  # as Keras gives them
        torch.tensor(RIGHT),
        torch.tensor(RIGHT)[:, None],
        torch.tensor(RIGHT, dtype=torch.float32, requires_grad=True),
    ],
)
def test_labels_of_every_kind(labels):
    checked = check_labels(labels, 3, 4)
    assert checked.tolist() == RIGHT
    assert checked.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (RIGHT[:1], r"shape \(1,\)"),
        (np.array(RIGHT)[None], r"shape \(1, 3\)"),
        (np.eye(4)[RIGHT], r"one-hot or probabilities, take \.argmax\(axis=1\)"),
        (np.array(["cat", "dog", "cat"]), r"names: give the index of each in the classifier's \.classes"),
        ([1, 2, 4], "values from 1 to 4: subtract 1, as classes count from 0"),
        ([0, 2, 4], r"values from 0 to 4$"),
        ([-1, 0, 1], "values from -1 to 1"),
        ([0.5, 1, 2], "numbers that are not whole"),
        ([float("nan"), 1, 2], "numbers that are not whole"),
        ([float("inf"), 1, 2], "values from 1 to inf"),
        ([True, False, True], "list of bool"),
        ([[1], [2, 3], [1]], "no array of numbers"),
        ([None, 1, 2], "list of object"),
        (7, r"shape \(\)"),
        ({0: 1}, "dict of object"),
        (np.array(RIGHT, complex), "of complex128"),
    ],
)
def test_what_is_no_labels_raises(labels, message):
    with pytest.raises(UserError, match=message):
        check_labels(labels, 3, 4)


@pytest.mark.parametrize(
    ("low", "high", "hint"),
    [
        (-0.1, 1.1, r"limit them with \.clamp\(0, 1\)"),
        (0.0, 1.01, r"limit them with \.clamp\(0, 1\)"),
        (0.0, 255.0, "divide by 255, or give uint8"),
        (-12.0, 270.0, r"limit them with \.clamp\(0, 255\), and divide by 255"),
        (0.0, 65535.0, "divide by 65535"),
        (-1.0, 1.0, r"scaled to \[-1, 1\], take \(pixels \+ 1\) / 2"),
        (-2.1, 2.6, r"not normalised yet, or take pixels \* std \+ mean"),
        (float("nan"), 1.0, "not finite"),
        (0.0, float("inf"), "not finite"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_wrong_range_has_its_own_hint(low, high, hint, dtype):
    pixels = torch.full((2, 3, 32, 32), 0.5, dtype=dtype)
    pixels[0, 0, 0, 0], pixels[1, 2, 31, 31] = low, high
    with pytest.raises(UserError, match=hint):
        check_pixels(pixels)


def test_roundings_out_of_the_range_pass():
    for value in (1 + 1e-6, -1e-6):
        check_pixels(torch.full((1, 3, 32, 32), value))


def test_arrays_of_every_layout():
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    images.setflags(write=False)
    for array in (images, images[:, ::-1], images[::2], np.asfortranarray(images)):
        assert as_images(array).numpy().tolist() == array.tolist()
    scaled = (images / 255).astype(">f4")
    assert torch.allclose(as_images(scaled), torch.from_numpy(images / 255).float())


@pytest.mark.parametrize(
    "pixels",
    [
        None,
        "cat.png",
        [[1]],
        3.0,
        np.array(["a"]),
        np.array([None]),
        np.zeros((1, 3, 32, 32), complex),
        np.zeros((1, 3, 32, 32), np.longdouble),
        np.zeros((1, 3, 32, 32), np.int64),
        np.zeros((1, 3, 32, 32), np.uint16),
        np.zeros((1, 3, 32, 32), bool),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 4, 32, 32), np.uint8),
        np.zeros((), np.uint8),
        torch.zeros(1, 3, 32, 32).to_sparse(),
        torch.zeros(1, 3, 32, 32, dtype=torch.complex64),
    ],
)
def test_what_is_no_pixels_raises(pixels):
    with pytest.raises(UserError, match=r"expected pixels of shape \(N, 3, 32, 32\), uint8 or float in \[0, 1\], but"):
        as_images(pixels)
