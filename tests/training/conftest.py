"""Fixtures of the tests of training: few images, and a run on them from beginning to end."""

import pytest
from tiny_run import first_images
from tiny_training import CPU, config

from deepres.training.train import train


@pytest.fixture(scope="session")
def tiny_data(cifar10_dir):
    return first_images(cifar10_dir)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, tiny_data):
    path = tmp_path_factory.mktemp("uninterrupted")
    train(config(), tiny_data, path, device=CPU)
    return path


@pytest.fixture
def output(tmp_path_factory):
    """A file for what a forked process prints, beside the test's run directory."""
    return tmp_path_factory.mktemp("output") / "output.txt"
