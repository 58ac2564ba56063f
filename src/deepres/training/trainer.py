"""The training loop's state and its single step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepres.backends.build import build_backend
from deepres.backends.device import fix_rounding, replays_graphs, resumes_exactly
from deepres.backends.fused.agreement import NUM_IMAGES
from deepres.data.loader import Choice, TrainStream
from deepres.errors import UserError
from deepres.models import ResNet
from deepres.recipes.recipe import Recipe
from deepres.training.average import RunningMean
from deepres.training.fast_images import use_fast_images
from deepres.training.graph import CudaRecorder, Record, Replays
from deepres.training.group import Group
from deepres.training.look_ahead import looking_ahead
from deepres.training.losses import WINDOW, Losses
from deepres.training.nets import Net, build_net
from deepres.training.optimizers import build_optimizers
from deepres.training.schedule import SlowStartGate, learning_rate
from deepres.training.start import chain_length, start_chain
from deepres.training.stopping import StopRequest
from deepres.training.trained_start import TrainedStart
from deepres.weights.evaluate import EVAL_BATCH, percent, predict_logits


class DivergedError(UserError):
    """The training itself went wrong: a loss or a weight is not finite."""

    exit_code = 1


@dataclass
class RunningTotals:
    """What has been seen since the epoch began: the running training loss and error, over augmented images."""

    loss: float = 0.0
    """Cross-entropy in nats, summed over images."""
    wrong: int = 0
    images: int = 0

    @property
    def mean_loss(self) -> float:
        """Nats per image."""
        return self.loss / self.images if self.images else float("nan")

    @property
    def error(self) -> float:
        """Percent."""
        return percent(self.wrong, self.images) if self.images else float("nan")


class Trainer:
    """A net in training. `advance` takes one step; `state` and `load_state` are what a checkpoint holds.

    What a step computes, `_compute`, reads and writes only tensors that stay where they are, into which `advance` puts
    the step's images, crops, flips, mixtures and rates. So an NVIDIA GPU records it once for each size of image and
    replays it. Nets, optimizers and augmentations of others are not recorded: their Python code may do something else
    at each step.

    Args:
        name: the net, by name or as one's own, see `deepres.training.nets`.
        option: its kind of shortcut.
        recipe: how it is trained.
        seed: gives the initial weights; the stream has its own copy.
        stream: the mini-batches.
        total_steps: the length of the schedule.
        device: where to compute.
        precision: "float32", "bfloat16" or "float16".
        backend: what computes, see `deepres.backends.torch_backend`.
        notice: is given lines for the user.
        fall_back: whether plain torch takes the place of fused kernels that do not compute this net.
        group: the processes among which each mini-batch is divided; all of them hold the same state.
        num_classes: of the labels.
        start: trained weights to begin with, all but the last layer's; None: fresh ones.
        record: records a step to replay it; None: by CUDA graphs, on devices that replay them.
    """

    def __init__(
        self,
        *,
        name: Net,
        option: str,
        recipe: Recipe,
        seed: int,
        stream: TrainStream,
        total_steps: int,
        device: torch.device,
        precision: str,
        backend: str,
        notice: Callable[[str], None],
        fall_back: bool = False,
        group: Group | None = None,
        num_classes: int = 10,
        start: TrainedStart | None = None,
        record: Record | None = None,
    ) -> None:
        if device.type != "cpu":
            fix_rounding()
        # Every backend but the fused one takes any module, and that one looks for itself.
        model = cast(ResNet, build_net(name, option=option, seed=seed, num_classes=num_classes).to(device))
        length = chain_length(model)
        recipe = recipe.for_chain(length)
        if recipe.chain:
            start_chain(recipe.chain, model, length)
        if start is not None:
            start.copy_into(model)
        sizes = [None, *recipe.for_images_of(stream.images.shape[-1]).small_sizes]
        self.backend = build_backend(
            backend,
            model,
            device,
            precision,
            stream.batch_size,
            notice,
            examples=stream.examples(NUM_IMAGES, sizes) if backend == "fused" else (),
            fall_back=fall_back,
        )
        self.model = model
        on_cpu = device.type == "cpu"
        kernels = precision if on_cpu and self.backend.name == "fused" else None
        self.optimizers = build_optimizers(recipe, model, stacked=not on_cpu, kernels=kernels)
        self.look_ahead = looking_ahead(recipe.look_ahead, model)
        self.mean = None if recipe.ema is None else RunningMean(model, recipe.ema)
        self.recipe = recipe
        self.device = device
        self._precision = precision
        self.stream = self._adopted(stream)
        self.total_steps = total_steps
        self.group = group or Group()
        self.slow_start = SlowStartGate(recipe.slow_start, getattr(model, "depth", 0))
        self.totals = RunningTotals()
        self.step = 0  # steps taken
        self.learning_rate = 0.0  # of the last step taken
        self.stop = StopRequest()
        self._stop_agreed = False
        self.last_checkpoint: str | None = None
        share = self.group.share(stream.batch_size)
        self._choice = Choice.blank(share.stop - share.start, stream.images.device, mixed=stream.is_mixed_by_choice)
        self._losses = Losses(device, 1 if device.type == "cpu" else WINDOW)
        same = isinstance(name, str) and recipe.optimizer is None and stream.is_made_by_choice
        if record is None and same and replays_graphs(device):
            record = CudaRecorder(device)
        self._replays = Replays(record if same else None, notice)
        self._evaluated: dict[torch.Size, tuple[Tensor, Tensor]] = {}  # images and logits of recorded evaluations

    def advance(self) -> None:
        """Take one step."""
        scheduled = learning_rate(self.recipe, self.step, self.total_steps)
        self.learning_rate = self.slow_start.rate(scheduled)
        for optimizer in self.optimizers:
            optimizer.set_rate(self.learning_rate, self.recipe.learning_rate)
        if self.look_ahead is not None:
            self.look_ahead.set_reach(self.step, self.total_steps, self.learning_rate / self.recipe.learning_rate)
        self._choice.load(self.stream.choose(self.step, self.group.share(self.stream.batch_size)))
        size = self.stream.image_size(self.step)
        self._replays.run(size, partial(self._compute, self.step), self._changed)
        if self.mean is not None:
            self.mean.update()

        self.step += 1
        self._add(self._losses.push())
        if self.slow_start.open:  # when it ends is the next step's business
            self.read_losses()

    def _compute(self, step: int) -> None:
        """Compute a step of the choice at hand."""
        images, labels = self.stream.make(self._choice, step)
        loss, wrong = self.backend.forward_backward(images, labels)
        if self.group.size > 1:
            loss, wrong = self._sum_over_group(loss, wrong, len(labels))
        self.update()
        torch.stack([loss, wrong.to(loss.dtype)], out=self._losses.latest)

    def _changed(self) -> list[Tensor]:
        """Return the tensors that a step reads and changes."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [tensor for optimizer in self.optimizers for tensor in optimizer.tensors()]
        return tensors if self.look_ahead is None else tensors + self.look_ahead.tensors()

    @property
    def resumes_exactly(self) -> bool:
        """See `deepres.backends.device.resumes_exactly`."""
        return resumes_exactly(self.device, self.backend.name)

    def use_stream(self, stream: TrainStream) -> None:
        """Take the mini-batches of another stream from now on, of as many images."""
        self.stream = self._adopted(stream)
        self._replays.clear()

    def _adopted(self, stream: TrainStream) -> TrainStream:
        """Return a stream, whose images the fused kernels make where they compute on this CPU."""
        if self.backend.name == "fused" and self.device.type == "cpu":
            use_fast_images(stream, self._precision)
        return stream

    def update(self) -> None:
        """Change the parameters by their gradients, and clear these."""
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.look_ahead is not None:
            self.look_ahead.move()

    def _sum_over_group(self, loss: Tensor, wrong: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        """Put the whole mini-batch's gradients into the parameters, and mean running statistics into the buffers.

        Batch statistics themselves remain those of each share, as on the paper's two GPUs.
        """
        share = num_images / self.stream.batch_size
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        scalars = torch.stack([loss * share, wrong.float(), torch.tensor(float(self.stop.signal_number is not None))])
        for gradient in gradients:
            gradient.mul_(share)
        for statistic in statistics:
            statistic.div_(self.group.size)
        self.group.sum_([*gradients, *statistics, scalars])
        self._stop_agreed = bool(scalars[2])
        return scalars[0], scalars[1].long()

    @property
    def must_stop(self) -> bool:
        """True after the step at which this process, or in a group all of them, stop on request."""
        return self._stop_agreed if self.group.size > 1 else self.stop.signal_number is not None

    def read_losses(self) -> None:
        """Bring the running totals up to date, which on a GPU are up to two windows behind.

        Raises:
            DivergedError: a loss is not finite.
        """
        self._add(self._losses.flush())

    def _add(self, outcomes: list[tuple[float, int]]) -> None:
        """Add losses and errors of steps, the oldest first, to the running totals."""
        last = self.step - self._losses.num_unread
        for step, (loss, wrong) in enumerate(outcomes, last - len(outcomes) + 1):
            if not math.isfinite(loss):
                seen = "" if step == self.step else f" (seen after step {self.step})"
                raise self._diverged(f"the loss is {loss} at step {step}{seen}")
            self.totals.loss += loss * self.stream.batch_size
            self.totals.wrong += wrong
            self.totals.images += self.stream.batch_size
            self.slow_start.record(wrong, self.stream.batch_size)

    def _diverged(self, what: str) -> DivergedError:
        where = f"the last good checkpoint is {self.last_checkpoint}" if self.last_checkpoint else "no checkpoint yet"
        return DivergedError(f"training diverged: {what}, learning rate {self.learning_rate:g}; {where}")

    @property
    def epochs_done(self) -> int:
        """Whole passes over the training images."""
        return self.step * self.stream.batch_size // len(self.stream.images)

    @property
    def at_epoch_end(self) -> bool:
        """True if the last step completed a pass over the training images."""
        before = (self.step - 1) * self.stream.batch_size // len(self.stream.images)
        return self.step > 0 and self.epochs_done > before

    def start_epoch(self) -> None:
        """Count training loss and error from zero."""
        self.read_losses()
        self.totals = RunningTotals()

    def evaluate(self, images: Tensor, batch_size: int = EVAL_BATCH) -> Tensor:
        """Return the logits of uint8 images (N, 3, H, W) in the run's own precision: float32 (N, num_classes).

        They are computed from so many images at a time. The processes of the group divide the images among themselves;
        each returns all logits.
        """
        share = self.group.share(len(images))
        part = predict_logits(self._logits, images[share], self.stream.normalization, batch_size)
        logits = part.new_zeros(len(images), part.shape[1])
        logits[share] = part
        self.group.sum_([logits])
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        """Return the backend's logits: where steps are recorded, so are these, from the second batch of a shape on."""
        if not self._replays.recording:
            return self.backend.logits(images)
        if images.shape not in self._evaluated:
            logits = self.backend.logits(images)
            with torch.inference_mode(False):
                self._evaluated[images.shape] = torch.empty_like(images), torch.empty_like(logits)
            return logits
        static_images, static_logits = self._evaluated[images.shape]

        def compute() -> None:
            static_logits.copy_(self.backend.logits(static_images))

        static_images.copy_(images)
        self._replays.run(images.shape, compute, lambda: [])
        return static_logits.clone()

    def state(self) -> dict[str, Any]:
        """Return everything that the next step depends on.

        No generator is among it: the batches depend on the seed and the step alone.

        Raises:
            DivergedError: a loss or a weight is not finite.
        """
        self.read_losses()
        weights = self.model.state_dict()
        if not torch.stack([torch.isfinite(tensor).all() for tensor in weights.values()]).all():
            raise self._diverged(f"a weight is not finite after step {self.step}")
        return {
            "step": self.step,
            "model": weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "slow_start": self.slow_start.state(),
            "totals": [self.totals.loss, self.totals.wrong, self.totals.images],
            "learning_rate": self.learning_rate,
            **({} if self.look_ahead is None else {"look_ahead": self.look_ahead.state_dict()}),
            **({} if self.mean is None else {"mean": self.mean.state_dict()}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; the next step is then what it would have been, see `resumes_exactly`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.slow_start.load_state(state["slow_start"])
        self.totals = RunningTotals(*state["totals"])
        self.learning_rate = state["learning_rate"]
        if self.look_ahead is not None:
            self.look_ahead.load_state_dict(state["look_ahead"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
