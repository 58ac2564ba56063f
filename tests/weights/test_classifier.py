import numpy as np
import pytest
import torch
from fitted import fitted

from deepres.errors import UserError
from deepres.training.evaluate import predict_logits


@pytest.fixture(scope="module", params=["channel", "pixel_mean"])
def classifier(request, few):
    return fitted("resnet20", torch.from_numpy(few.images), torch.from_numpy(few.labels), kind=request.param)


@pytest.fixture
def images(few):
    return torch.from_numpy(few.images)


@torch.no_grad()
def test_pixels_give_the_logits_of_the_normalised_net(classifier, images):
    expected = predict_logits(classifier.net, images, classifier.normalization)
    assert torch.equal(classifier(images), expected)
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(classifier(images.to(dtype) / 255), expected)
    assert {"mean", "std", "net.fc.weight"} <= classifier.state_dict().keys()


@torch.no_grad()
def test_features_are_what_the_last_layer_reads(classifier, images):
    features = classifier.forward_features(images)
    assert features.shape == (len(images), 64)
    torch.testing.assert_close(classifier.net.fc(features), classifier(images))


def test_used_as_scikit_learns_classifiers(classifier, few):
    classifier.train()
    before = classifier.net.bn1.running_mean.clone()
    probabilities = classifier.predict_proba(few.images)
    assert probabilities.shape == (len(few.labels), 10)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.array_equal(classifier.predict(few.images), few.labels)
    assert np.array_equal(probabilities.argmax(axis=1), classifier.predict(torch.from_numpy(few.images)))
    assert classifier.score(few.images, few.labels) == 1.0
    wrong = few.labels.copy()
    wrong[:8] = (wrong[:8] + 1) % 10
    assert classifier.score(few.images, wrong) == 0.75
    assert classifier.training
    assert torch.equal(classifier.net.bn1.running_mean, before)
    classifier.eval()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.long(), r"got torch\.int64: convert with \.to\(torch\.uint8\)"),
        (lambda x: x.numpy(), r"got ndarray: give a torch\.Tensor"),
        (lambda x: x.float(), r"got values from 0 to 255: divide by 255, or give uint8"),
        (lambda x: (x / 255 - 0.5) / 0.25, r"got values from -2 to 2: give pixels that are not normalised yet"),
        (lambda x: x / 255 * float("nan"), "got values from nan to nan"),
        (lambda x: x[0], r"got shape \(3, 32, 32\): add the batch dimension"),
        (lambda x: x.permute(0, 2, 3, 1), r"got shape \(32, 32, 32, 3\): channels come first"),
        (lambda x: x[:, :1], r"got shape \(32, 1, 32, 32\): repeat the grey channel"),
        (lambda x: x.repeat(1, 1, 7, 7), r"got shape \(32, 3, 224, 224\): resize them"),
        (lambda x: x.flatten(1), r"got shape \(32, 3072\): resize them"),
    ],
)
def test_what_is_no_pixels_is_refused(classifier, images, change, message):
    expected = r"expected pixels of shape \(N, 3, 32, 32\), uint8 or float in \[0, 1\], but "
    with pytest.raises(UserError, match=expected + message):
        classifier(change(images))
