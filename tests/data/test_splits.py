import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepres.data.cifar10 import load_cifar10
from deepres.data.splits import stratified_split
from deepres.errors import UserError


def test_the_papers_45k_5k(cifar10_dir):
    labels = load_cifar10(cifar10_dir).train.labels
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
