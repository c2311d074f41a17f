"""What is used of Lightning beyond its public interface.

Note [Kept trainer]
~~~~~~~~~~~~~~~~~~~
A client's local training is one `Trainer.fit` with a fresh optimizer. A fresh Trainer for each would be the simplest,
but takes about 20 ms, more than the training of a small network. Hence one Trainer is kept and made as new for each
client. Lightning has no public way for three parts of that:

- Its loops remember epochs, steps and loaders, so each client is given new ones: `_FitLoop`, `_TrainingEpochLoop`.
- Each client has callbacks of its own. `Trainer.callbacks` is an attribute without an annotation in Lightning's types,
  hence it is read through `vars`.
- After every fit Lightning moves model and optimizer to the CPU, and before every fit it frees the cached memory of a
  GPU. Both are undone a moment later by the next client. `teardown` of the strategy and `setup` of the accelerator do
  nothing instead.

After an error, with a scaler (fp16) or with objects that a user gave, a Trainer is not kept: what the loops do not hold
could go from one client to the next.
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
