import pytest

from deepres.data.cifar10 import CLASSES
from deepres.data.class_names import class_index, index_folders
from deepres.errors import UserError


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("cat", "cat"),
        ("Cat", "cat"),
        (" CATS ", "cat"),
        ("plane", "airplane"),
        ("Planes", "airplane"),
        ("aeroplane", "airplane"),
        ("car", "automobile"),
        ("cars", "automobile"),
        ("horses", "horse"),
        ("0", "airplane"),
        ("9", "truck"),
    ],
)
def test_words_for_classes(word, name):
    index = class_index(word, CLASSES)
    assert index is not None
    assert CLASSES[index] == name


@pytest.mark.parametrize("word", ["", "wolf", "10", "-1", "1.0", "²", "cat dog"])
def test_words_for_no_class(word):
    assert class_index(word, CLASSES) is None


def test_classes_called_by_numbers_are_meant_by_their_names():
    assert class_index("1", ("1", "0")) == 0
    assert class_index("s", ("s", "glass")) == 0
    assert class_index("glass", ("s", "glass")) == 1


def test_folders():
    assert index_folders(["plane", "Cars"], CLASSES, "here") == {"plane": 0, "Cars": 1}
    with pytest.raises(UserError, match="folder here/wolf is named after no class: the classes are airplane, "):
        index_folders(["cat", "wolf"], CLASSES, "here")
    with pytest.raises(UserError, match="folder here holds folders named by numbers and by words"):
        index_folders(["cat", "4"], CLASSES, "here")
