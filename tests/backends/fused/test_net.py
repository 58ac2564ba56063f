import copy
import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepres.backends.device import find_compiler
from deepres.backends.fused import build as kernels
from deepres.backends.fused.build import SIZES, Input, KernelsUnavailable, Layer, load_kernels, why_no_tiles
from deepres.backends.fused.net import FusedNet, why_unsupported
from deepres.models import build_model

CPU = torch.device("cpu")
# The largest relative error (of norms) of what is stored in a precision, and of what is summed in float32 from it.
ROUNDING = {"float32": 1e-6, "bfloat16": 3e-3}
SUMMING = 3e-5


def reason_for(precision):
    try:
        load_kernels(precision)
    except KernelsUnavailable as error:
        return str(error)
    return None


def parameter(precision):
    reason = reason_for(precision)
    return pytest.param(precision, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


PRECISIONS = [parameter("float32"), parameter("bfloat16")]
# What computes matrix products: vectors, AMX's tiles, or the tiles' scalar twin, which runs where AMX does not.
VARIANTS = [
    pytest.param("float32", "none", marks=parameter("float32").marks),
    pytest.param("bfloat16", "none", marks=parameter("bfloat16").marks),
    pytest.param("bfloat16", "scalar", marks=parameter("bfloat16").marks),
    pytest.param("bfloat16", "amx", marks=pytest.mark.skipif(why_no_tiles() is not None, reason=str(why_no_tiles()))),
]
needs_float32 = pytest.mark.skipif(reason_for("float32") is not None, reason=str(reason_for("float32")))


def error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference in units of the expected norm."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def batch(num_images: int, num_classes: int = 10, seed: int = 0, size: int = 32) -> tuple[Tensor, Tensor]:
    """Smooth images, so that gradients are not all noise, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(num_images, 3, 8, 8, generator=generator), size=size, mode="bilinear")
    return images, torch.randint(num_classes, (num_images,), generator=generator)


def make_model(name: str, **options: int) -> nn.Module:
    """A net whose batch normalisations do not all start alike."""
    generator = torch.Generator().manual_seed(1)
    model = build_model(name, generator=generator, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    return model


def reference_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """The same step by autograd on a copy: the copy with its gradients, and the loss."""
    model = copy.deepcopy(model).to(dtype).train()
    loss = F.cross_entropy(model(images.to(dtype)), labels)
    loss.backward()
    return model, loss.detach()


@pytest.fixture
def num_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


SHAPES = [(16, 16, 1), (16, 32, 1), (32, 32, 2), (32, 64, 2), (64, 64, 4)]  # channels in and out, image size / size
LAYERS = [(*shape, kind) for shape in SHAPES for kind in (None, "identity", "subsampled")]
LAYERS = [layer for layer in LAYERS if layer[0] != 16 or layer[3] != "subsampled"]  # nothing is before the first stage


@pytest.mark.parametrize(("precision", "tiles"), VARIANTS)
@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize(("in_channels", "out_channels", "shrinkage", "shortcut_kind"), LAYERS)
def test_a_layer_agrees_with_autograd(
    precision, tiles, image_size, in_channels, out_channels, shrinkage, shortcut_kind
):
    library, dtype, num_images = load_kernels(precision, image_size, tiles), getattr(torch, precision), 9
    size = image_size // shrinkage
    out_size = size * in_channels // out_channels
    generator = torch.Generator().manual_seed(2)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    def stored(tensor):
        """As activations are stored: rounded, channels last."""
        return tensor.permute(0, 2, 3, 1).contiguous().to(dtype)

    def as_double(tensor):
        return tensor.permute(0, 3, 1, 2).double()

    weight, scale, shift = random(out_channels, in_channels, 3, 3) * 0.1, random(in_channels), random(in_channels)
    norm_weight = random(out_channels)
    raw = stored(random(num_images, in_channels, size, size))
    output = torch.zeros(num_images, out_size, out_size, out_channels, dtype=dtype)
    grad, input_grad = torch.zeros_like(output), torch.zeros_like(raw)
    grad.copy_(random(*grad.shape))
    previous_sums, sums = torch.zeros(num_images, 2, in_channels), torch.zeros(num_images, 2, out_channels)
    packed = torch.zeros(2, library.packed_size(in_channels, out_channels), dtype=dtype)
    vectors = torch.zeros(12, out_channels)
    weight_grad, chunk_grads = torch.zeros_like(weight), torch.zeros(library.chunk_grads_size())
    tracked = torch.zeros((), dtype=torch.int64)

    shortcut, added = None, torch.zeros(())
    if shortcut_kind == "identity":
        shortcut = stored(random(num_images, in_channels, size, size))
        added = as_double(shortcut)
    elif shortcut_kind == "subsampled":
        shortcut = stored(random(num_images, in_channels // 2, 2 * size, 2 * size))
        added = F.pad(as_double(shortcut)[:, :, ::2, ::2], (0, 0, 0, 0, 0, in_channels // 2))
    values = None if shortcut is None else torch.zeros_like(raw)

    previous = Layer(
        output=raw.data_ptr(), sums=previous_sums.data_ptr(), scale=scale.data_ptr(), shift=shift.data_ptr()
    )
    names = "norm_bias norm_weight_grad norm_bias_grad running_mean running_var scale shift mean inverse_std a b c"
    layer = Layer(
        in_channels=in_channels,
        out_channels=out_channels,
        input=Input(
            ctypes.addressof(previous),
            None if shortcut is None else shortcut.data_ptr(),
            0 if shortcut is None else shortcut.shape[3],
            None if values is None else values.data_ptr(),
        ),
        output=output.data_ptr(),
        forward_weight=packed[0].data_ptr(),
        backward_weight=packed[1].data_ptr(),
        sums=sums.data_ptr(),
        weight=weight.data_ptr(),
        norm_weight=norm_weight.data_ptr(),
        weight_grad=weight_grad.data_ptr(),
        num_batches_tracked=tracked.data_ptr(),
        eps=1e-5,
        momentum=0.1,
        **{name: vector.data_ptr() for name, vector in zip(names.split(), vectors, strict=True)},
    )
    address = ctypes.addressof(layer)
    library.pack_weights((ctypes.c_void_p * 1)(address), 1, 1)
    library.layer_forward(address, num_images, True, 1)

    # The input, from what is stored.
    x = as_double(raw) * scale.double()[:, None, None] + shift.double()[:, None, None] + added
    x = x.relu()
    if values is not None:
        assert error(as_double(values), x) < ROUNDING[precision]
        x = as_double(values)
    else:
        x = as_double(stored(x))
    # The convolution and the sums for the statistics.
    x.requires_grad_()
    w = weight.to(dtype).double().requires_grad_()
    y = F.conv2d(x, w, stride=size // out_size, padding=1)
    assert error(as_double(output), y) < ROUNDING[precision]
    assert error(sums[:, 0], y.sum((2, 3))) < SUMMING
    assert error(sums[:, 1], (y * y).sum((2, 3))) < SUMMING

    # Backward: through batch normalisation's affine form, convolution, shortcut and ReLU.
    g = as_double(grad)
    sums[:, 0], sums[:, 1] = g.sum((2, 3)), (g * as_double(output)).sum((2, 3))
    shortcut_grad = torch.zeros_like(output).copy_(random(*output.shape))
    library.layer_backward(
        address,
        num_images,
        grad.data_ptr(),
        shortcut_grad.data_ptr(),
        input_grad.data_ptr(),
        chunk_grads.data_ptr(),
        1,
    )
    a, b, c = (vector.double()[:, None, None] for vector in vectors[-3:])
    output_grad = as_double(stored(g * a + as_double(output) * b + c))
    x_grad, w_grad = torch.autograd.grad(y, (x, w), output_grad)
    x_grad[:, :, :: size // out_size, :: size // out_size] += as_double(shortcut_grad)[:, :in_channels]
    x_grad *= x > 0
    # Single values that lie between two numbers of bfloat16 may be rounded either way, in either computation.
    tolerance = SUMMING if precision == "float32" else 1e-3
    assert error(weight_grad, w_grad) < tolerance
    assert error(as_double(input_grad), x_grad) < ROUNDING[precision]
    assert error(previous_sums[:, 0], x_grad.sum((2, 3))) < tolerance
    assert error(previous_sums[:, 1], (x_grad * as_double(raw)).sum((2, 3))) < tolerance


@pytest.mark.parametrize(("precision", "tiles"), VARIANTS)
def test_relu_lets_nan_pass(precision, tiles, monkeypatch):
    monkeypatch.setattr("deepres.backends.fused.net.load_kernels", lambda p, s=32: load_kernels(p, s, tiles))
    model = make_model("resnet20")
    with torch.no_grad():
        model.get_submodule("bn1").weight[3] = float("nan")
    net, (images, labels) = FusedNet(model, precision, 4), batch(4)
    loss, _ = net.forward_backward(images, labels)
    assert loss.isnan()
    assert model.get_submodule("conv1").weight.grad.isnan().any()
    assert net.logits(images).isnan().all()


def distance_from_kinks(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> float:
    """The smallest absolute value that enters a ReLU."""
    smallest = []

    def relu(x: Tensor) -> Tensor:
        smallest.append(float(x.abs().min()))
        return x.clamp_min(0)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(F, "relu", relu)
        copy.deepcopy(model).double().train()(images.double())
    return min(smallest)


@needs_float32
@pytest.mark.parametrize(
    ("name", "size", "tolerance"),
    [
        ("plain20", 32, 0.02),
        ("resnet20", 32, 5e-5),
        ("resnet20", 24, 5e-5),
        ("resnet20", 16, 5e-5),
        ("resnet32", 32, 5e-5),
    ],
)
def test_float32_nets_agree_with_autograd(name, size, tolerance, monkeypatch):
    model = make_model(name)
    # A ReLU whose input rounds to the other side of zero moves gradients by up to a percent, so choose images that are
    # far from that; there are half a million ReLUs. In the plain net errors grow from layer to layer, and none are
    # far enough.
    batches = [batch(2, seed=seed, size=size) for seed in range(20)]
    images, labels = max(batches, key=lambda pair: distance_from_kinks(model, pair[0], monkeypatch))
    exact, exact_loss = reference_step(model, images, labels, torch.float64)
    loss, wrong = FusedNet(model, "float32", 32).forward_backward(images, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-5)
    with torch.no_grad():
        predictions = copy.deepcopy(exact).train()(images.double()).argmax(dim=1)
    assert int(wrong) == int((predictions != labels).sum())
    for (key, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert error(p.grad, q.grad) < tolerance, key
    for (key, found), expected in zip(model.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("precision", [parameter("bfloat16")])
@pytest.mark.parametrize(("name", "size"), [("plain20", 32), ("resnet20", 32), ("resnet20", 24), ("resnet20", 16)])
def test_bfloat16_gradients_are_as_good_as_autocast(precision, name, size):
    model = make_model(name)
    images, labels = batch(48, size=size)
    exact, exact_loss = reference_step(model, images, labels, torch.float64)
    autocast = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        logits = autocast(images)
    F.cross_entropy(logits.float(), labels).backward()
    loss, _ = FusedNet(model, precision, 48).forward_backward(images, labels)
    assert float(loss) == pytest.approx(float(exact_loss), rel=0.02)

    def gradient(net):
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    assert error(gradient(model), gradient(exact)) < 1.3 * error(gradient(autocast), gradient(exact))
    for (key, p), q, t in zip(model.named_parameters(), exact.parameters(), autocast.parameters(), strict=True):
        assert error(p.grad, q.grad) < 0.01 + 2.5 * error(t.grad, q.grad), key


@needs_float32
@pytest.mark.parametrize("num_images", [1, 7, 128])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_number_of_images_and_classes(num_images, memory_format):
    model = make_model("resnet20", num_classes=13)
    images, labels = batch(num_images, num_classes=13)
    torchs, torch_loss = reference_step(model, images, labels, torch.float32)
    net = FusedNet(model, "float32", 128)
    loss, _ = net.forward_backward(images.to(memory_format=memory_format), labels)
    assert float(loss) == pytest.approx(float(torch_loss), rel=1e-4)
    for (key, p), q in zip(model.named_parameters(), torchs.named_parameters(), strict=True):
        assert error(p.grad, q[1].grad) < 0.02, key


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["plain20", "resnet20"])
def test_logits_are_those_of_evaluation(precision, name):
    model = make_model(name, num_classes=7)
    net = FusedNet(model, precision, 8)
    net.forward_backward(*batch(8, num_classes=7))  # moves the running statistics
    images, _ = batch(19, seed=5)  # in pieces of 8, 8 and 3
    logits = net.logits(images)
    with torch.no_grad():
        expected = model.eval()(images)
    assert logits.dtype == torch.float32
    assert logits.shape == (19, 7)
    assert error(logits, expected) < {"float32": 1e-5, "bfloat16": 0.02}[precision]
    assert net.logits(images[:0]).shape == (0, 7)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_results_depend_on_neither_threads_nor_capacity_nor_run(precision, num_threads):
    images, labels = batch(21)
    results = []
    for threads, capacity in ((1, 21), (1, 21), (2, 21), (2, 40)):
        num_threads(threads)
        model = make_model("resnet20")
        net = FusedNet(model, precision, capacity)
        for size in (32, 24):  # leave their traces in the buffers
            net.forward_backward(*batch(17, seed=9, size=size))
        loss, _ = net.forward_backward(images, labels)
        grads = [p.grad for p in model.parameters()]
        results.append([loss, net.logits(images), *grads, *model.buffers()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_float32
def test_steps_follow_those_of_torch():
    model = make_model("resnet20")
    torchs = copy.deepcopy(model)
    net = FusedNet(model, "float32", 16)
    optimizers = [
        torch.optim.SGD(m.parameters(), 0.02, momentum=0.9, nesterov=True, fused=True) for m in (model, torchs)
    ]
    for step, size in enumerate((16, 24, 24, 32, 16)):
        images, labels = batch(16, seed=step, size=size)
        loss, _ = net.forward_backward(images, labels)
        expected = F.cross_entropy(torchs(images), labels)
        expected.backward()
        assert float(loss) == pytest.approx(expected.item(), rel=0.01)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert int(model.bn1.num_batches_tracked) == 5


@needs_float32
def test_weights_may_change_in_place_but_not_be_replaced():
    model, other = make_model("resnet20").to(memory_format=torch.channels_last), build_model("resnet20")
    net = FusedNet(model, "float32", 4)
    images, labels = batch(4)
    model.load_state_dict(other.state_dict())
    with torch.no_grad():
        assert error(net.logits(images), other.eval()(images)) < 1e-5
    model.layer1[0].bn1.weight.data = torch.ones(16)
    with pytest.raises(RuntimeError, match="has been replaced: build another FusedNet"):
        net.forward_backward(images, labels)


@needs_float32
def test_bad_arguments_are_refused():
    net = FusedNet(build_model("resnet20"), "float32", 4)
    images, labels = batch(4)
    for bad_images, bad_labels, message in (
        (images[:0], labels[:0], "0 images: it must be 1 to 4"),
        (images.repeat(2, 1, 1, 1), labels.repeat(2), "8 images: it must be 1 to 4"),
        (images.double(), labels, r"float64 \(4, 3, 32, 32\) on cpu: they must be float32"),
        (images[..., :16], labels, "images are"),
        (
            images[..., :8, :8],
            labels,
            r"\(4, 3, 8, 8\) on cpu: they must be float32 \(B, 3, S, S\) on cpu, S one of 16",
        ),
        (images, labels.int(), "labels are torch.int32"),
        (images, labels[:3], "labels are"),
        (images, labels + 10, "a label is none of the classes 0 to 9"),
        (images, labels - 10, "a label is none of the classes 0 to 9"),
    ):
        with pytest.raises(ValueError, match=message):
            net.forward_backward(bad_images, bad_labels)
    with pytest.raises(ValueError, match="capacity is 0"):
        FusedNet(build_model("resnet20"), "float32", 0)


def test_what_has_no_kernels_is_told():
    resnet20 = build_model("resnet20")
    assert why_unsupported(resnet20, CPU, "float32") is None
    assert why_unsupported(build_model("plain20"), CPU, "bfloat16") is None
    for model, device, precision, reason in (
        (build_model("resnet20", option="B"), CPU, "float32", "shortcut option B"),
        (build_model("resnet20", option="C"), CPU, "float32", "shortcut option C"),
        (nn.Linear(1, 1), CPU, "float32", "a Linear"),
        (resnet20, torch.device("cuda"), "float32", "device 'cuda'"),
        (resnet20, CPU, "float16", "precision 'float16'"),
    ):
        assert reason in why_unsupported(model, device, precision)
    with pytest.raises(KernelsUnavailable, match="shortcut option B"):
        FusedNet(build_model("resnet20", option="B"), "float32", 4)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "deepres" / "kernels"


def make_compiler(path, monkeypatch, body):
    """A compiler that tells its version and then does what the shell commands of `body` say."""
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.0 && exit 0\n{body}\n')
    path.chmod(0o755)
    monkeypatch.setattr(kernels, "find_compiler", lambda: str(path))


@needs_float32
def test_why_there_are_no_kernels(tmp_path, monkeypatch, empty_cache):
    with pytest.raises(KernelsUnavailable, match="no kernels of precision 'float16'"):
        load_kernels("float16")

    include = "In file included from kernels.cpp:3:"
    make_compiler(tmp_path / "cc", monkeypatch, f"echo '{include}' >&2; echo 'x.h:1: error: no' >&2; exit 1")
    with pytest.raises(KernelsUnavailable, match=r"cc failed: x\.h:1: error: no$"):
        load_kernels("float32")
    make_compiler(tmp_path / "cc", monkeypatch, "exit 3")
    with pytest.raises(KernelsUnavailable, match=r"cc failed: exit code 3$"):
        load_kernels("float32")
    assert list(empty_cache.iterdir()) == []  # nothing half-built
    make_compiler(tmp_path / "cc", monkeypatch, 'for last; do :; done; echo nonsense > "$last"')
    with pytest.raises(KernelsUnavailable, match="the compiled kernels do not load: "):
        load_kernels("float32")

    monkeypatch.setattr(kernels, "find_compiler", lambda: str(tmp_path / "absent"))
    with pytest.raises(KernelsUnavailable, match="absent does not run: No such file"):
        load_kernels("float32")
    monkeypatch.setattr(kernels, "find_compiler", lambda: None)
    with pytest.raises(KernelsUnavailable, match=r"there is no C\+\+ compiler"):
        load_kernels("float32")
    avx512 = dict.fromkeys(("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"), True)
    for capabilities, precision, lacking in (
        ({"avx2": True, "avx512_f": True}, "float32", "fma3"),
        ({}, "float32", "avx2, fma3"),
        ({"avx2": True, "fma3": True}, "bfloat16", "avx512_f, avx512_bw, avx512_vl, avx512_dq, avx512_bf16"),
        (avx512, "bfloat16", "avx512_bf16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        with pytest.raises(KernelsUnavailable, match=f"the processor lacks {lacking}$"):
            load_kernels(precision)
    for enough in ({"avx2": True, "fma3": True}, avx512):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=enough: found)
        with pytest.raises(KernelsUnavailable, match=r"there is no C\+\+ compiler"):
            load_kernels("float32")


@pytest.mark.skipif(find_compiler() is None or platform.machine() != "x86_64", reason="no C++ compiler for x86-64")
@pytest.mark.parametrize(
    ("processor", "precision", "size"),
    [("haswell", "float32", 32), ("skylake-avx512", "float32", 24), ("cooperlake", "bfloat16", 24)],
)
def test_the_kernels_compile_for_every_processor(processor, precision, size, tmp_path):
    flags = [flag for flag in kernels.FLAGS if flag not in ("-O3", "-march=native")]
    command = [
        find_compiler(),
        *flags,
        f"-march={processor}",
        *kernels.PRECISION_FLAGS[precision],
        f"-DDEEPRES_SIZE={size}",
    ]
    subprocess.run([*command, str(kernels.SOURCE), "-o", str(tmp_path / "kernels.so")], check=True)


@needs_float32
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kernels, "user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(KernelsUnavailable, match=r"cannot write to .*file.*: Not a directory"):
        load_kernels("float32")


@needs_float32
def test_two_processes_may_build_at_once(tmp_path):
    program = (
        "from deepres.backends.fused.build import load_kernels; print(load_kernels('float32').chunk_grads_size())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sizes = [int(process.communicate()[0]) for process in processes]
    assert sizes[0] == sizes[1] > 0
    if sys.platform == "linux":
        assert len(list((tmp_path / "deepres" / "kernels").iterdir())) == 1
