import pytest
import torch
from torch import nn

from deepres.backends.torch_backend import TorchBackend
from deepres.data.augment import Normalization
from deepres.models import build_model
from deepres.weights.evaluate import confusion_matrix, error_percent, percent, predict_logits

IDENTITY = Normalization(mean=torch.zeros(3, 1, 1), std=torch.full((3, 1, 1), 1 / 255))


class FirstPixel(nn.Module):
    """Predicts the class that the first pixel's red value names."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return nn.functional.one_hot(x[:, 0, 0, 0].round().long() % 10, 10).float()


def test_ten_thousand_images_are_evaluated(whole_cifar10):
    test = whole_cifar10.test
    images, labels = torch.from_numpy(test.images), torch.from_numpy(test.labels)
    model = FirstPixel()
    logits = predict_logits(model, images, IDENTITY)
    assert sum(model.batches) == 10_000
    assert logits.shape == (10_000, 10)
    confusion = confusion_matrix(logits, labels)
    assert confusion.sum() == 10_000
    assert confusion.sum(dim=1).tolist() == [1000] * 10
    predicted = test.images[:, 0, 0, 0] % 10
    assert torch.equal(logits.argmax(dim=1), torch.from_numpy(predicted).long())
    assert error_percent(logits, labels) == round(100 * float((predicted != test.labels).mean()), 2)
    assert error_percent(logits, labels) == percent(10_000 - int(confusion.trace()), 10_000)


@pytest.mark.parametrize("num_images", [1, 999, 1000, 1001, 2500])
def test_an_uneven_last_batch_is_evaluated(num_images):
    images = torch.randint(256, (num_images, 3, 2, 2), dtype=torch.uint8)
    logits = predict_logits(FirstPixel(), images, IDENTITY)
    assert torch.equal(logits.argmax(dim=1), (images[:, 0, 0, 0] % 10).long())


def test_confusion_by_hand():
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]  # predictions 0, 1, 1, 2, 0
    labels = torch.tensor([0, 1, 2, 2, 1])
    assert confusion_matrix(logits, labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert error_percent(logits, labels) == 40.0


def test_evaluation_leaves_the_net_alone():
    model = build_model("resnet20").eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    predict_logits(model, torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8), IDENTITY)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_bfloat16_is_close_to_float32():
    model = build_model("resnet20", generator=torch.Generator().manual_seed(0)).eval()
    images = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    normalization = Normalization.fit(images, "channel")
    exact = predict_logits(model, images, normalization)
    backend = TorchBackend(model, torch.device("cpu"), "bfloat16", compiled=False, notice=print)
    rough = predict_logits(backend.logits, images, normalization)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()
