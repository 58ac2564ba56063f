from dataclasses import replace

import numpy as np
import pytest
import torch

from deepres.data.loader import DRAWN_TOGETHER, build_stream
from deepres.data.mixing import build_mixing, cutmix, cutout, distributions, draw_box
from deepres.errors import UserError
from deepres.recipes.named import one_cycle

B, C, STEPS = 64, 10, 100
OFF = {"cutout": None, "mixup": None, "cutmix": None, "label_smoothing": 0.0}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, 3, 32, 32, generator=generator), torch.randint(C, (B,), generator=generator)


def test_without_ingredients_there_is_nothing_to_do():
    assert build_mixing(one_cycle(), 0, C, STEPS) is None


@pytest.mark.parametrize("changes", [{"cutout": 8}, {"mixup": 0.2}, {"cutmix": 1.0}, {"label_smoothing": 0.1}])
def test_a_step_is_the_same_at_each_call_and_another_than_the_next(batch, changes):
    mixing = build_mixing(replace(one_cycle(), **changes), 3, C, STEPS)
    first, again, other = mixing(*batch, 5), mixing(*batch, 5), mixing(*batch, 6)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert "label_smoothing" in changes or not torch.equal(first[0], other[0])
    if first[1].ndim == 2:
        assert torch.allclose(first[1].sum(dim=1), torch.ones(B))


@pytest.mark.parametrize("changes", [{"cutout": 8, "mixup": 0.2}, {"cutmix": 1.0}, {"label_smoothing": 0.1}])
def test_what_is_drawn_ahead_is_what_the_step_would_draw(batch, changes):
    """At the ends of what is drawn together, and for the shares of two workers."""
    images = (batch[0] * 50 + 128).clamp(0, 255).byte()
    recipe = replace(one_cycle(), batch_size=13, **changes)
    mixed, plain = (build_stream(images, batch[1], each, seed=3) for each in (recipe, replace(recipe, **OFF)))
    mixing = build_mixing(recipe, 3, C, recipe.total_steps(len(images)))
    assert mixed.is_mixed_by_choice == ("label_smoothing" not in changes)
    for step in (0, DRAWN_TOGETHER - 1, DRAWN_TOGETHER):
        for share in (slice(None), slice(0, 6), slice(6, 13)):
            for made, expected in zip(mixed.batch(step, share), mixing(*plain.batch(step, share), step), strict=True):
                assert torch.equal(made, expected)


def test_smoothed_labels_are_szegedys(batch):
    targets = distributions(batch[1], C, 0.1)
    assert torch.allclose(targets[torch.arange(B), batch[1]], torch.tensor(0.91))
    assert targets.min() == pytest.approx(0.01)


def test_cutout_makes_a_square_zero_around_any_pixel():
    images = torch.ones(2000, 1, 32, 32)
    first = build_mixing(replace(one_cycle(), cutout=8), 0, C, STEPS).draw(0, 2000, 32).squares
    holes = cutout(images, 8, first) == 0
    areas = holes.sum(dim=(1, 2, 3))
    assert areas.max() == 64  # inside
    assert areas.min() == 16  # a corner: half of each side lies outside
    often = holes.float().mean(dim=0)[0]
    assert float(often[16, 16]) == pytest.approx(64 / 1024, rel=0.3)
    assert bool((often > 0).all())


def test_cutmix_shares_labels_as_it_shares_pixels():
    images = torch.arange(B).float()[:, None, None, None].expand(B, 3, 32, 32)
    box, share = draw_box(0.6, 32, np.random.default_rng(1))
    mixed = cutmix(images, torch.arange(B).flip(0), torch.tensor(box))
    own = (mixed == images).float().mean(dim=(1, 2, 3))
    assert torch.allclose(own, torch.full((B,), share))
    assert 0.6 <= share < 1  # at the edge less is cut out


@pytest.mark.parametrize("kind", [{"mixup": 1.0}, {"cutmix": 1.0}])
def test_mixing_stops_when_it_is_to(batch, kind):
    mixing = build_mixing(replace(one_cycle(), mixing_until=0.85, label_smoothing=0.1, **kind), 3, C, STEPS)
    assert not torch.equal(mixing(*batch, 84)[0], batch[0])
    images, targets = mixing(*batch, 85)
    assert torch.equal(images, batch[0])
    assert torch.equal(targets, distributions(batch[1], C, 0.1))


def test_when_mixing_stops_is_said_where_something_is_mixed():
    with pytest.raises(UserError, match="mixing_until is when mixup or cutmix stops: set one of them too"):
        replace(one_cycle(), mixing_until=0.5, cutout=8)


def test_mixup_mixes_images_and_labels_in_one_proportion(batch):
    images = torch.nn.functional.one_hot(batch[1], C).float()[:, :, None, None].expand(B, C, 4, 4)
    mixed, targets = build_mixing(replace(one_cycle(), mixup=1.0), 0, C, STEPS)(images, batch[1], 7)
    assert torch.allclose(mixed[:, :, 0, 0], targets, atol=1e-6)
    assert float(targets.max(dim=1).values.min()) < 0.99


def test_an_augmentation_of_ones_own_is_called_and_checked(batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "aug.py").write_text(
        "import torch\n"
        "def noise(images, labels, generator):\n"
        "    return images + torch.randn(images.shape, generator=generator), labels\n"
        "def wrong(images, labels, generator):\n    return images[:1], labels\n"
        "def labels(images, labels, generator):\n    return images, labels.float()\n"
        "def classes(images, labels, generator):\n    return images, labels + 1\n"
        "def fails(images, labels, generator):\n    return 1 / 0\n"
    )
    images, _ = build_mixing(replace(one_cycle(), augmentation="aug.py:noise"), 0, C, STEPS)(*batch, 0)
    assert float((images - batch[0]).std()) == pytest.approx(1, abs=0.05)
    for name, message in (
        ("wrong", r"returns images torch.float32 \(1, 3, 32, 32\): they must be float32 \(64, 3, 32, 32\)"),
        ("labels", r"returns labels torch.float32 \(64,\): they must be int64 \(64,\) or float32 \(64, 10\)"),
        ("classes", "returns the label 10: labels must be 0 to 9"),
        ("fails", r"fails \(ZeroDivisionError: division by zero\)"),
    ):
        with pytest.raises(UserError, match=message):
            build_mixing(replace(one_cycle(), augmentation=f"aug.py:{name}"), 0, C, STEPS)(*batch, 0)
