"""The record of the images of a run."""

from deepres.data.splits import digest_of
from deepres.recipes.recipe import SPLITS
from deepres.runs.image_sets import CIFAR10_TEST, CIFAR10_TRAIN, ImageSet


def test_the_record_of_cifar10_is_that_of_its_images(whole_cifar10):
    assert ImageSet(len(whole_cifar10.test.labels), digest_of(whole_cifar10.test)) == CIFAR10_TEST
    assert ImageSet(len(whole_cifar10.train.labels), digest_of(whole_cifar10.train)) == CIFAR10_TRAIN["50k"][0]
    assert {split: train.images for split, (train, _) in CIFAR10_TRAIN.items()} == SPLITS
