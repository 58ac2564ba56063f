import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_cifar10 import TinyCifar10, dump_python2, hostile_pickle
from tiny_run import first_images

from deepres.data import cifar10
from deepres.data.cifar10 import Cifar10, Split, check_cifar10, decode, encode, load_cifar10, resolve_data_dir
from deepres.data.fetch import fetch_cifar10
from deepres.data.release import BIN_FOLDER, FILES, OFFICIAL, PY_FOLDER, TEST_FILE, Release
from deepres.errors import UserError

# --- the real data set ------------------------------------------------------------------------------------------


def test_published_md5_of_all_six_files(cifar10_dir: Path):
    folder = cifar10.bin_folder(cifar10_dir)
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in FILES}
    assert sums == {  # as published beside the archive
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    }


def test_shapes_types_and_class_counts(whole_cifar10: Cifar10):
    for split, num_images in ((whole_cifar10.train, 50_000), (whole_cifar10.test, 10_000)):
        assert split.images.shape == (num_images, 3, 32, 32)
        assert split.images.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert split.images.flags.writeable
        assert split.labels.shape == (num_images,)
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).tolist() == [num_images // 10] * 10


def test_published_channel_statistics(whole_cifar10: Cifar10):
    images = whole_cifar10.train.images
    num_pixels = images.size // 3
    mean = images.sum(axis=(0, 2, 3), dtype=np.int64) / num_pixels / 255
    squares = np.square(images, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64) / num_pixels / 255**2
    std = np.sqrt(squares - mean**2)
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)
    np.testing.assert_allclose(std, [0.24703223, 0.24348513, 0.26158784], atol=5e-9)


def test_class_names_fit_the_first_images(whole_cifar10: Cifar10):
    train = [cifar10.CLASSES[label] for label in whole_cifar10.train.labels[:5]]
    test = [cifar10.CLASSES[label] for label in whole_cifar10.test.labels[:5]]
    assert train == ["frog", "truck", "truck", "deer", "automobile"]
    assert test == ["cat", "ship", "ship", "airplane", "frog"]


def test_encoding_gives_the_published_bytes_again(whole_cifar10: Cifar10):
    for number, name in enumerate(FILES):
        split = whole_cifar10.test
        if name != TEST_FILE:
            part = slice(10_000 * number, 10_000 * (number + 1))
            split = Split(whole_cifar10.train.images[part], whole_cifar10.train.labels[part])
        assert hashlib.md5(encode(split).tobytes()).hexdigest() == OFFICIAL.files[name]


def test_the_first_images_are_those_of_the_whole(cifar10_dir: Path, whole_cifar10: Cifar10):
    """Of which the tests of training are made."""
    few = first_images(cifar10_dir, 100, 80)
    for split, expected in ((few.train, whole_cifar10.train[:100]), (few.test, whole_cifar10.test[:80])):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)


