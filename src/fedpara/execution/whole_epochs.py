"""A local epoch as one batch for Lightning: its loops run once per epoch instead of once per step.

On a GPU the steps are replayed without the host (see `fedpara.execution.replay`). This works for a
`ClassificationModule` with any network and any optimizer. The callbacks' `on_before_optimizer_step`, the precision and
the device stay in effect; a captured step repeats their operations on the device, but not their Python code. Hooks
around single batches, schedulers, gradient clipping and accumulation, and modules with their own training, need
`executor.whole_epochs=false`.
"""

from collections.abc import Hashable, Iterator

import torch
from pytorch_lightning import LightningModule
from torch import Tensor

from fedpara.data.examples import Batch, Batches, EpochBatches
from fedpara.execution.local import LocalRecord
from fedpara.execution.replay import Capture, Steps
from fedpara.models.module import ClassificationModule
from fedpara.private import lightning

Epoch = Iterator[Batch]


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


class WholeEpochs(LightningModule):
    """Trains `module` on all batches of an epoch in one `training_step`.

    Args:
        module: gives the loss of a batch and the optimizer; it must have `network`.
        capture: how steps are captured; None: every step is run directly.

    Attributes:
        record: the record of the current client; set it before a fit.
        variant: identifies the kind of step that a client needs; each kind is captured separately.
    """

    def __init__(self, module: ClassificationModule, capture: Capture | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module, self.network = module, module.network
        self.steps = Steps(self._step, module.network, capture)
        self.record = LocalRecord()
        self.variant: Hashable = None

    @property
    def capture(self) -> Capture | None:
        """How steps are captured; None: they are not."""
        return self.steps.capture

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh optimizer, or one that is as new."""
        return self.steps.optimizer(self.module.configure_optimizers())

    def transfer_batch_to_device(self, batch: Epoch, device: torch.device, dataloader_idx: int) -> Epoch:
        """Do nothing: batches are made on their device."""
        return batch

    def training_step(self, epoch: Epoch, index: int) -> None:
        """Take all steps of one epoch."""
        for batch in epoch:
            batch = self.trainer.precision_plugin.convert_input(batch)
            loss = self.steps(self.variant, batch)
            if self.capture:
                self.record.count(self.steps.rate)
            self.record.add(loss, len(batch[1]))

    def _step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.trainer.optimizers[0].zero_grad()
        loss = self.module.training_step((inputs, labels), 0)
        descend(self, loss)
        return loss.detach()


def descend(module: LightningModule, loss: Tensor) -> None:
    """Take the backward pass and the optimizer's step outside of autocast, as Lightning does for single batches.

    Otherwise a factor's gradient would be a product of bfloat16 numbers. The cache of casts is cleared, because it
    would live until the end of the epoch and give the next step this one's weights.

    Without a scaler the step is taken directly: Lightning's hooks around it take about 0.2 ms, and of these only
    `on_before_optimizer_step` has a callback, since whole epochs refuse a user's.
    """
    trainer = module.trainer
    with torch.autocast(module.device.type, enabled=False):
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            module.manual_backward(loss)
            module.optimizers().step()  # type: ignore[union-attr]
        else:
            loss.backward()
            for callback in lightning.callbacks(trainer):
                callback.on_before_optimizer_step(trainer, module, trainer.optimizers[0])
            trainer.optimizers[0].step()
    torch.clear_autocast_cache()
