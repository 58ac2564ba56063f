"""The record of the images of a run."""

from deepres.data.cifar10 import load_cifar10
from deepres.data.splits import digest_of
from deepres.recipes.recipe import SPLITS
from deepres.runs.image_sets import CIFAR10_TEST, CIFAR10_TRAIN, ImageSet


def test_the_record_of_cifar10_is_that_of_its_images(cifar10_dir):
    data = load_cifar10(cifar10_dir)
    assert ImageSet(len(data.test.labels), digest_of(data.test)) == CIFAR10_TEST
    assert ImageSet(len(data.train.labels), digest_of(data.train)) == CIFAR10_TRAIN["50k"][0]
    assert {split: train.images for split, (train, _) in CIFAR10_TRAIN.items()} == SPLITS
