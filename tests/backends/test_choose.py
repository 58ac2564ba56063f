import json
import subprocess
import sys
from dataclasses import replace
from threading import Barrier

import pytest
import torch

import deepres
from deepres.backends.build import COMPILE_STEPS
from deepres.backends.choose import (
    SECONDS,
    Choice,
    Machine,
    cache_file,
    choose,
    describe_machine,
    describe_measurement,
    measured_speeds,
    prefer,
)
from deepres.backends.machine import num_cores
from deepres.errors import UserError
from deepres.models import build_model

CPU = torch.device("cpu")
WAYS = [("fused", "float32"), ("fused", "bfloat16"), ("eager", "float32"), ("eager", "bfloat16")]


def fresh():
    return build_model("resnet20", generator=torch.Generator())


@pytest.fixture(autouse=True)
def empty_cache(user_cache):
    return user_cache / "speed"


@pytest.fixture
def machine():
    """A machine on which steps take as long as the test says, by a clock of its own; noise comes at times."""

    class Bench:
        def __init__(self):
            self.now = 0.0
            self.steps = []
            self.images_per_second = {}
            self.fails = ()
            self.reasons = {}
            self.noise = lambda count: 1.0
            self.description = {"device": "a processor, 2 threads"}
            self.machine = Machine(
                precisions=lambda device: ["float32", "bfloat16"],
                why_not_fused=lambda model, device, precision, sizes: self.reasons.get(precision),
                build=self.build,
                describe=lambda device: self.description,
            )

        def build(self, backend, model, device, precision, capacity, notice):
            way = f"{backend} {precision}"
            if way in self.fails:
                raise RuntimeError("could not create a primitive")
            machine = self

            class Net:
                def forward_backward(self, images, labels):
                    assert len(images) <= capacity
                    machine.steps.append(way)
                    machine.now += len(images) / machine.images_per_second[way] * machine.noise(len(machine.steps))

            return Net()

        def choose(self, **settings):
            notices = []
            settings = {"precision": "auto", "backend": "auto", "num_steps": 10, "sizes": [32], **settings}
            settings |= {"machine": self.machine, "clock": lambda: self.now}
            return choose(fresh(), CPU, notice=notices.append, **settings), notices

    return Bench()


AMX_TODAY = {"fused float32": 1467, "fused bfloat16": 826, "eager float32": 483, "eager bfloat16": 760}
AMX_TILES = {**AMX_TODAY, "fused bfloat16": 2400}
EQUAL = {**AMX_TODAY, "fused bfloat16": 1500}
AUTOCAST = {**AMX_TODAY, "eager bfloat16": 3000}


@pytest.mark.parametrize(
    ("speeds", "precision", "backend"),
    [
        (AMX_TODAY, "float32", "fused"),
        (AMX_TILES, "bfloat16", "fused"),
        (EQUAL, "float32", "fused"),
        (AUTOCAST, "bfloat16", "eager"),
    ],
)
def test_the_fastest_is_chosen_and_said(machine, speeds, precision, backend):
    machine.images_per_second = speeds
    choice, notices = machine.choose()
    assert (choice.precision, choice.backend) == (precision, backend)
    assert machine.now <= SECONDS
    ordered = sorted(speeds.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{way} {speed:,}" for way, speed in ordered)
    assert notices == [f"precision {precision}, backend {backend}: measured {listed} images/s"]


@pytest.mark.parametrize("factor", [0.001, 0.01, 0.1, 0.5, 2, 10, 100])
def test_two_seconds_do_for_any_net_and_machine_that_makes_a_step_in_that_time(machine, factor):
    machine.images_per_second = {way: speed * factor for way, speed in AMX_TILES.items()}
    choice, _ = machine.choose()
    if factor >= 0.01:  # as ResNet-1202
        assert (choice.precision, choice.backend) == ("bfloat16", "fused")
        assert machine.now <= SECONDS
    assert choice.backend == "fused"


@pytest.mark.parametrize("seed", range(8))
def test_never_slower_than_the_best_by_more_than_a_tenth_whatever_else_the_machine_does(machine, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = 1 + torch.rand(10_000, generator=generator).mul(2).floor()  # every other step takes twice as long
    machine.noise = lambda count: float(noise[count])
    speeds = 200 + 2000 * torch.rand(4, generator=generator)
    machine.images_per_second = {" ".join(way): float(speed) for way, speed in zip(WAYS, speeds, strict=True)}
    choice, _ = machine.choose()
    chosen = machine.images_per_second[f"{choice.backend} {choice.precision}"]
    assert chosen > max(machine.images_per_second.values()) / 1.1


def test_it_is_measured_once(machine, empty_cache):
    machine.images_per_second = AMX_TODAY
    first = machine.choose()
    assert list(empty_cache.glob("*.json"))
    machine.images_per_second = AMX_TILES
    taken = len(machine.steps)
    assert machine.choose() == first
    assert len(machine.steps) == taken
    assert machine.choose(sizes=[24])[0].precision == "bfloat16"  # another size of image is measured anew


@pytest.mark.parametrize("change", [{"device": "another processor, 3 threads"}, {"cores": 77}])
def test_on_another_machine_or_version_it_is_measured_anew(machine, change):
    machine.images_per_second = AMX_TODAY
    machine.choose()
    machine.images_per_second = AMX_TILES
    machine.description |= change
    assert machine.choose()[0].precision == "bfloat16"


def test_what_a_machine_is_described_by(monkeypatch):
    monkeypatch.setenv("CXX", sys.executable)  # any program: nothing is compiled here
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "neon": False, "cpu_name": "a CPU"})
    described = describe_machine(CPU)
    num_threads = torch.get_num_threads()
    assert described.pop("kernels")
    assert described == {
        "device": f"a CPU, {num_threads} thread{'s' if num_threads > 1 else ''}",
        "capabilities": ["avx2"],
        "cores": num_cores(),
        "compiler": sys.executable,
        "torch": torch.__version__,
        "deepres": deepres.__version__,
    }


