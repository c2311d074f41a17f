"""The private names of Lightning that this package uses.

Note [Kept trainer]
~~~~~~~~~~~~~~~~~~~
A client's local training is one `Trainer.fit` with a fresh optimizer. A fresh Trainer for each client would be the
simplest, but takes about 20 ms, more than training a small network. So one Trainer is kept and reset for each client.
Three parts of that have no public interface in Lightning:

- Its loops remember epochs, steps and loaders, so each client is given new ones: `_FitLoop`, `_TrainingEpochLoop`.
- Each client has callbacks of its own. Lightning's types have no annotation for the attribute `Trainer.callbacks`, so
  it is read through `vars`.
- After every fit Lightning moves model and optimizer to the CPU, and before every fit it frees the cached memory of a
  GPU. The next client undoes both a moment later. So `teardown` of the strategy and `setup` of the accelerator are
  replaced by functions that do nothing.

A Trainer is not kept after an error, with a scaler (fp16) or with objects that a user gave: they hold state outside of
the loops, which could pass from one client to the next.
"""

from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop


def renew_loops(trainer: Trainer, max_epochs: int) -> None:
    """Make the Trainer forget every fit so far. See Note [Kept trainer]."""
    trainer.fit_loop = _FitLoop(trainer, max_epochs=max_epochs)
    trainer.fit_loop.epoch_loop = _TrainingEpochLoop(trainer)


def callbacks(trainer: Trainer) -> list[Callback]:
    """A copy of the list of a Trainer's callbacks."""
    return list(vars(trainer)["callbacks"])


def set_callbacks(trainer: Trainer, given: list[Callback]) -> None:
    """Give the Trainer these callbacks in place of its own."""
    vars(trainer)["callbacks"] = given


def stay_on_device(trainer: Trainer) -> None:
    """Leave model, optimizer and cached memory where they are between fits. See Note [Kept trainer]."""
    trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]
    trainer.accelerator.setup = lambda trainer: None  # type: ignore[method-assign]
