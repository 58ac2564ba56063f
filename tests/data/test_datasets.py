import hashlib
import pickle

import numpy as np
import pytest
from PIL import Image

from deepres.data.cifar10 import CLASSES, Split
from deepres.data.cifar100 import FOLDER, load_cifar100
from deepres.data.datasets import ImageData, check_dataset, label_of, load_data
from deepres.data.folder import load_folder
from deepres.errors import UserError


def write_images(folder, numbers, *, seed=0):
    """Write random pictures of 8 x 8: for each class name so many."""
    rng = np.random.default_rng(seed)
    for name, number in numbers.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name / f"{i:02}.png")
    return folder


def test_a_folder_of_classes_is_divided_alike_at_each_call(tmp_path):
    folder = write_images(tmp_path / "pets", {"dog": 10, "cat": 20})
    train, test, classes = load_folder(folder)
    assert classes == ("cat", "dog")
    assert [int((train.labels == label).sum()) for label in (0, 1)] == [16, 8]
    assert [int((test.labels == label).sum()) for label in (0, 1)] == [4, 2]
    assert train.images.shape == (24, 3, 32, 32)
    again = load_folder(folder)
    assert np.array_equal(again[1].images, test.images)
    everything = {image.tobytes() for split in (train, test) for image in split.images}
    assert len(everything) == 30  # none is lost, none is in both


def test_train_and_test_folders_are_taken_as_they_are(tmp_path):
    write_images(tmp_path / "train", {"b": 2, "a": 1})
    write_images(tmp_path / "val", {"a": 1, "b": 1}, seed=1)
    data = load_data(str(tmp_path))
    assert data.classes == ("a", "b")
    assert data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [0, 1]
    assert data.name == tmp_path.name


def test_images_of_a_folder_are_made_of_the_size_asked_for(tmp_path):
    folder = write_images(tmp_path / "pets", {"dog": 10, "cat": 20})
    data = load_data(folder, image_size=48)
    assert data.train.images.shape == (24, 3, 48, 48)
    assert (data.name, label_of(folder, 48), label_of(folder, 32)) == ("pets-48px", "pets-48px", "pets")
    with pytest.raises(UserError, match="an image size of 7: it must be 8 to 512 pixels"):
        load_data(folder, image_size=7)
    with pytest.raises(UserError, match="an image size goes with a folder of images, and 'cifar10' is none"):
        load_data("cifar10", image_size=64)


def test_folders_that_cannot_be_trained_on_are_named(tmp_path):
    with pytest.raises(UserError, match=r"2 images: a class needs 3 or more"):
        load_folder(write_images(tmp_path / "few", {"a": 2, "b": 3}))
    with pytest.raises(UserError, match="holds 1 folders: it must hold a folder of images for each class"):
        load_folder(write_images(tmp_path / "one", {"a": 3}))
    with pytest.raises(UserError, match="holds a folder train but no folder test"):
        load_folder(write_images(tmp_path / "train-only", {"train/a": 3, "train/b": 3}))
    with pytest.raises(UserError, match=r"train and test hold other classes \(b is in one of them only\)"):
        load_folder(write_images(tmp_path / "odd", {"train/a": 1, "train/b": 1, "test/a": 1, "test/c": 1}))
    broken = write_images(tmp_path / "broken", {"a": 3, "b": 3})
    (broken / "a" / "00.png").write_bytes((broken / "a" / "01.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"00\.png: .*delete it, or move it out of"):
        load_folder(broken)


def test_names_of_data_sets(cifar10_dir, tmp_path, monkeypatch):
    assert load_data("cifar10", cifar10_dir).classes == CLASSES
    assert [label_of(name) for name in ("cifar10", "my.py:pets", "a/b/pets/")] == ["cifar10", "pets", "pets"]
    with pytest.raises(UserError, match="no data 'cifar11': give cifar10, cifar100, a folder of images"):
        load_data("cifar11")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(
        "import numpy as np\nfrom deepres import ImageData\nfrom deepres.data.cifar10 import Split\n"
        "def two():\n    split = Split(np.zeros((2, 3, 32, 32), np.uint8), np.array([0, 1]))\n"
        "    return ImageData(split, split, 'two', ('a', 'b'))\n"
    )
    assert load_data("my.py:two").name == "two"


IMAGES, LABELS = np.zeros((3, 3, 32, 32), np.uint8), np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (IMAGES.transpose(0, 2, 3, 1), LABELS, ("a", "b"), r"images are uint8 \(3, 32, 32, 3\): they must be uint8"),
        (IMAGES.astype(np.float32), LABELS, ("a", "b"), "images are float32"),
        (IMAGES[:0], LABELS[:0], ("a", "b"), r"images are uint8 \(0, 3, 32, 32\): they must be .*, N at least 1"),
        (IMAGES, LABELS[:2], ("a", "b"), r"labels are int64 \(2,\): they must be int64 \(3,\)"),
        (IMAGES, LABELS.astype(np.float64), ("a", "b"), "labels are float64"),
        (IMAGES, LABELS + 1, ("a", "b"), "labels are 1 to 2: they must be 0 to 1"),
        (IMAGES, LABELS, ("a", "a"), "classes must be 1 to 256 different names"),
        (IMAGES, LABELS, "ab", "classes must be"),
    ],
)
def test_data_of_ones_own_must_be_what_nets_take(images, labels, classes, message):
    split = Split(images, labels)
    with pytest.raises(UserError, match=f"^mine: (train.)?{message}"):
        check_dataset(ImageData(split, split, "mine", classes), "mine")


def test_training_and_test_images_must_be_of_one_size():
    larger = Split(np.zeros((3, 3, 48, 48), np.uint8), LABELS)
    assert check_dataset(ImageData(larger, larger, "mine", ("a", "b")), "mine").name == "mine"
    with pytest.raises(UserError, match="mine: its training and test images are of other sizes"):
        check_dataset(ImageData(larger, Split(IMAGES, LABELS), "mine", ("a", "b")), "mine")


def test_what_is_no_data_set_is_named():
    with pytest.raises(UserError, match=r"mine is a list without 'train': it must be a deepres\.ImageData"):
        check_dataset([], "mine")


def write_cifar100(root):
    """Write files of the form of CIFAR-100's; return their md5 sums."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    content = {"meta": {b"fine_label_names": [f"class {i}".encode() for i in range(100)]}}
    for name, number in (("train", 200), ("test", 100)):
        pixels, labels = rng.integers(0, 256, (number, 3072), np.uint8), [i % 100 for i in range(number)]
        content[name] = {b"data": pixels, b"fine_labels": labels, b"coarse_labels": [0] * number}
    for name, each in content.items():
        (folder / name).write_bytes(pickle.dumps(each))
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in content}


def test_cifar100_is_read_only_if_it_is_what_was_published(tmp_path):
    with pytest.raises(UserError, match=r"there is no CIFAR-100 in .*: run `deepres fetch --data cifar100`"):
        load_data("cifar100", tmp_path)
    sums = write_cifar100(tmp_path)
    with pytest.raises(UserError, match=r"train is altered \(its md5 is not the published one\)"):
        load_data("cifar100", tmp_path)
    train, test, classes = load_cifar100(tmp_path, sums)
    assert (len(classes), classes[7], train.images.shape, test.labels.max()) == (100, "class 7", (200, 3, 32, 32), 99)
    (tmp_path / FOLDER / "train").write_bytes(pickle.dumps(print))  # never unpickled: its sum is another
    with pytest.raises(UserError, match="train is altered"):
        load_cifar100(tmp_path, sums)