def test_torchvisions_layout_loads_identically_and_needs_no_download(
    tiny_cifar10: TinyCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    official = load_cifar10(tiny_cifar10.write(tmp_path / "bin"), tiny_cifar10.release)
    folder = tiny_cifar10.write_py(tmp_path / "py")  # without the names of the image files, which only real ones hold
    release = replace(tiny_cifar10.release, url="http://127.0.0.1:1/cifar-10-binary.tar.gz")
    monkeypatch.setenv("PATH", "")  # nor npm
    assert fetch_cifar10(folder, release=release) == folder
    assert [path.name for path in folder.iterdir()] == [PY_FOLDER]

    loaded = load_cifar10(folder, release)
    for split, expected in ((loaded.train, official.train), (loaded.test, official.test)):
        np.testing.assert_array_equal(split.images, expected.images)
        np.testing.assert_array_equal(split.labels, expected.labels)


# --- where the data lie -----------------------------------------------------------------------------------------


def test_data_dir_is_the_argument_then_the_environment_then_the_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DEEPRES_DATA", "~/from-env")
    assert resolve_data_dir("~/given") == Path.home() / "given"
    assert resolve_data_dir(None) == Path.home() / "from-env"
    monkeypatch.delenv("DEEPRES_DATA")
    assert resolve_data_dir(None) == platformdirs.user_cache_path("deepres") / "data"


def test_unknown_home_is_a_user_error():
    with pytest.raises(UserError, match="no such home"):
        resolve_data_dir("~nobody-of-this-name/data")


@pytest.mark.parametrize("layout", ["write", "write_py"])
def test_the_folder_of_batches_itself_will_do(tiny_cifar10: TinyCifar10, tmp_path: Path, layout: str):
    getattr(tiny_cifar10, layout)(tmp_path)
    (inner,) = tmp_path.iterdir()
    renamed = inner.rename(tmp_path / "renamed")
    expected = np.frombuffer(tiny_cifar10.files["test_batch.bin"], np.uint8).reshape(20, 3073)
    np.testing.assert_array_equal(encode(load_cifar10(renamed, tiny_cifar10.release).test), expected)
    restored = renamed.rename(inner)
    np.testing.assert_array_equal(encode(load_cifar10(restored, tiny_cifar10.release).test), expected)
    np.testing.assert_array_equal(encode(load_cifar10(tmp_path, tiny_cifar10.release).test), expected)


def test_binary_layout_is_preferred(tiny_cifar10: TinyCifar10, tmp_path: Path):
    tiny_cifar10.write(tmp_path)
    (tmp_path / PY_FOLDER).mkdir()
    (tmp_path / PY_FOLDER / "data_batch_1").write_bytes(b"damaged")
    assert load_cifar10(tmp_path, tiny_cifar10.release).train.images.shape == (100, 3, 32, 32)


def test_loading_writes_nothing(tiny_cifar10: TinyCifar10, tmp_path: Path):
    tiny_cifar10.write(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load_cifar10(tmp_path, tiny_cifar10.release)
    check_cifar10(tmp_path, tiny_cifar10.release)
    assert sorted(tmp_path.rglob("*")) == before


def test_training_files_come_in_order(tiny_cifar10: TinyCifar10, tmp_path: Path):
    train = load_cifar10(tiny_cifar10.write(tmp_path), tiny_cifar10.release).train
    assert encode(train).tobytes() == b"".join(tiny_cifar10.files[f"data_batch_{i}.bin"] for i in range(1, 6))


# --- what can be wrong with it ----------------------------------------------------------------------------------


def message_of_load(data_dir: Path, release: Release) -> str:
    """Return what loading says, which checking alone says too."""
    messages = []
    for function in (load_cifar10, check_cifar10):
        with pytest.raises(UserError) as caught:
            function(data_dir, release)
        messages.append(str(caught.value))
    message, also = messages
    assert message == also
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["absent", "empty", "a file"])
def test_nothing_there_names_the_command(tmp_path: Path, kind: str):
    data_dir = tmp_path / "my data"
    if kind == "empty":
        data_dir.mkdir()
    elif kind == "a file":
        data_dir.write_bytes(b"")
    assert message_of_load(data_dir, OFFICIAL) == (
        f"there is no CIFAR-10 in {data_dir}: run `deepres fetch --data-dir '{data_dir}'`"
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: path.unlink(), "is missing: run `"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is truncated (61,459 bytes instead of 61,460)"),
        (lambda path: path.write_bytes(b""), "is truncated (0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "is altered (61,461 bytes"),
        (
            lambda path: path.write_bytes(b"\0" * 61_460),
            "is altered (its md5 is not the published one): delete it and",
        ),
        (lambda path: (path.unlink(), path.mkdir()), "is not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is missing"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "is not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to(path.name)), "cannot be read"),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_bad_binary_file_is_named_with_the_mend(tiny_cifar10: TinyCifar10, tmp_path: Path, change, fault, name):
    tiny_cifar10.write(tmp_path)
    path = tmp_path / BIN_FOLDER / name
    change(path)
    message = message_of_load(tmp_path, tiny_cifar10.release)
    assert message.startswith(f"{path} {fault}")
    assert "--data-dir" in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2]), "is altered (its md5 is not the published one)"),
        (lambda path: path.write_bytes(b""), "is altered (its md5 is not the published one)"),
        (lambda path: path.write_bytes(b"\0" * 1_000_000), "is altered (it is far too large)"),
        (lambda path: path.write_bytes(dump_python2(b"\0" * 61_460)), "is altered (its md5 is not the published one)"),
    ],
)
def test_bad_pickled_file_is_named_with_the_mend(tiny_cifar10: TinyCifar10, tmp_path: Path, change, fault):
    folder = tiny_cifar10.write_py(tmp_path) / PY_FOLDER
    change(folder / "data_batch_2")
    message = message_of_load(tmp_path, tiny_cifar10.release)
    assert message.startswith(f"{folder / 'data_batch_2'} {fault}")
    assert f"delete the folder {folder} and run `deepres fetch --data-dir {tmp_path}`" in message


