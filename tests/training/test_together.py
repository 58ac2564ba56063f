"""Several runs that take turns in one process, against the same runs alone."""

import gc
import shutil
import signal
from dataclasses import replace

import pytest
from tiny_run import tiny_recipe
from tiny_training import CPU, InterruptAt, assert_same_outcome, config, newest_step
from torch.overrides import TorchFunctionMode

from deepres.data.loader import TrainStream
from deepres.errors import UserError
from deepres.recipes.named import paper
from deepres.recipes.recipe import StepDecay
from deepres.runs.directory import RunDir
from deepres.training.stopping import InterruptedRun
from deepres.training.together import LostDeviceError, check_device, train_together
from deepres.training.train import Run, train
from deepres.training.trainer import DivergedError, Trainer

STEPS = 8
SHORT = replace(tiny_recipe(), name="short", epochs=None, steps=STEPS)  # beyond the first epoch's end
PLAIN = replace(paper(), name="plain", batch_size=16, steps=STEPS + 4, schedule=StepDecay((4, 9), 0.1))
WILD = replace(SHORT, name="wild", schedule=StepDecay((4,), 1e9))
CONFIGS = {
    "resnet": config(recipe=SHORT, backend="eager"),
    "plain": config(recipe=PLAIN, backend="eager", model="plain8", seed=1),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_data):
    """The runs of CONFIGS, one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    for name, made in CONFIGS.items():
        train(made, tiny_data, folder / name, device=CPU)
    return folder


def test_curves_are_drawn_when_no_run_waits_for_them(tmp_path, tiny_data):
    runs, early = runs_in(tmp_path, tiny_data), []
    train_together(runs, device=CPU, at_a_time=2, ended=lambda end: early.append(RunDir(end.run.path).curve.exists()))
    assert early == [False, False]
    assert all(RunDir(run.path).curve.exists() for run in runs)


def runs_in(folder, data, **reporters):
    return [
        Run(made, data, folder / name, **({"reporter": reporters[name]} if name in reporters else {}))
        for name, made in CONFIGS.items()
    ]


class Turns:
    """Reporters of several runs: which of them took a step, in order."""

    def __init__(self):
        self.order = []

    def of(self, name):
        reporter = InterruptAt(None)
        reporter.step = lambda state: self.order.append((name, state.step))
        return reporter


def test_runs_in_turns_leave_what_they_leave_alone_whatever_becomes_of_the_others(tmp_path, tiny_data, alone):
    """Two nets by two recipes, and beside them a run that diverges, one that is refused, and one that is finished."""
    shutil.copytree(alone / "resnet", tmp_path / "finished")
    turns, ended = Turns(), []
    two = runs_in(tmp_path, tiny_data, resnet=turns.of("resnet"), plain=turns.of("plain"))
    others = [
        Run(config(recipe=WILD, backend="eager"), tiny_data, tmp_path / "wild"),
        Run(replace(CONFIGS["resnet"], seed=3), tiny_data, tmp_path / "finished"),
        Run(CONFIGS["resnet"], tiny_data, tmp_path / "finished"),
    ]
    all_ended = train_together([*others, *two], device=CPU, at_a_time=3, checkpoint_minutes=0, ended=ended.append)
    assert ended == all_ended
    outcomes = {(end.run.path.name, end.run.config.seed): end for end in ended}
    assert len(outcomes) == 5
    assert isinstance(outcomes["wild", 0].error, DivergedError)
    assert "the last good checkpoint is" in str(outcomes["wild", 0].error)
    assert newest_step(tmp_path / "wild") >= 4
    assert "seed was 0, is 3" in str(outcomes["finished", 3].error)
    for name, seed in (("finished", 0), ("resnet", 0), ("plain", 1)):
        assert outcomes[name, seed].error is None
        assert_same_outcome(tmp_path / name, alone / name.replace("finished", "resnet"))
        assert outcomes[name, seed].result["steps"] == RunDir(tmp_path / name).read_metrics()[-1]["step"]
    both = [step for name, step in turns.order if name == "resnet"], [n for n, s in turns.order if s > 2]
    assert both[0] == list(range(1, STEPS + 1))
    assert both[1][: STEPS // 2] in (["resnet", "plain"] * (STEPS // 4), ["plain", "resnet"] * (STEPS // 4))


def test_a_signal_saves_all_runs_and_they_resume_exactly(tmp_path, tiny_data, alone):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    reporter, ended = InterruptAt(5), []
    runs = [*runs_in(tmp_path, tiny_data, resnet=reporter), Run(CONFIGS["plain"], tiny_data, tmp_path / "not begun")]
    with pytest.raises(InterruptedRun, match="stopped by SIGINT, state saved"):
        train_together(runs, device=CPU, at_a_time=2, ended=ended.append)
    assert [(end.run.path.name, type(end.error)) for end in ended] == [
        ("resnet", InterruptedRun),
        ("plain", InterruptedRun),
    ]
    assert newest_step(tmp_path / "resnet") == 5
    assert newest_step(tmp_path / "plain") in (4, 5)
    assert not (tmp_path / "not begun").exists()
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    reporter = InterruptAt(None)
    train_together(runs_in(tmp_path, tiny_data, resnet=reporter), device=CPU, at_a_time=2)
    assert f"resuming {tmp_path / 'resnet'} after step 5" in reporter.notices
    for name in CONFIGS:
        assert_same_outcome(tmp_path / name, alone / name)


def test_nothing_is_left_of_a_run_that_ended_when_the_next_begins(tmp_path, tiny_data):
    """Neither its net nor its images, whether it was finished or failed."""
    living = []

    class Looks(InterruptAt):
        def start(self, *_):
            living.append([type(thing) for thing in gc.get_objects() if type(thing) in (Trainer, TrainStream)])

    runs = [short_run(tmp_path / "one", tiny_data), failing_run(tmp_path / "fails", tiny_data)]
    runs.append(replace(short_run(tmp_path / "two", tiny_data), reporter=Looks(None)))
    ended = train_together(runs, device=CPU, at_a_time=1)
    assert [type(end.error) for end in ended] == [type(None), RuntimeError, type(None)]
    assert list(map(len, living)) == [2]  # of the run that looks
    assert not any(RunDir(end.run.path).in_use() for end in ended)


def short_run(path, data):
    return Run(CONFIGS["resnet"], data, path, max_steps=1)


def failing_run(path, data):
    """A run that fails as where a GPU does."""

    class Fails(InterruptAt):
        def step(self, state):
            raise RuntimeError("an illegal memory access was encountered")

    return replace(short_run(path, data), reporter=Fails(None))


class LosableDevice(TorchFunctionMode):
    """Once it is lost, every function of torch fails, as on a GPU after an access to memory that is not there."""

    lost = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")
        return func(*args, **(kwargs or {}))


def test_a_device_that_computes_no_more_ends_all_runs(tmp_path, tiny_data):
    device = LosableDevice()

    class Loses(InterruptAt):
        def step(self, state):
            device.lost = state.step == 2

    two = runs_in(tmp_path, tiny_data, resnet=Loses(None))
    with device, pytest.raises(LostDeviceError, match=r"cpu computes no more \(an illegal memory access"):
        train_together(two, device=CPU, at_a_time=2)
    for run in two:
        assert RunDir(run.path).recipe.exists()
        assert not RunDir(run.path).in_use()
        assert not RunDir(run.path).result.exists()


def test_an_error_of_the_user_says_nothing_of_the_device():
    with LosableDevice() as device:
        device.lost = True
        check_device(CPU, UserError("another configuration was begun there"))
        with pytest.raises(LostDeviceError):
            check_device(CPU, RuntimeError("an illegal memory access was encountered"))
