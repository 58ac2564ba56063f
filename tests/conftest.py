"""Fixtures that several tests share."""

import os
import sys
from itertools import chain, groupby, islice
from pathlib import Path

import platformdirs
import pytest
from command_line import CommandLine
from tiny_cifar10 import TinyCifar10
from tiny_run import first_images

from deepres.data import cifar10
from deepres.data.cifar10 import Cifar10, Split
from deepres.data.fetch import fetch_cifar10
from deepres.data.release import BIN_FOLDER, FILES

# One thread in each test process: several run at once, and their threads would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide the tests that are marked as long among the processes, each of which begins with its own.

    A process gets one of as many equal parts of the list (pytest-xdist, worksteal) and later takes over from the end
    of another's. So no long test is left for the end, when the other processes have nothing more to do.
    """
    long = [item for item in items if item.get_closest_marker("long")]
    others = iter([item for item in items if not item.get_closest_marker("long")])
    by_module = [list(module) for _, module in groupby(long, key=lambda item: item.path)]
    num_processes, num_left, parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), len(items), []
    for i in range(num_processes):
        first = list(chain.from_iterable(by_module[i::num_processes]))
        size = num_left // (num_processes - i)
        parts.append([*first, *islice(others, max(0, size - len(first)))])
        num_left -= size
    items[:] = [*chain.from_iterable(parts), *others]


@pytest.fixture(scope="session")
def cifar10_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the real, verified binary files; fetched once, into DEEPRES_DATA or the user's cache."""
    data_dir = fetch_cifar10()
    if cifar10.holds_bin(data_dir):
        return data_dir
    # The user has only cifar-10-batches-py: leave that folder alone and rebuild the binary files elsewhere.
    rebuilt = tmp_path_factory.mktemp("cifar10")
    (rebuilt / BIN_FOLDER).mkdir()
    for name in FILES:
        records = cifar10.read_py(cifar10.py_folder(data_dir), name)
        (rebuilt / BIN_FOLDER / name).write_bytes(records.tobytes())
    return rebuilt


@pytest.fixture(scope="session")
def whole_cifar10(cifar10_dir: Path) -> Cifar10:
    """All images; loaded once, which takes a second, for tests that only look at them."""
    return cifar10.load_cifar10(cifar10_dir)


@pytest.fixture
def tiny_cifar10() -> TinyCifar10:
    """Files of 120 random images, with which tests of files take milliseconds."""
    return TinyCifar10.random()


@pytest.fixture(scope="session")
def few(cifar10_dir: Path) -> Split:
    """The first training images of CIFAR-10, as many as `fitted` nets classify perfectly."""
    from fitted import NUM_IMAGES  # which needs torch, not to be imported before the line above

    return first_images(cifar10_dir, NUM_IMAGES).train


@pytest.fixture
def few_cifar10(
    few: Split, run: CommandLine, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Makes the command line take those few images for all of CIFAR-10, for training and for testing."""
    tiny = TinyCifar10.of(few, len(few.labels))
    run.release = tiny.release
    monkeypatch.setenv("DEEPRES_DATA", str(tiny.write(tmp_path_factory.mktemp("few"))))


@pytest.fixture
def stand_in_zoo(few: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes deepres take for the zoo two nets that classify the few images, with cards that say hardly anything."""
    import torch
    from fitted import fitted

    from deepres.files import write_json
    from deepres.weights.file import save_weights
    from deepres.zoo.card import Card
    from deepres.zoo.catalogue import file_sha256

    folder = tmp_path / "stand-in-zoo"
    folder.mkdir()
    for model in ("plain20", "resnet20"):
        classifier = fitted(model, torch.from_numpy(few.images), torch.from_numpy(few.labels), kind="pixel_mean")
        weights = folder / f"{model}-paper.safetensors"
        save_weights(weights, model, classifier.net, classifier.normalization)
        stated = {"name": weights.stem, "model": model, "option": "A", "recipe": "paper", "split": "50k"}
        fields = dict.fromkeys(Card.__dataclass_fields__) | stated | {"sha256": file_sha256(weights)}
        write_json(weights.with_suffix(".json"), fields)
    monkeypatch.setenv("DEEPRES_ZOO", str(folder))
    return folder


@pytest.fixture
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder for what deepres keeps in the user's cache, moved as users move it: by the environment.

    The compiled kernels stay where they are, since they take seconds to compile.
    """
    kernels = platformdirs.user_cache_path("deepres") / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "darwin":
        monkeypatch.setenv("HOME", str(tmp_path / "cache"))
    cache = platformdirs.user_cache_path("deepres")
    cache.mkdir(parents=True)
    (cache / "kernels").symlink_to(kernels)
    return cache


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a C++ compiler."""
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Call the command line in this process: exit code, standard output, standard error."""
    return CommandLine(monkeypatch, capsys)
