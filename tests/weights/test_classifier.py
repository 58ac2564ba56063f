import copy
import warnings

import numpy as np
import pytest
import torch
from fitted import fitted
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deepres.data.cifar10 import CLASSES
from deepres.errors import UserError
from deepres.models import build_model
from deepres.weights.classifier import PixelClassifier
from deepres.weights.evaluate import predict_logits


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


def test_the_score_is_never_broadcast(classifier, few):
    wrong = few.labels.copy()
    wrong[:8] = (wrong[:8] + 1) % 10
    for labels in (wrong, wrong[:, None], wrong.tolist(), torch.from_numpy(wrong)[:, None]):
        assert classifier.score(few.images, labels) == 0.75
    for labels in (wrong[:1], wrong + 1, np.eye(10)[wrong], np.array(classifier.classes)[wrong], 3):
        with pytest.raises(UserError, match="expected 32 labels"):
            classifier.score(few.images, labels)
    with pytest.raises(UserError, match="no images to score"):
        classifier.score(few.images[:0], [])


def test_tracers_see_through_the_check_of_values(classifier, images):
    pixels = images[:4] / 255
    expected = classifier(pixels).detach()
    traced = torch.fx.symbolic_trace(classifier)
    torch.testing.assert_close(traced(pixels), expected, check_stride=False)
    with pytest.raises(UserError, match="divide by 255"):  # the check is in the graph
        traced(images.float())
    batched = torch.func.vmap(lambda image: classifier(image[None])[0])(pixels)
    torch.testing.assert_close(batched, expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(classifier, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels), expected, rtol=1e-4, atol=1e-4)
    assert copy.deepcopy(classifier).to("meta")(pixels.to("meta")).shape == (4, 10)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert classifier(mode.from_tensor(pixels)).shape == (4, 10)


def test_gradients_of_each_image_are_those_of_the_whole(classifier, images):
    pixels = images[:3] / 255
    parameters = {name: p.detach() for name, p in classifier.named_parameters()}
    buffers = dict(classifier.named_buffers())

    def loss(values, image):
        return torch.func.functional_call(classifier, (values, buffers), (image[None],)).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, pixels)
    bias = torch.autograd.grad(classifier(pixels).sum(), classifier.net.fc.bias)[0]
    torch.testing.assert_close(each["net.fc.bias"].sum(dim=0), bias)


def test_gradients_with_respect_to_the_input_do_not_warn(classifier, images):
    pixels = (images[:2] / 255).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0


@torch.no_grad()
def test_a_net_of_another_type_than_the_normalisation(classifier, images):
    expected = classifier(images)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.float16, 0.1), (torch.bfloat16, 0.5)):
        for convert in (lambda made: made.to(dtype), lambda made: made.net.to(dtype)):  # noqa: B023
            made = copy.deepcopy(classifier)
            convert(made)
            assert made(images).dtype == dtype
            torch.testing.assert_close(made(images).float(), expected, rtol=tolerance, atol=tolerance)
    torch.set_default_dtype(torch.float64)
    try:
        assert PixelClassifier(build_model("resnet20"), classifier.normalization)(images).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_head_of_ones_own_and_class_names(classifier, images):
    tuned = copy.deepcopy(classifier)
    assert list(tuned.classes) == list(CLASSES)
    tuned.net.fc = nn.Sequential(nn.Dropout(0.2), nn.Linear(64, 2)).train()
    assert list(tuned.classes) == ["0", "1"]
    assert tuned.net.fc.training
    tuned.classes = ["cat", "dog"]
    assert list(tuned.classes) == ["cat", "dog"]
    assert tuned.predict_proba(images).shape == (32, 2)
    again = copy.deepcopy(tuned)
    again._classes = None
    again.load_state_dict(tuned.state_dict())
    assert list(again.classes) == ["cat", "dog"]
    for names, message in (
        (["cat"], "but got 1"),
        (["cat", "cat"], "'cat' is there twice"),
        (["cat", 3], "but got 3 among them"),
        (["cat", " "], "among them"),
        ("ab", "but got str"),
        (2, "but got int"),
    ):
        with pytest.raises(UserError, match=f"expected 2 different class names, {message}|{message}"):
            tuned.classes = names


def test_weights_of_another_net_do_not_load_by_their_shapes(classifier):
    plain = PixelClassifier(build_model("plain20"), classifier.normalization)
    with pytest.raises(UserError, match=r"weights are of resnet20, option A, but this net is plain20, option A"):
        plain.load_state_dict(classifier.state_dict())
    state = {key: tensor for key, tensor in classifier.state_dict().items() if key != "_extra_state"}
    assert str(plain.load_state_dict(state)) == "<All keys matched successfully>"  # of earlier versions


def test_logits_that_are_not_finite_are_no_answer(classifier, images):
    spoiled = copy.deepcopy(classifier)
    spoiled.net.fc.bias.data[3] = float("nan")
    for method in (spoiled.predict, spoiled.predict_proba, spoiled.predict_logits):
        with pytest.raises(UserError, match="gives logits that are not finite"):
            method(images)


def test_parts_in_another_mode_stay_in_it(classifier, images):
    frozen = copy.deepcopy(classifier).train()
    frozen.net.layer1.eval()
    before = [module.training for module in frozen.modules()]
    frozen.predict(images)
    assert [module.training for module in frozen.modules()] == before
    assert len(set(before)) == 2
