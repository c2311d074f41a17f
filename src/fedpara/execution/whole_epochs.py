"""A local epoch as one batch for Lightning: its loops run once per epoch instead of once per step.

On a GPU the steps are replayed without the host. This works for a `ClassificationModule` with any network and any
optimizer. The callbacks' `on_before_optimizer_step`, the precision and the device stay in effect; a captured step
repeats their operations on the device, but not their Python code. Hooks around single batches, schedulers, gradient
clipping and accumulation, and modules with their own training, need `executor.whole_epochs=false`.

Note [Replayed steps]
~~~~~~~~~~~~~~~~~~~~~
A CUDA graph repeats a step on the same memory, so everything that a step reads must stay where it was at the capture:

- The batch is copied into `held`. Each shape of a batch, and each `variant` of the corrections, has its own graph.
- The weights are the module's own; each client's state is copied into them.
- The optimizer is kept, because the graph uses the memory of its moments. To make it fresh, all moments are set to zero
  and the new learning rate is copied into the tensor that the step reads. This excludes three cases: SGD with
  dampening, whose first step differs (zeros are not a fresh start); optimizers that are not fused, which do not read
  the rate from a tensor; and classes other than `FUSED`, whose moments may start at other values (Adagrad's do).
- `GradientCorrection` copies the anchors and offsets of the corrections to the same memory as before.

A capture takes some steps to warm up, which change weights and moments. Both are copied before and restored after it,
and moments that did not exist before are set to zero. The random numbers of these steps come from a fork.
"""

from collections.abc import Callable, Hashable, Iterator

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from fedpara.data.examples import Batch, Batches, EpochBatches
from fedpara.execution.local import LocalRecord
from fedpara.models.module import FUSED, ClassificationModule

Epoch = Iterator[Batch]
Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]


class Epochs:
    """A loader with one item per epoch: an iterator over its batches. Lightning calls `sampler.set_epoch`."""

    def __init__(self, batches: Batches, keys: EpochBatches) -> None:
        self.batches, self.sampler = batches, keys

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Iterator[Batch]]:
        yield self.batches.epoch(self.sampler)

    def all(self, number: int) -> Iterator[Batch]:
        """The batches of `number` epochs, one after the other."""
        for epoch in range(number):
            self.sampler.set_epoch(epoch)
            yield from self.batches.epoch(self.sampler)


class NotCaptured(RuntimeError):
    """A step cannot be captured in a graph, because it needs a value on the host; it can still be run directly."""


class WholeEpochs(LightningModule):
    """Trains `module` on all batches of an epoch in one `training_step`.

    Args:
        module: gives the loss of a batch and the optimizer; it must have `network`.
        capture: turns a step into a function that repeats it on the same memory, such as `CudaGraphs`; None: every step
            is run directly. Batch, model, learning rate and corrections are copied to the memory of the captured step.

    Attributes:
        record: the record of the current client; set it before a fit.
        variant: identifies the kind of step that a client needs; each kind is captured separately.
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
        """A fresh optimizer; if steps are captured, the kept one, reset."""
        fresh = self.module.configure_optimizers()
        if fresh.defaults.get("dampening") or not fresh.defaults.get("fused") or type(fresh) not in FUSED:
            self.capture = None  # see the three excluded cases in Note [Replayed steps]
        if self.capture is None:
            return fresh
        if self._kept is None:
            self._kept = fresh
            self._rate = fresh.param_groups[0]["lr"]
            for group in fresh.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=self.device)
                group |= {"capturable": True} if "capturable" in group else {}  # Adam needs this flag
            return fresh
        self._rate = fresh.param_groups[0]["lr"]
        for kept, new in zip(self._kept.param_groups, fresh.param_groups, strict=True):
            kept["lr"].fill_(new["lr"])
        for tensor in self._moments():
            tensor.zero_()
        return self._kept

    def _moments(self) -> Iterator[Tensor]:
        """The tensors that the kept optimizer remembers; zeros are a fresh start."""
        assert self._kept is not None
        for state in self._kept.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def transfer_batch_to_device(self, batch: Epoch, device: torch.device, dataloader_idx: int) -> Epoch:
        """Do nothing: batches are made on their device."""
        return batch

    def training_step(self, epoch: Epoch, index: int) -> None:
        """Take all steps of one epoch."""
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
        """Take a captured step; capture it first if it is new. See Note [Replayed steps]."""
        key = self.variant, *(tensor.shape for tensor in batch)
        if key not in self._captured:
            held: Batch = batch[0].clone(), batch[1].clone()
            kept = *self.network.parameters(), *self.network.buffers()  # also buffers that no state contains
            state = [*(tensor.detach() for tensor in kept), *self._moments()]
            before = [tensor.clone() for tensor in state]
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                self._captured[key] = held, capture(lambda: self._step(held))
            known = {tensor.data_ptr() for tensor in state}
            for moment in self._moments():
                if moment.data_ptr() not in known:
                    moment.zero_()
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)  # undo the steps of the warm-up
        held, step = self._captured[key]
        for here, there in zip(held, batch, strict=True):
            here.copy_(there)
        self.record.count(self._rate)
        return step()


def the_optimizer(module: LightningModule) -> torch.optim.Optimizer:
    """The optimizer of a module with manual optimization."""
    optimizer = module.optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)  # Lightning wraps it in a class that is created at runtime
    return optimizer


def descend(module: LightningModule, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take the backward pass and the optimizer's step outside of autocast, as Lightning does for single batches.

    Otherwise a factor's gradient would be a product of bfloat16 numbers. The cache of casts is cleared, because it
    would live until the end of the epoch and give the next step this one's weights.
    """
    with torch.autocast(module.device.type, enabled=False):
        module.manual_backward(loss)
        optimizer.step()
    torch.clear_autocast_cache()


class CudaGraphs:
    """Captures a step after a warm-up, as in PyTorch's notes on CUDA graphs, and returns a function to replay it.

    Clients of unequal size have last batches of many sizes, each with its own graph. Only one graph is replayed at a
    time, and none reads what another one left, so all share the memory of the largest.
    """

    def __init__(self, warm_up: int = 3) -> None:
        self.warm_up = warm_up
        # one stream for warm-ups and captures: torch's own capture stream belongs to the device of its first use
        self._aside: torch.cuda.Stream | None = None
        self._last: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Step) -> Step:
        """Capture the step on the current device.

        Raises:
            NotCaptured: the step waits for the device; this is checked first, because a failed capture is final.
        """
        self._aside = self._aside or torch.cuda.Stream()
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(self.warm_up):
                step()
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            except torch.OutOfMemoryError:  # fails this client alone; the next ones may fit
                raise
            except RuntimeError as error:
                raise NotCaptured(str(error)) from error
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._last.pool() if self._last else None, stream=self._aside):
            loss = step()
        self._last = graph

        def replay() -> Tensor:
            graph.replay()
            return loss

        return replay
