"""A local epoch as one batch of Lightning's: its loops once an epoch instead of once a step, on a GPU no host at all.

It trains a `ClassificationModule`, of any network and optimizer. It keeps `on_before_optimizer_step` of the callbacks
and the Trainer's precision and device; a captured step repeats what they did on the device, not their Python. Hooks
around single batches, schedulers, gradient clipping and accumulation are for `executor.whole_epochs=false`, and so is a
module with a training of its own.

Note [Replayed steps]
~~~~~~~~~~~~~~~~~~~~~
A CUDA graph repeats a step on the same memory, so everything a step reads must lie where it lay when it was captured:

- The batch is copied into `held`. Each shape of a batch has a graph of its own, and each `variant` of the corrections.
- The weights are the module's own; each client's state is copied into them.
- The optimizer is kept, since the graph holds the memory of its moments. A fresh optimizer is the same with all moments
  zero and the fresh learning rate copied into the tensor that the step reads. Hence two refusals: with dampening SGD's
  first step differs (zeros are no fresh start), and only fused optimizers read the rate from a tensor.
- Anchors and offsets of the corrections are copied by `GradientCorrection` to where they were before.

Capturing takes steps to warm up, which change weights and moments: both are copied before and put back after, and
moments that did not exist before are set to zero. Random numbers of those steps are drawn from a fork.
"""

from collections.abc import Callable, Hashable, Iterator

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from fedpara.data.examples import Batch, Batches, EpochBatches
from fedpara.execution.local import LocalRecord
from fedpara.models.module import ClassificationModule

Epoch = Iterator[Batch]
Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]


class Epochs:
    """A loader of one item an epoch: the iterator over the epoch's batches. Lightning calls `sampler.set_epoch`."""

    def __init__(self, batches: Batches, keys: EpochBatches) -> None:
        self.batches, self.sampler = batches, keys

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        yield self.batches.epoch(self.sampler)

    def all(self, number: int) -> Iterator[Batch]:
        """The batches of that many epochs, one after the other."""
        for epoch in range(number):
            self.sampler.set_epoch(epoch)
            yield from self.batches.epoch(self.sampler)


class NotCaptured(RuntimeError):
    """A step that no graph can hold, for it asks the host; it may still be run as it is."""


class WholeEpochs(LightningModule):
    """Trains `module` on all batches of an epoch in one `training_step`.

    Args:
        module: gives the loss of a batch and the optimizer; it must have `network`.
        capture: makes of a step one that repeats it on the same memory, `CudaGraphs`; None: every step is run as it is.
            What a captured step reads, batch, model, learning rate and corrections, is copied to where it looks.

    Attributes:
        record: of the client at hand; to be set before a fit.
        variant: whatever makes a client's step another one than the last client's; a step is captured for each.
    """

    def __init__(self, module: ClassificationModule, capture: Capture | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.capture = module, capture
        self.network = module.network
        self.record = LocalRecord()
        self.variant: Hashable = None
        self._captured: dict[Hashable, tuple[Batch, Step]] = {}
        self._kept: torch.optim.Optimizer | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh one; where steps are captured, the one that they hold, made as new."""
        fresh = self.module.configure_optimizers()
        if fresh.defaults.get("dampening") or not fresh.defaults.get("fused"):
            self.capture = None  # zeros are no fresh start then; only fused steps read the rate where it is
        if self.capture is None:
            return fresh
        if self._kept is None:
            self._kept = fresh
            self._rate = fresh.param_groups[0]["lr"]
            for group in fresh.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=self.device)
                group |= {"capturable": True} if "capturable" in group else {}  # Adam asks to be told
            return fresh
        self._rate = fresh.param_groups[0]["lr"]
        for kept, new in zip(self._kept.param_groups, fresh.param_groups, strict=True):
            kept["lr"].fill_(new["lr"])
        for tensor in self._moments():
            tensor.zero_()
        return self._kept

    def _moments(self) -> Iterator[Tensor]:
        """What the kept optimizer remembers; all zeros are a fresh start."""
        assert self._kept is not None
        for state in self._kept.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def transfer_batch_to_device(self, batch: Epoch, device: torch.device, dataloader_idx: int) -> Epoch:
        """Batches are made where they are needed."""
        return batch

    def training_step(self, epoch: Epoch, index: int) -> None:
        """All steps of one epoch."""
        for batch in epoch:
            batch = self.trainer.precision_plugin.convert_input(batch)
            loss = self._step(batch) if self.capture is None else self._replay(batch, self.capture)
            self.record.add(loss, len(batch[1]))

    def _step(self, batch: Batch) -> Tensor:
        optimizer = the_optimizer(self)
        optimizer.zero_grad()
        loss = self.module.training_step(batch, 0)
        descend(self, optimizer, loss)
        return loss.detach()

    def _replay(self, batch: Batch, capture: Capture) -> Tensor:
        """A step as it was captured. See Note [Replayed steps]."""
        key = self.variant, *(tensor.shape for tensor in batch)
        if key not in self._captured:
            held: Batch = batch[0].clone(), batch[1].clone()
            state = [*self.network.state_dict().values(), *self._moments()]
            before = [tensor.clone() for tensor in state]
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                self._captured[key] = held, capture(lambda: self._step(held))
            known = {tensor.data_ptr() for tensor in state}
            for moment in self._moments():
                if moment.data_ptr() not in known:
                    moment.zero_()
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)  # capturing takes steps to warm up
        held, step = self._captured[key]
        for here, there in zip(held, batch, strict=True):
            here.copy_(there)
        self.record.count(self._rate)
        return step()


def the_optimizer(module: LightningModule) -> torch.optim.Optimizer:
    """The only one of a module that takes its steps itself."""
    optimizer = module.optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)  # Lightning's own, of a class made on the spot
    return optimizer


def descend(module: LightningModule, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """The backward pass and the optimizer's step, outside of autocast as Lightning takes them batch by batch.

    A factor's gradient would be a product of bfloat16 numbers otherwise, and the next step might find this one's
    weights: casts are remembered until the end of autocast, which is the epoch's.
    """
    with torch.autocast(module.device.type, enabled=False):
        module.manual_backward(loss)
        optimizer.step()
    torch.clear_autocast_cache()


class CudaGraphs:
    """Captures a step, after some to warm up, as PyTorch's notes on CUDA graphs ask; what is returned replays it.

    Clients of unequal size have last batches of many sizes, each a graph. One replays at a time and reads nothing that
    another has left, so that all share the memory of the largest.
    """

    def __init__(self, warm_up: int = 3) -> None:
        self.warm_up = warm_up
        # one stream for all: there are 32, and the graphs' own must not be among those
        self._aside: torch.cuda.Stream | None = None
        self._last: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Step) -> Step:
        """On the current device.

        Raises:
            NotCaptured: a step waits for the device; seen before capturing, after which there would be no way back.
        """
        self._aside = self._aside or torch.cuda.Stream()
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(self.warm_up):
                step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            except RuntimeError as error:
                raise NotCaptured(str(error)) from error
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._last.pool() if self._last else None):
            loss = step()
        self._last = graph

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay
