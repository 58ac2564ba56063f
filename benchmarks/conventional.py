"""The usual way of training these nets, as the public repositories do, for comparison.

float32, eager, default memory layout; a `DataLoader` whose workers pad, crop, flip and normalise image by
image in Python; SGD with momentum. Nothing is evaluated on the training set.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepres.models import build_model

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images one at a time, each transformed on its own."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[index]).float() / 255  # (3, 32, 32)
        image = F.pad(image, (4, 4, 4, 4))
        row, column = torch.randint(9, (2,)).tolist()
        image = image[:, row : row + 32, column : column + 32]
        if torch.rand(1).item() < 0.5:
            image = image.flip(-1)
        return (image - MEAN) / STD, int(self.labels[index])


CPU = torch.device("cpu")


def conventional_steps(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    *,
    device: torch.device = CPU,
    num_workers: int = 2,
) -> Iterator[float]:
    """Train without end; yield the loss after each step."""
    model = build_model(name).to(device)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(
        PerImage(images, labels),
        batch_size,
        shuffle=True,
        num_workers=num_workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    while True:
        for batch, targets in loader:
            optimizer.zero_grad()
            outputs = model(batch.to(device, non_blocking=True))
            loss = F.cross_entropy(outputs, targets.to(device, non_blocking=True))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield loss.item()
