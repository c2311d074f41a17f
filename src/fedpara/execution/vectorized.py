"""Many clients in one batched computation: for networks so small that a step is mostly overhead."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
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
from fedpara.execution.serial import SerialExecutor, epochs_of
from fedpara.execution.training import LocalTraining
from fedpara.execution.whole_epochs import descend, the_optimizer
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
    """The local training of several clients as one batch of Lightning's, their losses summed: none touches another's.

    Args:
        module: whose network is folded, and whose optimizer is taken, over all clients' parameters.
    """

    def __init__(self, module: ClassificationModule, num_clients: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.module = [module]  # not as a part: its parameters are not trained
        self.folded = Folded(module.network, num_clients)
        self.network = self.folded.network

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A fresh one, at the round's learning rate."""
        return self.module[0].optimizer_of(self.network.parameters())

    def transfer_batch_to_device(self, batch: "Chunk", device: torch.device, dataloader_idx: int) -> "Chunk":
        """Batches are made where they are needed."""
        return batch

    def training_step(self, chunk: "Chunk", index: int) -> None:
        """All steps of all epochs; a client that has done its own goes along on padding, its result taken before."""
        optimizer = the_optimizer(self)
        for batch in chunk:
            inputs, labels, share = self.trainer.precision_plugin.convert_input(batch)
            self.folded.sizes, self.folded.generators = chunk.sizes, chunk.generators
            optimizer.zero_grad()
            logits = self.folded(inputs)
            losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
            losses = (losses.view_as(labels) * share.to(losses.dtype)).sum(0)
            descend(self, optimizer, losses.sum())
            summed = losses.detach().float() * (share > 0).sum(0)  # what is on the device already is not sent there
            chunk.add(summed, self.folded, optimizer.param_groups[0]["lr"])


