"""Pictures of every kind, made with Pillow, to 32x32 pixels."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import ExifTags, Image

from deepres.data.images import ImageError, find_images, read_image, read_images, squeeze
from deepres.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    file.seek(0)
    return file


def halves(left, right, size=(64, 48), mode="RGB"):
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def test_the_width_comes_first_whichever_version_of_pillow_is_installed():
    """Stripes whose overshoot is cut off: another order of the two passes gives other pixels."""
    pixels = np.random.default_rng(0).integers(0, 2, (90, 5, 3), np.uint8) * 255
    small = np.asarray(squeeze(Image.fromarray(pixels), 32))
    assert small.shape == (32, 32, 3)
    assert hashlib.sha256(small.tobytes()).hexdigest().startswith("e7b181f7914c38fc")


def test_the_whole_picture_is_squeezed_not_cropped():
    image = Image.new("RGB", (300, 100), RED)
    image.paste(BLUE, (0, 0, 30, 100))  # a tenth of the width, which a centre crop would lose
    pixels = read_image(saved(image))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels[:, :, 0].T.tolist() == [list(BLUE)] * 32
    assert pixels[:, :, 31].T.tolist() == [list(RED)] * 32


def test_fine_detail_becomes_its_average():
    checkerboard = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = read_image(saved(Image.fromarray(checkerboard)))
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_an_image_of_32x32_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert np.array_equal(read_image(saved(Image.fromarray(image))), image.transpose(2, 0, 1))


def upside_down():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    return exif


def animated():
    return saved(halves(RED, BLUE), "GIF", save_all=True, append_images=[halves(BLUE, RED)])


@pytest.mark.parametrize(
    ("file", "left", "right"),
    [
        (saved(halves(RED, BLUE), "BMP"), RED, BLUE),
        (saved(halves(RED, BLUE).convert("P"), "GIF"), RED, BLUE),
        (saved(halves(0, 255, mode="L")), (0, 0, 0), WHITE),
        (saved(halves(0, 1, mode="1")), (0, 0, 0), WHITE),
        (saved(Image.fromarray(np.array([[0, 65535]], np.uint16)).resize((64, 48), 0)), (0, 0, 0), WHITE),
        (saved(halves((*RED, 255), (0, 0, 0, 0), mode="RGBA")), RED, WHITE),
        (saved(halves(0, 255, mode="L"), transparency=0), WHITE, WHITE),
        (saved(halves(RED, BLUE).convert("CMYK"), "TIFF"), RED, BLUE),
        (
            saved(halves(RED, BLUE), "JPEG", quality=95, exif=(lambda e: (e.__setitem__(274, 3), e)[1])(Image.Exif())),
            BLUE,
            RED,
        ),
    ],
    ids=["bmp", "palette", "grey", "bilevel", "16 bits", "transparent", "transparent grey", "cmyk", "upside down"],
)
def test_kinds_of_image(file, left, right):
    pixels = read_image(file).astype(int)
    for column, colour in ((4, left), (27, right)):
        assert np.abs(pixels[:, 16, column] - colour).max() <= 2


def test_the_picture_of_a_cameras_file_is_its_first():
    """A JPEG with a smaller preview behind it, as phones write them."""
    file = saved(halves(RED, BLUE), "MPO", save_all=True, append_images=[halves(BLUE, RED, size=(32, 24))])
    assert Image.open(file).n_frames == 2
    file.seek(0)
    pixels = read_image(file)
    for column, colour in ((4, RED), (27, BLUE)):
        assert np.abs(pixels[:, 16, column] - np.array(colour)).max() <= 8


def truncated():
    return io.BytesIO(saved(Image.effect_noise((64, 64), 50)).getvalue()[:-2000])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            saved(halves(RED, BLUE), "GIF", save_all=True, append_images=[halves(BLUE, RED)]),
            "it has 2 frames or pages",
        ),
        (truncated(), "it cannot be read"),
        (io.BytesIO(b"text"), "it is no image that Pillow can read"),
        (io.BytesIO(b""), "it is no image that Pillow can read"),
        (saved(Image.new("RGB", (101, 100))), "it has more than 10,000 pixels and is not decoded"),
        (saved(Image.new("RGB", (300, 300))), "it has more than 10,000 pixels and is not decoded"),
        (saved(Image.new("F", (8, 8)), "TIFF"), "no known range"),
    ],
    ids=["animated", "truncated", "text", "empty", "large", "bomb", "float"],
)
def test_what_cannot_be_used(monkeypatch, file, message):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ImageError, match=message):
        read_image(file)


def test_missing_files_and_folders_and_the_others_go_on(tmp_path):
    (tmp_path / "b").mkdir()
    halves(RED, BLUE).save(tmp_path / "b" / "one.PNG", "PNG")
    (tmp_path / "notes.txt").write_text("no image, and does not look like one")
    (tmp_path / "a.jpg").write_bytes(b"no image, but looks like one")
    found = find_images(tmp_path)
    paths = list(found.paths)
    assert paths == [tmp_path / "a.jpg", tmp_path / "b" / "one.PNG"]
    assert found.left_out == f"left out in {tmp_path}: 1 that Pillow cannot read as images (.txt)"
    names, images, faults = read_images([(path.name, path) for path in [*paths, tmp_path / "gone.png", tmp_path]])
    assert names == ["one.PNG"]
    assert images[0].shape == (3, 32, 32)
    assert faults["a.jpg"] == "it is no image that Pillow can read"
    assert faults["gone.png"] == "it cannot be read (No such file or directory)"
    assert faults[tmp_path.name] == "it cannot be read (Is a directory)"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no image files"):
        find_images(tmp_path / "empty")


def test_hidden_entries_are_no_images_and_counted(tmp_path):
    for name in (
        "a.png",
        "._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/._a.png",
        ".DS_Store",
        "Thumbs.db",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        halves(RED, BLUE).save(path, "PNG")
    found = find_images(tmp_path)
    assert found.paths == (tmp_path / "a.png",)
    assert found.left_out == f"left out in {tmp_path}: 5 hidden"


def test_links_are_followed_once_and_dangling_ones_are_named(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    halves(RED, BLUE).save(tmp_path / "elsewhere" / "far.png")
    folder = tmp_path / "folder"
    folder.mkdir()
    halves(RED, BLUE).save(folder / "near.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "back").symlink_to(folder)
    (folder / "file.png").symlink_to(folder / "near.png")
    (folder / "gone.png").symlink_to("/nowhere/gone.png")
    found = find_images(folder)
    assert [path.name for path in found.paths] == ["file.png", "gone.png", "far.png", "near.png"]
    assert found.left_out == ""
    names, _, faults = read_images((path.name, path) for path in found.paths)
    assert names == ["file.png", "far.png", "near.png"]
    assert faults == {"gone.png": "it cannot be read (No such file or directory)"}


def test_pipes_are_not_opened(tmp_path):
    halves(RED, BLUE).save(tmp_path / "a.png", "PNG")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    found = find_images(tmp_path)
    assert found.paths == (tmp_path / "a.png",)
    assert found.left_out.endswith(": 2 that Pillow cannot read as images (no regular file)")


def test_the_content_tells_an_image_where_the_name_does_not(tmp_path):
    for name in ("no_suffix", "b.jpg_large"):
        halves(RED, BLUE).save(tmp_path / name, "PNG")
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1")
    (tmp_path / "notes").write_text("no image")
    found = find_images(tmp_path)
    assert [path.name for path in found.paths] == ["b.jpg_large", "no_suffix"]
    assert found.left_out.endswith(": 2 that Pillow cannot read as images (.HEIC, notes)")
