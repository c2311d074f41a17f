"""Trains many clients in one batched computation, for networks so small that a step is mostly overhead."""

import logging
import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Annotated, cast

import torch
from pydantic import Field, validate_call
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.data import DataLoader, Dataset

from fedpara.algorithms.base import Correction
from fedpara.data.examples import Batch
from fedpara.execution.base import Around, ClientFailure, ClientTask, LocalResult
from fedpara.execution.folding import Folded, require_foldable
from fedpara.execution.replay import Capture, NotCaptured, Steps
from fedpara.execution.serial import NOT_CAPTURED, SerialExecutor, epochs_of
from fedpara.execution.training import LocalTraining
from fedpara.execution.whole_epochs import descend
from fedpara.models.contract import own_methods
from fedpara.models.module import ClassificationModule, evaluating
from fedpara.nn import Factorization
from fedpara.sampling import substream
from fedpara.state import State, num_elements

log = logging.getLogger(__name__)
ELEMENTWISE = {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop", "Adamax", "ASGD", "Rprop"}
CACHE_GB = 0.032
WAY_OUT = "take executor=serial or processes"


class ManyClients(LightningModule):
    """The local training of several clients as one batch for Lightning; the sum of the losses keeps them independent.

    Args:
        module: gives the network, which is folded, and the optimizer of all clients' parameters.
        capture: how steps are captured; None: every step is run directly.

    Attributes:
        variant: identifies the kind of step that the clients need; each kind is captured separately.
    """

    def __init__(
        self, module: ClassificationModule, num_clients: int, device: torch.device, capture: Capture | None = None
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module = [module]  # in a list, so that it is not a submodule whose parameters are trained
        self.folded = Folded(module.network, num_clients, device)
        self.network = self.folded.network
        self.steps = Steps(self._step, self.network, capture, self.folded.drawing)
        self.variant: Hashable = None
        self.to(device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh optimizer at the round's learning rate, or one that is as new."""
        return self.steps.optimizer(self.module[0].optimizer_of(self.network))

    def transfer_batch_to_device(self, batch: "Chunk", device: torch.device, dataloader_idx: int) -> "Chunk":
        """Do nothing: batches are made on their device."""
        return batch

    def training_step(self, chunk: "Chunk", index: int) -> None:
        """Take all steps of all epochs; a client that has finished continues on padding, after its result is read."""
        draws = bool(self.folded.drawing)
        for batch in chunk:
            batch = self.trainer.precision_plugin.convert_input(batch)
            self.folded.sizes = chunk.sizes
            sizes = tuple(chunk.sizes) if draws else ()  # by which the masks of dropout are drawn
            chunk.add(self.steps((self.variant, sizes), batch), self.folded, self.steps.rate)

    def _step(self, inputs: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        self.trainer.optimizers[0].zero_grad()
        logits = self.folded(inputs)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = (losses.view_as(labels) * share.to(losses.dtype)).sum(0)
        descend(self, losses.sum())
        # the sizes are counted on the device, so that nothing is copied there
        return losses.detach().float() * (share > 0).sum(0)


class Chunk:
    """The batches of several clients side by side, and their results.

    Args:
        rows: least number of rows of a batch, some of them padding; captured steps need few shapes.

    Attributes:
        sizes: number of each client's rows in the current batch that are not padding; after its last batch, all rows.
        num_examples: number of each client's examples in all its batches.
        results: state, steps and sum of learning rates of the finished clients, by position.
        losses: (clients,), each client's losses, summed over its examples.
    """

    def __init__(
        self,
        tasks: Sequence[ClientTask],
        streams: Sequence[Iterator[Batch]],
        lengths: Sequence[int],
        num_examples: Sequence[int],
        device: torch.device,
        rows: int = 0,
    ) -> None:
        self.tasks, self.streams, self.lengths, self.num_examples = tasks, streams, lengths, num_examples
        self.rows = rows
        self.sizes: list[int] = []
        self.results: dict[int, tuple[State, int, float]] = {}
        self.losses = torch.zeros(len(tasks), device=device)
        self._steps, self._rates = 0, 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs (B, K, ...), labels (B, K), and each example's share in its client's mean loss (padding: 0)."""
        for _ in range(max(self.lengths)):
            yield self._side_by_side([next(stream, None) for stream in self.streams])

    def _side_by_side(self, batches: Sequence[Batch | None]) -> tuple[Tensor, Tensor, Tensor]:
        whole = [batch for batch in batches if batch is not None]
        inputs, labels = whole[0]
        shape = max(self.rows, *(len(batch[1]) for batch in whole)), len(batches)
        self.sizes = [shape[0] if batch is None else len(batch[1]) for batch in batches]
        if len(whole) == len(batches) and all(size == shape[0] for size in self.sizes):
            all_inputs, all_labels = (torch.stack(part, dim=1) for part in zip(*whole, strict=True))
            return all_inputs, all_labels, all_inputs.new_full(shape, 1 / shape[0], dtype=torch.float64)
        all_inputs = inputs.new_zeros(*shape, *inputs.shape[1:])
        all_labels, share = labels.new_zeros(shape), inputs.new_zeros(shape, dtype=torch.float64)
        for client, batch in enumerate(batches):
            if batch is not None:
                size = len(batch[1])
                all_inputs[:size, client], all_labels[:size, client] = batch
                share[:size, client].fill_(1 / size)
        return all_inputs, all_labels, share

    def add(self, losses: Tensor, folded: Folded, rate: float) -> None:
        """Add the losses of a step, summed by client, and read the results of clients for which it was the last."""
        self._steps += 1
        self._rates += rate
        self.losses += losses
        if finished := [client for client, length in enumerate(self.lengths) if length == self._steps]:
            for client, state in zip(finished, folded.read(finished), strict=True):
                self.results[client] = state, self._steps, self._rates


class VectorizedExecutor(Around):
    """Trains as many clients at once as memory allows; results are the same as one by one, up to rounding.

    On a GPU dropout differs too: its masks are those of other kernels there.

    Args:
        training: settings of one client's training.
        chunk_size: clients at once; None: as many as fit into `memory_gb`, at most 64.
        memory_gb: memory for the chunk's parameters, gradients and activations, in 10^9 bytes; None: half of the free
            memory of a GPU; on a CPU 0.032, about a last-level cache, beyond which it was slower
            (docs/results/speed.md).
        capture: whether a GPU replays the steps as CUDA graphs.

    Raises:
        ValueError: the module, the optimizer or the trainer could mix values of different clients.

    Example:
        >>> from functools import partial
        >>> from fedpara.data import IID, FederatedDataModule, mnist_small
        >>> from fedpara.models import MLP, ClassificationModule
        >>> module = ClassificationModule(MLP([784, 10]), partial(torch.optim.SGD, lr=0.1), num_classes=10)
        >>> data = FederatedDataModule(mnist_small, IID(), num_clients=10, num_classes=10, in_channels=1, batch_size=64)
        >>> data.setup()
        >>> training = LocalTraining(module, data, max_epochs=1, accelerator="cpu")
        >>> executor = VectorizedExecutor(training, chunk_size=2)
        >>> executor.prepare()
        >>> tasks = [ClientTask(client, executor.initial_state(), 1.0, seed=client) for client in range(2)]
        >>> [(result.client, result.num_steps) for result in executor.run(tasks)]
        [(0, 7), (1, 7)]
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        training: LocalTraining,
        chunk_size: Annotated[int, Field(ge=1)] | None = None,
        memory_gb: Annotated[float, Field(gt=0)] | None = None,
        capture: bool = True,
    ) -> None:
        module = training.module
        for name in own_methods(module, ClassificationModule)[:1]:
            raise ValueError(f"{type(module).__name__} has its own {name}: {WAY_OUT}")
        assert isinstance(module, ClassificationModule)
        self._plain = module
        # tests models, and trains the clients of a chunk that raised an error
        self._one = SerialExecutor(training, whole_epochs=True, capture=capture)
        super().__init__(self._one)
        self.capture = self._one.capture  # the same, so that all graphs share their memory
        self.corrections = self._one.corrections
        self.chunk_size, self.memory_gb = chunk_size, memory_gb
        self._many: dict[int, ManyClients] = {}
        optimizer = type(module.configure_optimizers()).__name__
        if optimizer not in ELEMENTWISE:
            raise ValueError(
                f"{optimizer} may mix clients, it is not one of {', '.join(sorted(ELEMENTWISE))}: {WAY_OUT}"
            )
        if str(training.precision) == "16-mixed":
            raise ValueError(f"precision=16-mixed: one client's overflow would skip all clients' steps: {WAY_OUT}")

    @torch.no_grad()
    def prepare(self) -> None:
        """Prepare as the serial executor does; check that the network can be folded, and how many copies fit."""
        self._one.prepare()
        try:
            require_foldable(self.module.network, self._one.example())
        except ValueError as error:
            raise ValueError(f"executor=vectorized cannot fold it, {error}: {WAY_OUT}") from error
        if self.chunk_size is None:
            self.chunk_size = self.affordable()

    @torch.no_grad()
    def affordable(self) -> int:
        """Number of clients that fit into memory: twice their activations, three times their weights with gradients.

        Composed weights count ten times, as often as a composition and its backward pass read or write them.
        """
        seen = composed = 0

        def count(layer: nn.Module, inputs: object, output: object) -> None:
            nonlocal seen, composed
            if isinstance(layer, Factorization) and isinstance(output, Tensor):
                composed += output.numel()
            elif isinstance(output, Tensor) and not isinstance(layer, ParametrizationList):
                seen += output.numel()

        network = self.module.network
        handles = [layer.register_forward_hook(count) for layer in network.modules()]
        with evaluating(network):
            network(self._one.example())
        for handle in handles:
            handle.remove()
        values = 3 * num_elements(self.initial_state()) + 10 * composed + 2 * seen * self.datamodule.batch_size
        if (memory := self.memory_gb) is None:
            cuda = self.device.type == "cuda"
            memory = torch.cuda.mem_get_info(self.device)[0] / 2e9 if cuda else CACHE_GB
        return max(1, min(64, int(memory * 1e9 / (4 * values))))

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Train one chunk after the other; if one raises, train its clients one by one, so that each fails alone."""
        waiting = iter(tasks)
        if self.chunk_size == 1:
            yield from self._one.run(waiting)
        while chunk := list(islice(waiting, self.chunk_size or 8)):
            results: Iterable[LocalResult | ClientFailure]
            try:
                results = self._train_chunk(chunk)
            except Exception as error:
                clients = ", ".join(str(task.client) for task in chunk)
                log.warning("clients %s are trained one by one: %r", clients, error)
                results = self._one.run(chunk)  # starts after the error, which holds tensors, is gone
            yield from results

    def _train_chunk(self, tasks: Sequence[ClientTask]) -> list[LocalResult]:
        try:
            return self._fit(tasks)
        except NotCaptured as error:
            log.warning(NOT_CAPTURED, str(error))
        self.capture = None
        self._many.clear()
        return self._fit(tasks)

    def _fit(self, tasks: Sequence[ClientTask]) -> list[LocalResult]:
        start = time.perf_counter()
        if len(tasks) not in self._many:
            self._many[len(tasks)] = ManyClients(self._plain, len(tasks), self.device, self.capture)
        many = self._many[len(tasks)]
        many.folded.load([task.state for task in tasks])
        for generator, task in zip(many.folded.generators, tasks, strict=True):
            generator.manual_seed(substream(task.seed, "dropout"))
        self.module.learning_rate_factor = tasks[0].learning_rate_factor
        chunk = Chunk(tasks, *self._streams(tasks), self.device, self.datamodule.batch_size if self.capture else 0)
        gradient = self.corrections.gradient
        gradient.correction = _stacked([task.correction for task in tasks])
        many.variant = gradient.variant
        with self._one.kept_trainer("fit", 1, self.corrections.callbacks) as trainer:
            trainer.fit(many, DataLoader(cast(Dataset, [chunk]), batch_size=None))
        losses = chunk.losses.tolist()  # the host waits once for all of them
        return [self._result(chunk, client, loss, time.perf_counter() - start) for client, loss in enumerate(losses)]

    def _streams(self, tasks: Sequence[ClientTask]) -> tuple[list[Iterator[Batch]], list[int], list[int]]:
        """For each client the batches of all its epochs, their number, and the number of their examples."""
        streams, lengths, num_examples = [], [], []
        for task in tasks:
            epochs = epochs_of(self._one.loader(task.client, task.seed))
            streams.append(epochs.all(self.training.max_epochs))
            lengths.append(len(epochs.sampler) * self.training.max_epochs)
            num_examples.append(epochs.sampler.num_examples * self.training.max_epochs)
        return streams, lengths, num_examples

    def _result(self, chunk: Chunk, client: int, loss: float, seconds: float) -> LocalResult:
        state, num_steps, rates = chunk.results[client]
        task = chunk.tasks[client]
        loss_mean = loss / chunk.num_examples[client]
        num_examples = self.datamodule.num_examples(task.client)
        return LocalResult(task.client, state, num_examples, num_steps, rates, loss_mean, seconds / len(chunk.tasks))


def _stacked(corrections: Sequence[Correction]) -> Correction:
    """One correction with a first dimension for the client; a missing offset is zero.

    Raises:
        ValueError: the clients' anchors have different names, or their pulls have different strength.
    """
    first = corrections[0]
    if any(c.proximal != first.proximal or c.anchor.keys() != first.anchor.keys() for c in corrections):
        raise ValueError("clients of one chunk must have the same proximal term")
    offsets = {name: tensor for correction in corrections for name, tensor in correction.offset.items()}
    return Correction(
        first.proximal,
        {name: torch.stack([c.anchor[name] for c in corrections]) for name in first.anchor},
        {
            name: torch.stack([c.offset.get(name, torch.zeros_like(like)) for c in corrections])
            for name, like in offsets.items()
        },
        first.trained,  # the same for all clients of a round; it broadcasts over them
    )
