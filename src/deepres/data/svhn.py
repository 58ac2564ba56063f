"""The cropped digits of SVHN, Netzer et al., "Reading digits in natural images", 2011: a file of 32 x 32 images."""

from pathlib import Path

import numpy as np

from deepres.data.cifar10 import Split
from deepres.errors import UserError, extra_needed, first_line


def read_svhn(path: Path) -> Split:
    """Read a file such as test_32x32.mat, which its makers publish; needs SciPy.

    Returns:
        Images, uint8 (N, 3, 32, 32), and the digits on them, int64 (N,); the file says 10 for the digit 0.

    Raises:
        UserError: SciPy is missing, or the file is, cannot be read, or holds something else.
    """
    with extra_needed("a file of SVHN", "report"):
        from scipy.io import loadmat
    try:
        content = loadmat(path, variable_names=("X", "y"))
    except Exception as error:  # whatever the reader raises at a file of another kind
        raise UserError(f"{path} cannot be read as a file of SVHN ({first_line(error)})") from None
    images, labels = np.asarray(content.get("X")), np.asarray(content.get("y")).ravel()
    if images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3) or labels.shape != images.shape[3:]:
        raise UserError(
            f"{path} is no file of SVHN: it holds no uint8 X (32, 32, 3, N) with a label y (N, 1) for each"
        )
    return Split(np.ascontiguousarray(images.transpose(3, 2, 0, 1)), labels.astype(np.int64) % 10)
