import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.data.cifar10 import Split
from deepres.data.splits import digest_of, stratified_split, stratified_subset
from deepres.errors import UserError


def test_the_papers_45k_5k(whole_cifar10):
    labels = whole_cifar10.train.labels
    train, val = stratified_split(labels, 0.1, seed=0)
    assert (len(train), len(val)) == (45_000, 5_000)
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32),
)
def test_split_is_a_stratified_partition(labels, fraction, seed):
    labels = np.array(labels)
    train, val = stratified_split(labels, fraction, seed)
    assert sorted([*train, *val]) == list(range(len(labels)))
    for label in np.unique(labels):
        members = (labels == label).sum()
        assert (labels[val] == label).sum() == round(members * fraction)


def test_split_depends_on_its_seed_alone():
    labels = np.arange(1000) % 10
    first, again, other = (stratified_split(labels, 0.1, seed)[1] for seed in (3, 3, 4))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2])
def test_fraction_out_of_range(fraction):
    with pytest.raises(UserError, match="not between 0 and 1"):
        stratified_split(np.zeros(10, dtype=np.int64), fraction, seed=0)


@given(labels=st.lists(st.integers(0, 4), min_size=40, max_size=200), fractions=st.tuples(*[st.floats(0.2, 1)] * 2))
def test_subsets_are_stratified_and_nested(labels, fractions):
    labels = np.array(labels)
    smaller, larger = (set(stratified_subset(labels, fraction).tolist()) for fraction in sorted(fractions))
    assert smaller <= larger
    for label in np.unique(labels):
        of_class = set(np.flatnonzero(labels == label).tolist())
        assert len(larger & of_class) == round(len(of_class) * max(fractions))


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_fraction_of_a_subset_out_of_range(fraction):
    with pytest.raises(UserError, match="is not above 0 and at most 1"):
        stratified_subset(np.arange(100) % 10, fraction)


def test_a_fraction_that_leaves_nothing():
    with pytest.raises(UserError, match=r"fraction 0\.001 of 100 training images is none: give a larger one"):
        stratified_subset(np.arange(100) % 10, 0.001)


def test_a_digest_depends_on_pixels_labels_and_order():
    images, labels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 3, 2, 2), np.array([0, 1, 2, 3])
    brighter, others = images.copy(), labels.copy()
    brighter[3, 2, 1, 1] += 1
    others[3] = 0
    splits = [(images, labels), (brighter, labels), (images, others), (images[::-1], labels[::-1])]
    digests = [digest_of(Split(*split)) for split in splits]
    assert len(set(digests)) == len(digests)
    assert digest_of(Split(np.asfortranarray(images), labels.astype(np.int32))) == digests[0]
