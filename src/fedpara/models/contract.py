"""The interface of a LightningModule that clients train, and a reader for the result of `configure_optimizers`."""

from collections.abc import Iterable
from inspect import getattr_static
from typing import Protocol, cast

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = tuple[Tensor, Tensor]
METHODS = ("training_step", "test_step", "configure_optimizers")


class FederatedModule(Protocol):
    """The interface of a LightningModule for clients; its loss, metrics, optimizer and schedulers are up to you.

    A batch is (inputs, labels), as the data set gives them. The metrics that `test_step` logs become the columns
    `test/<name>`. Two class attributes can choose the metric that judges a run: its name `headline`, and
    `higher_is_better`. Without them it is `acc`, and more is better.

    Each client is trained with a copy of the module as it was built. If the module calls `optimizer.step()` itself
    (manual optimization), `training_step` must still return the loss.

    Attributes:
        network: the network to factorise, send and average; it must contain every trained parameter.
        learning_rate_factor: set before each client's training; the federation lowers it each round.

    Example:
        >>> class Regression(LightningModule):
        ...     headline, higher_is_better = "mse", False
        ...     learning_rate_factor = 1.0
        ...     def __init__(self, network):
        ...         super().__init__()
        ...         self.network = network
        ...     def training_step(self, batch, batch_index):
        ...         inputs, targets = batch
        ...         return nn.functional.mse_loss(self.network(inputs), targets)
        ...     def test_step(self, batch, batch_index):
        ...         self.log("mse", self.training_step(batch, batch_index), batch_size=len(batch[0]))
        ...     def configure_optimizers(self):
        ...         return Adam(self.parameters(), lr=0.01 * self.learning_rate_factor)
        >>> from torch.optim import Adam
        >>> type(require_module(Regression(nn.Linear(4, 1)))).__name__
        'Regression'
    """

    network: nn.Module
    learning_rate_factor: float

    def training_step(self, batch: Batch, batch_index: int) -> STEP_OUTPUT:
        """The mean loss over the examples of a batch, as a tensor or under the key `loss`."""
        ...

    def test_step(self, batch: Batch, batch_index: int) -> STEP_OUTPUT:
        """Log metrics, here or in `on_test_epoch_end`; they must be means over all examples of the loader."""
        ...

    def configure_optimizers(self) -> object:
        """One fresh optimizer with learning rates times `learning_rate_factor`, and any schedulers.

        The result can have any form that Lightning accepts. It is also called before the first round, as a check.
        """
        ...

    def parameters(self, recurse: bool = True) -> Iterable[nn.Parameter]:
        """The parameters, as in every `nn.Module`."""
        ...


def require_module(module: object) -> FederatedModule:
    """Check that the module has the interface of `FederatedModule`.

    Raises:
        ValueError: the message names the missing part.
    """
    name = type(module).__name__
    if not isinstance(module, LightningModule):
        raise ValueError(f"{name}: must be a LightningModule, see fedpara.models.FederatedModule")
    missing = [one for one in ("network", "learning_rate_factor") if not hasattr(module, one)]
    missing += [one for one in METHODS if getattr(type(module), one) is getattr(LightningModule, one)]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}: see fedpara.models.FederatedModule")
    if not isinstance(module.network, nn.Module):
        raise ValueError(f"{name}.network is a {type(module.network).__name__}: must be an nn.Module")
    sent = {id(parameter) for parameter in module.network.parameters()}
    outside = [one for one, parameter in module.named_parameters() if id(parameter) not in sent]
    if outside:
        raise ValueError(f"{name}.{outside[0]}: must be in {name}.network, which alone is sent and averaged")
    return cast(FederatedModule, module)  # `isinstance` finds no `network` from Python 3.12 on: it is in `_modules`


def read_optimizer(given: object) -> Optimizer:
    """Read Lightning's forms: an optimizer, a list of one, a pair of lists, a dictionary, or a list of one dictionary.

    Raises:
        ValueError: there is no optimizer, or there are several. A module with several steps each one on its own loss,
            but an algorithm's correction is for one.

    Example:
        >>> from torch.optim import SGD
        >>> from torch.optim.lr_scheduler import StepLR
        >>> optimizer = SGD(nn.Linear(2, 1).parameters(), lr=0.1)
        >>> read_optimizer({"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 1)}) is optimizer
        True
    """
    optimizers = _optimizers(given)
    if len(optimizers) != 1:
        raise ValueError(
            f"configure_optimizers gives {len(optimizers)} optimizers: must be 1, to which corrections belong"
        )
    return optimizers[0]


def _optimizers(given: object) -> list[Optimizer]:
    """All optimizers, without their schedulers."""
    match given:
        case None:
            return []
        case Optimizer():
            return [given]
        case {"optimizer": Optimizer() as optimizer}:
            return [optimizer]
        case [[*several], _]:
            return _optimizers(several)
        case [*several]:
            return [optimizer for one in several for optimizer in _optimizers(one)]
    raise ValueError(f"configure_optimizers gives a {type(given).__name__}: must be a form that Lightning takes")


def optimizer_of(module: FederatedModule, trainer: Trainer) -> Optimizer:
    """The optimizer that the module's `configure_optimizers` gives, called before any training.

    Args:
        trainer: the Trainer that the module sees meanwhile.

    Raises:
        ValueError: the call fails, it does not give exactly one optimizer, or the learning rates do not follow
            `learning_rate_factor`.
    """
    assert isinstance(module, LightningModule)
    name, before = type(module).__name__, module.learning_rate_factor
    module.trainer = trainer
    try:
        module.learning_rate_factor = 0.5
        half = read_optimizer(module.configure_optimizers())
        module.learning_rate_factor = 1.0
        whole = read_optimizer(module.configure_optimizers())
    except Exception as error:
        place = "" if isinstance(error, ValueError) else f".configure_optimizers, {type(error).__name__}"
        raise ValueError(f"{name}{place}: {error}") from error
    finally:
        module.trainer = None
        module.learning_rate_factor = before
    for group, other in zip(whole.param_groups, half.param_groups, strict=True):
        if abs(float(group["lr"]) - 2 * float(other["lr"])) > 1e-6 * float(group["lr"]):
            raise ValueError(
                f"{name}.configure_optimizers: must multiply its learning rates by self.learning_rate_factor"
            )
    return whole


def own_methods(module: object, ours: type[LightningModule]) -> list[str]:
    """The training methods in which the module's class differs from `ours`, the most important first.

    Args:
        ours: a class whose training is known.
    """
    apart = ("test", "val", "predict", "checkpoint")
    names = [name for name in dir(ours) if not name.startswith("_") and not any(word in name for word in apart)]
    own = [name for name in names if getattr_static(type(module), name, None) is not getattr_static(ours, name)]
    return sorted(own, key=lambda name: name not in METHODS)