def test_hostile_pickle_does_not_run(tiny_cifar10: TinyCifar10, tmp_path: Path):
    path = tiny_cifar10.write_py(tmp_path) / PY_FOLDER / "data_batch_2"
    trace = tmp_path / "trace"
    path.write_bytes(hostile_pickle(trace))
    assert "is altered (its md5 is not the published one)" in message_of_load(tmp_path, tiny_cifar10.release)
    assert not trace.exists()
    pickle.loads(path.read_bytes())  # without the check it would have run
    assert trace.exists()


@pytest.mark.parametrize("layout", ["write", "write_py"])
def test_unreadable_file_is_named(
    tiny_cifar10: TinyCifar10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
):
    getattr(tiny_cifar10, layout)(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # chmod would not stop root
    message = message_of_load(tmp_path, tiny_cifar10.release)
    assert "data_batch_1" in message
    assert "cannot be read (Permission denied): fix its permissions" in message


# --- the format -------------------------------------------------------------------------------------------------


def test_record_layout_by_hand():
    record = np.zeros(3073, np.uint8)
    record[0] = 7
    record[1 + 2 * 1024 + 5 * 32 + 9] = 200  # blue plane, row 5, column 9
    split = decode(record[np.newaxis])
    assert split.labels.tolist() == [7]
    assert np.argwhere(split.images).tolist() == [[0, 2, 5, 9]]
    assert split.images[0, 2, 5, 9] == 200


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4).flatmap(lambda num: hnp.arrays(np.uint8, (num, 3073))))
def test_decode_then_encode_is_the_identity(records: np.ndarray):
    before = records.copy()
    split = decode(records)
    assert split.images.base is None or not np.shares_memory(split.images, records)
    np.testing.assert_array_equal(encode(split), before)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 4).flatmap(
        lambda num: st.tuples(
            hnp.arrays(np.uint8, (num, 3, 32, 32)), hnp.arrays(np.int64, num, elements=st.integers(0, 9))
        )
    )
)
def test_encode_then_decode_is_the_identity(arrays: tuple[np.ndarray, np.ndarray]):
    images, labels = arrays
    split = decode(encode(Split(images, labels)))
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.parametrize(
    "place",
    [
        "cifar-10-batches-py",
        "cifar-10-batches-py/cifar-10-batches-py",
        "cifar-10-batches-py-target/cifar-10-batches-py",
        "cifar-10-batches-py-target",
        ".",
    ],
)
def test_the_data_are_found_where_programs_lay_them(tiny_cifar10, tmp_path, place):
    written = tiny_cifar10.write_py(tmp_path / "made") / PY_FOLDER
    root = tmp_path / "root"
    (root / place).mkdir(parents=True)
    for path in written.iterdir():
        path.rename(root / place / path.name)
    assert len(load_cifar10(root, tiny_cifar10.release).train.labels) == 100


def test_nested_binary_files_are_found_too(tiny_cifar10, tmp_path):
    tiny_cifar10.write(tmp_path / BIN_FOLDER)
    assert len(load_cifar10(tmp_path, tiny_cifar10.release).test.labels) == 20


def test_an_archive_that_lies_there_is_pointed_to(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"run `deepres fetch .*`, which takes them from cifar-10-python\.tar\.gz"):
        load_cifar10(tmp_path)