DAMAGE = [
    b"",
    b"nonsense",
    b"[]",
    b"\xff\xfe",
    b"{}",
    lambda content: {**content, "key": {}},
    lambda content: {**content, "images_per_second": {}},
    lambda content: {**content, "images_per_second": {"fused float16": 1e9}},
    lambda content: {**content, "images_per_second": {"eager float32": "fast"}},
    lambda content: {**content, "images_per_second": {"eager float32": -1.0}},
    lambda content: {**content, "images_per_second": {"eager float32": float("nan")}},
    lambda content: {**content, "images_per_second": [1.0, 2.0]},
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_measured_anew(machine, empty_cache, damage):
    machine.images_per_second = AMX_TODAY
    before = machine.choose()
    (path,) = empty_cache.glob("*.json")
    whole = path.read_bytes()
    path.write_bytes(json.dumps(damage(json.loads(whole))).encode() if callable(damage) else damage)
    assert machine.choose()[0].images_per_second == pytest.approx(before[0].images_per_second)
    assert json.loads(path.read_bytes())["images_per_second"] == pytest.approx(before[0].images_per_second)


def test_a_cache_that_cannot_be_written_does_no_harm(machine, tmp_path):
    (tmp_path / "cache").touch()
    machine.images_per_second = AMX_TODAY
    assert machine.choose()[0].backend == "fused"


@pytest.mark.parametrize("backend", ["fused", "compiled", "eager"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_asked_for_is_not_measured(machine, precision, backend):
    choice, notices = machine.choose(precision=precision, backend=backend)
    assert choice == Choice(precision, backend, {})
    assert str(choice) == f"precision {precision}, backend {backend}"
    assert notices == machine.steps == []


@pytest.mark.parametrize(
    ("asked", "precision", "backend"),
    [
        ({"precision": "bfloat16"}, "bfloat16", "fused"),
        ({"precision": "float32"}, "float32", "fused"),
        ({"backend": "eager"}, "bfloat16", "eager"),
        ({"backend": "compiled"}, "bfloat16", "compiled"),
        ({"backend": "fused"}, "float32", "fused"),
    ],
)
def test_what_is_left_open_is_measured(machine, asked, precision, backend):
    machine.images_per_second = AMX_TODAY
    choice, _ = machine.choose(**asked)
    assert (choice.precision, choice.backend) == (precision, backend)
    assert machine.steps


def test_without_kernels_torch_is_measured_and_compiled_for_a_long_run(machine, monkeypatch):
    machine.reasons = dict.fromkeys(("float32", "bfloat16"), "the processor lacks avx512_f")
    machine.images_per_second = AMX_TODAY
    lacking = "no fused kernels (the processor lacks avx512_f): going on without them, slower"
    monkeypatch.setenv("CXX", sys.executable)  # any program: nothing is compiled here
    choice, notices = machine.choose()
    assert (choice.precision, choice.backend) == ("bfloat16", "eager")
    assert notices[0] == lacking
    choice, _ = machine.choose(num_steps=COMPILE_STEPS)
    assert (choice.precision, choice.backend) == ("bfloat16", "compiled")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    choice, notices = machine.choose(num_steps=COMPILE_STEPS)
    assert choice.backend == "eager"
    assert "no C++ compiler found, which torch.compile needs: going on without it, slower" in notices
    with pytest.raises(UserError, match=r"fused kernels do not work here \(the processor lacks avx512_f\)"):
        machine.choose(backend="fused")


def test_kernels_of_all_precisions_are_compiled_at_the_same_time(machine):
    both = Barrier(2)

    def compile_together(model, device, precision, sizes):
        both.wait(timeout=60)
        return f"no kernels in {precision}"

    machine.machine = replace(machine.machine, why_not_fused=compile_together)
    machine.images_per_second = AMX_TODAY
    choice, notices = machine.choose()
    assert choice.backend == "eager"
    assert notices[0].startswith("no fused kernels (no kernels in float32)")


def test_kernels_of_one_precision_are_enough(machine):
    machine.reasons = {"bfloat16": "the processor lacks avx512_bf16"}
    machine.images_per_second = AMX_TODAY
    choice, notices = machine.choose()
    assert (choice.precision, choice.backend) == ("float32", "fused")
    assert len(notices) == 1
    assert "fused bfloat16" not in notices[0]


def test_a_way_that_fails_is_not_chosen(machine):
    machine.images_per_second = AMX_TILES
    machine.fails = ("fused bfloat16",)
    assert machine.choose()[0].precision == "float32"
    machine.fails = tuple(AMX_TILES)
    with pytest.raises(UserError, match=r"a training step of this net fails \(could not create a primitive"):
        machine.choose(sizes=[24])


def test_ties_go_to_the_first():
    assert prefer(WAYS, {}) == WAYS[0]
    assert prefer(WAYS, {"fused float32": 100.0, "fused bfloat16": 104.0}) == WAYS[0]
    assert prefer(WAYS, {"fused float32": 100.0, "fused bfloat16": 106.0}) == WAYS[1]
    assert prefer(WAYS, {"eager float32": 1.0}) == WAYS[2]


@pytest.mark.parametrize(
    ("capability", "asked", "precision"),
    [
        ((6, 1), "auto", "float32"),
        ((7, 5), "auto", "float16"),
        ((8, 0), "auto", "bfloat16"),
        ((9, 0), "auto", "bfloat16"),
        ((9, 0), "float32", "float32"),
    ],
)
def test_a_gpu_computes_in_the_narrowest_precision_that_suits_it(gpu, capability, asked, precision):
    gpu.capability = capability
    for backend, chosen in (("auto", "fused"), ("eager", "eager")):
        assert gpu.choose(precision=asked, backend=backend) == (Choice(precision, chosen, {}), [])


def test_a_gpu_computes_by_the_fused_kernels_where_there_are_some(gpu):
    for backend in ("auto", "fused"):
        gpu.asked = []
        assert gpu.choose(backend=backend) == (Choice("bfloat16", "fused", {}), [])
        assert gpu.asked == ["bfloat16"]
    gpu.reason = "Triton is missing"
    with pytest.raises(UserError, match=r"the fused kernels do not work here \(Triton is missing\)"):
        gpu.choose(backend="fused")
    notice = "no fused kernels (Triton is missing): going on without them, slower"
    assert gpu.choose() == (Choice("bfloat16", "eager", {}), [notice])


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an NVIDIA GPU, on which nothing can be measured."""

    class Gpu:
        capability = (9, 0)
        reason = None

        def __init__(self):
            self.asked = []

        def why_not_fused(self, model, device, precision, sizes):
            self.asked.append(precision)
            return self.reason

        def choose(self, **settings):
            notices = []
            settings = {"precision": "auto", "backend": "auto", "num_steps": 1, "sizes": [32], **settings}
            machine = Machine(why_not_fused=self.why_not_fused)
            return choose(fresh(), torch.device("cuda"), notice=notices.append, machine=machine, **settings), notices

    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: gpu.capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    return gpu


def test_the_model_and_the_random_numbers_are_left_alone():
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    choice = choose(model, CPU, precision="auto", backend="auto", num_steps=1, sizes=[32], notice=lambda _: None)
    assert choice.backend in ("fused", "eager")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    best = max(choice.images_per_second.values(), default=1.0)
    assert choice.images_per_second.get(f"{choice.backend} {choice.precision}", 1.0) * 1.1 > best


PROGRAM = """
import torch
from deepres.models import build_model
from deepres.backends import choose
torch.set_num_threads(1)
ways = [("eager", "float32"), ("eager", "bfloat16")]
print(choose.measured_speeds(build_model("resnet20"), torch.device("cpu"), ways, 16))
"""


def test_processes_that_start_together_measure_once():
    command = [sys.executable, "-c", PROGRAM]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate()[0] for process in processes)
    assert first == second
    assert "eager float32" in first


def test_a_lock_that_is_held_too_long_is_not_waited_for(machine):
    from filelock import FileLock

    machine.images_per_second = AMX_TODAY
    key = describe_measurement(fresh(), CPU, WAYS, 32, machine.machine)
    path = cache_file(key)
    path.parent.mkdir(parents=True)
    with FileLock(path.with_suffix(".lock")):
        speeds = measured_speeds(fresh(), CPU, WAYS, 32, machine.machine, clock=lambda: machine.now, lock_seconds=0.1)
    assert speeds == pytest.approx(AMX_TODAY)