class Chunk:
    """The batches of several clients side by side, and what comes of each.

    Attributes:
        sizes: examples of each client in the batch at hand; 0 once it has no more.
        num_examples: of each client, in all its batches.
        results: of the clients that are through, by position.
    """

    def __init__(
        self,
        tasks: Sequence[ClientTask],
        streams: Sequence[Iterator[Batch]],
        lengths: Sequence[int],
        num_examples: Sequence[int],
        device: torch.device,
    ) -> None:
        self.tasks, self.streams, self.lengths, self.num_examples = tasks, streams, lengths, num_examples
        self.generators = [torch.Generator(device).manual_seed(substream(task.seed, "dropout")) for task in tasks]
        self.sizes: list[int] = []
        self.results: dict[int, tuple[State, int, float, Tensor]] = {}
        self._steps, self._rates, self._losses = 0, 0.0, torch.zeros(len(tasks), device=device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs (B, K, ...), labels (B, K), and of each example its share in its client's mean loss, 0 for padding."""
        for _ in range(max(self.lengths)):
            yield self._side_by_side([next(stream, None) for stream in self.streams])

    def _side_by_side(self, batches: Sequence[Batch | None]) -> tuple[Tensor, Tensor, Tensor]:
        self.sizes = [0 if batch is None else len(batch[1]) for batch in batches]
        inputs, labels = next(batch for batch in batches if batch is not None)
        shape = max(self.sizes), len(batches)
        if all(size == shape[0] for size in self.sizes):
            whole = [batch for batch in batches if batch is not None]
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
        """After a step, of losses summed by client: sum up, and take the results of those for whom it was the last."""
        self._steps += 1
        self._rates += rate
        self._losses += losses
        for client, length in enumerate(self.lengths):
            if length == self._steps:
                self.results[client] = folded.read(client), self._steps, self._rates, self._losses[client]


class VectorizedExecutor(Around):
    """Trains as many clients at once as memory allows; the same results as one by one, up to rounding.

    Args:
        training: how one client is trained.
        chunk_size: clients at once; None: as many as `memory_gb` holds, 64 at most.
        memory_gb: for the chunk's parameters, gradients and activations, in 10^9 bytes; None: half of what is free on
            a GPU, and on a CPU 0.032, about a last-level cache, beyond which it was slower (README, "Speed").

    Raises:
        ValueError: the module, the optimizer or the trainer does something that goes beyond one client's own numbers.

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
    ) -> None:
        module = training.module
        for name in own_methods(module, ClassificationModule)[:1]:
            raise ValueError(f"{type(module).__name__} has a {name} of its own: {WAY_OUT}")
        assert isinstance(module, ClassificationModule)
        self._plain = module
        self._one = SerialExecutor(training, whole_epochs=True)  # tests models, and trains those of a chunk that raised
        super().__init__(self._one)
        self.corrections = self._one.corrections
        self.chunk_size, self.memory_gb = chunk_size, memory_gb
        self._many: dict[int, ManyClients] = {}
        optimizer = type(module.configure_optimizers()).__name__
        if optimizer not in ELEMENTWISE:
            raise ValueError(f"{optimizer} may mix clients, it is none of {', '.join(sorted(ELEMENTWISE))}: {WAY_OUT}")
        if str(training.precision) == "16-mixed":
            raise ValueError(f"precision=16-mixed: one client's overflow would skip all clients' steps: {WAY_OUT}")

    @torch.no_grad()
    def prepare(self) -> None:
        """As of the serial executor; and see that the network can be folded, and how many fit into memory."""
        super().prepare()
        try:
            require_foldable(self.module.network, self._one.example())
        except ValueError as error:
            raise ValueError(f"executor=vectorized cannot fold it, {error}: {WAY_OUT}") from error
        if self.chunk_size is None:
            self.chunk_size = self.affordable()

    @torch.no_grad()
    def affordable(self) -> int:
        """Clients for whom there is memory: activations twice, weights thrice, gradients included.

        Composed weights ten times, as often as a composition and its backward pass go over them.
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
        """Chunk after chunk; where one raises, its clients are trained one by one, to fail alone."""
        waiting = iter(tasks)
        if self.chunk_size == 1:
            yield from self._one_by_one(waiting)
        while chunk := list(islice(waiting, self.chunk_size or 8)):
            results: Iterable[LocalResult | ClientFailure]
            try:
                results = self._train_chunk(chunk)
            except Exception as error:
                clients = ", ".join(str(task.client) for task in chunk)
                log.warning("clients %s are trained one by one: %r", clients, error)
                results = self._one_by_one(chunk)  # begun when the error is gone, and the tensors that it holds
            yield from results

    def _one_by_one(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        return self._one.run(tasks)

    def _train_chunk(self, tasks: Sequence[ClientTask]) -> list[LocalResult]:
        start = time.perf_counter()
        if len(tasks) not in self._many:
            self._many[len(tasks)] = ManyClients(self._plain, len(tasks)).to(self.device)
        many = self._many[len(tasks)]
        many.folded.load([task.state for task in tasks])
        self.module.learning_rate_factor = tasks[0].learning_rate_factor
        chunk = Chunk(tasks, *self._streams(tasks), self.device)
        self.corrections.gradient.correction = _stacked([task.correction for task in tasks])
        with self._one.kept_trainer("fit", 1, self.corrections.callbacks) as trainer:
            trainer.fit(many, DataLoader(cast(Dataset, [chunk]), batch_size=None))
        return [self._result(chunk, client, time.perf_counter() - start) for client in range(len(tasks))]

    def _streams(self, tasks: Sequence[ClientTask]) -> tuple[list[Iterator[Batch]], list[int], list[int]]:
        """Of each client the batches of all its epochs, how many they are, and how many examples are in them."""
        streams, lengths, num_examples = [], [], []
        for task in tasks:
            epochs = epochs_of(self._one.loader(task.client, task.seed))
            streams.append(epochs.all(self.max_epochs))
            lengths.append(len(epochs.sampler) * self.max_epochs)
            num_examples.append(epochs.sampler.num_examples * self.max_epochs)
        return streams, lengths, num_examples

    def _result(self, chunk: Chunk, client: int, seconds: float) -> LocalResult:
        state, num_steps, rates, loss = chunk.results[client]
        task = chunk.tasks[client]
        loss_mean = float(loss) / chunk.num_examples[client]
        num_examples = self.datamodule.num_examples(task.client)
        return LocalResult(task.client, state, num_examples, num_steps, rates, loss_mean, seconds / len(chunk.tasks))


def _stacked(corrections: Sequence[Correction]) -> Correction:
    """One correction with a first dimension for the client; an offset that a client lacks is zero.

    Raises:
        ValueError: clients are pulled to anchors of different names, or with different strength.
    """
    first = corrections[0]
    if any(c.proximal != first.proximal or c.anchor.keys() != first.anchor.keys() for c in corrections):
        raise ValueError("clients of one chunk must be pulled alike")
    offsets = {name: tensor for correction in corrections for name, tensor in correction.offset.items()}
    return Correction(
        first.proximal,
        {name: torch.stack([c.anchor[name] for c in corrections]) for name in first.anchor},
        {
            name: torch.stack([c.offset.get(name, torch.zeros_like(like)) for c in corrections])
            for name, like in offsets.items()
        },
    )
