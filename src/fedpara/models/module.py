"""The LightningModule for classification networks, which clients train and the server tests."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import nan

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from fedpara.models.contract import Batch

MakeOptimizer = Callable[..., torch.optim.Optimizer]
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)  # Adagrad is not in every PyTorch, on a GPU


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network into evaluation mode, and every layer back into its own mode afterwards."""
    modes = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for layer, training in modes.items():
            layer.training = training


class ClassificationModule(LightningModule):
    """Cross-entropy on (images, labels); keeps the contract of `FederatedModule`.

    Args:
        network: images to logits.
        optimizer: called with the parameters; every fit, so every client of every round, gets a fresh optimizer.
        num_classes: number of logits.

    Attributes:
        learning_rate_factor: factor of the optimizer's learning rates; the federation lowers it each round.
        personal_rates: a further factor of the learning rate by parameter of the network, set by a federation whose
            split has a `personal_rate`.

    Example:
        >>> module = ClassificationModule(nn.Linear(4, 3), partial(torch.optim.SGD, lr=0.1), num_classes=3)
        >>> module.configure_optimizers().param_groups[0]["lr"]
        0.1
    """

    def __init__(self, network: nn.Module, optimizer: MakeOptimizer, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.make_optimizer = optimizer
        self.learning_rate_factor = 1.0
        self.personal_rates: Mapping[str, float] = {}
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.loss = MeanMetric(nan_strategy=nan)  # a loss that is not a number stays one; "disable" ignores the weights

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch of images."""
        return self.network(images)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Mean cross-entropy of the batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Add the batch to top-1 accuracy, where outputs that are not finite are wrong, and to the mean loss."""
        images, labels = batch
        logits = self(images)
        wrong = (labels + 1) % logits.shape[1]
        self.accuracy.update(torch.where(logits.isfinite().all(1), logits.argmax(1), wrong), labels)
        self.loss.update(nn.functional.cross_entropy(logits.float(), labels), weight=len(labels))

    def on_test_epoch_end(self) -> None:
        """Log `acc` (0 to 1) and `loss` (nats) over all examples of the loader."""
        self.log_dict({"acc": self.accuracy, "loss": self.loss})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh optimizer at the round's learning rate."""
        return self.optimizer_of(self.network)

    def fuse(self) -> None:
        """Use a fused optimizer, which is one kernel over all parameters, if the class has one.

        A given `fused` or `foreach`, even False, is left as it is.
        """
        made = self.configure_optimizers()
        said = [value for name in ("fused", "foreach") if (value := made.defaults.get(name)) is not None]
        if type(made) in FUSED and not said:
            self.make_optimizer = partial(self.make_optimizer, fused=True)

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer at the round's learning rate for a network with the parameter names of the module's own."""
        optimizer = self.make_optimizer(self._groups(network) if self.personal_rates else network.parameters())
        for group in optimizer.param_groups:
            group["lr"] *= self.learning_rate_factor * group.get("rate", 1.0)
        return optimizer

    def _groups(self, network: nn.Module) -> list[dict[str, object]]:
        """The parameters by their rate; the first group, which callbacks ask for the learning rate, has rate 1."""
        groups: dict[float, list[Tensor]] = {1.0: []}
        for name, parameter in network.named_parameters():
            groups.setdefault(self.personal_rates.get(name, 1.0), []).append(parameter)
        return [{"params": parameters, "rate": rate} for rate, parameters in groups.items()]
