"""The reference executor: one client after the other, each a Lightning `Trainer.fit` with an optimizer of its own."""

import copy
import logging
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import validate_call
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from fedpara.data.examples import Batch, Batches, EpochBatches
from fedpara.errors import described
from fedpara.execution.base import ClientFailure, ClientTask, LocalResult, failure
from fedpara.execution.local import FrobeniusDecay, GradientCorrection, JacobianCorrection, LocalRecord
from fedpara.execution.onednn import guard
from fedpara.execution.replay import Capture, CudaGraphs, NotCaptured
from fedpara.execution.training import ONLY_BY_BATCH, LocalTraining
from fedpara.execution.whole_epochs import Epochs, WholeEpochs
from fedpara.heap import keep_freed_memory
from fedpara.metric import Metric
from fedpara.models.contract import FederatedModule, own_methods
from fedpara.models.module import ClassificationModule, evaluating
from fedpara.nn.frozen import constants
from fedpara.private import lightning
from fedpara.private.torch import unscales_gradients
from fedpara.products import fastest_float32, set_products
from fedpara.sampling import substream
from fedpara.state import State, load_state, read_state

log = logging.getLogger(__name__)
NOT_CAPTURED = "steps cannot be captured, so each one is run by itself: %s"


class SerialExecutor:
    """Trains each task on one network, with a fresh optimizer and with fresh loops of one Trainer.

    If the Trainer has objects (callbacks, plugins, a profiler), they may remember a client or change the module. Then
    each task gets its own Trainer, with copies of the objects, and a copy of the module as it was built. A module that
    is not a plain `ClassificationModule` may remember a client too, so each task gets a copy of it.

    Args:
        training: settings of one client's training. On a GPU the module's optimizer becomes a fused one if it can.
        whole_epochs: whether Lightning sees a local epoch as one batch, which gives the same bits in less time;
            `WholeEpochs` says what that excludes. None: on a CPU, unless something is excluded.
        capture: whether a GPU replays the steps of whole epochs as CUDA graphs.

    Attributes:
        device: device on which clients are trained and models tested.
        capture: how steps are captured; None: they are not.
        corrections: callbacks that change gradients; each executor has its own.

    Raises:
        ValueError: `training` needs more than one device, a precision that the device lacks, scaled gradients with a
            fused optimizer, or something that whole epochs exclude.

    Example:
        >>> from functools import partial
        >>> from fedpara.data import IID, FederatedDataModule, mnist_small
        >>> from fedpara.models import MLP, ClassificationModule
        >>> module = ClassificationModule(MLP([784, 10]), partial(torch.optim.SGD, lr=0.1), num_classes=10)
        >>> data = FederatedDataModule(mnist_small, IID(), num_clients=10, num_classes=10, in_channels=1, batch_size=64)
        >>> data.setup()
        >>> training = LocalTraining(module, data, max_epochs=1, accelerator="cpu")
        >>> executor = SerialExecutor(training)
        >>> task = ClientTask(client=0, state=executor.initial_state(), learning_rate_factor=1.0, seed=0)
        >>> (result,) = executor.run([task])
        >>> result.num_examples, result.num_steps
        (400, 7)
    """

    workers = 1

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(self, training: LocalTraining, whole_epochs: bool | None = None, capture: bool = True) -> None:
        _quiet()
        self.training = training
        self.module, self.datamodule = training.module, training.datamodule
        self._objects = training.objects
        self._own = type(self.module) is not ClassificationModule
        if training.wants_gpu and not torch.accelerator.is_available():
            raise ValueError(f"accelerator={training.accelerator}: there is no GPU; take trainer=cpu")
        probe = training.probe()
        if probe.world_size != 1:
            raise ValueError(f"devices={probe.world_size}: must be 1; a client trains on one device")
        self.device = probe.strategy.root_device
        if self.device.type == "cpu":
            keep_freed_memory()
        precision = str(training.precision or probe.precision)
        self._scaled = precision in ("16", "16-mixed")
        if unscales_gradients(training.optimizer(probe)) and self._scaled:
            raise ValueError(f"precision={precision}: must be bf16-mixed, or model.optimizer.fused=false")
        _require_hardware(precision, self.device)
        if isinstance(self.module, ClassificationModule) and self.device.type == "cuda" and not self._scaled:
            self.module.fuse()
        products = training.matmul_precision or (fastest_float32() if self.device.type == "cpu" else "highest")
        set_products(products, self.device)
        self.module.network.to(memory_format=training.memory_format)  # type: ignore[call-overload]
        self._pristine = copy.deepcopy(self.module) if self._objects or self._own else None
        self.corrections = Corrections(training)
        self.capture = self._graphs() if capture else None
        self._whole = self._whole_epochs(whole_epochs)
        self._trainers: dict[str, Trainer] = {}
        self._guarded = self.device.type != "cpu"
        self.trainable = [name for name, p in self.module.network.named_parameters() if p.requires_grad]
        self._initial = read_state(self.module.network)
        buffers, lasting = self.module.network.named_buffers(), self._initial.keys() | constants(self.module.network)
        self._unsaved = {name: buffer.clone() for name, buffer in buffers if name not in lasting}

    def initial_state(self) -> State:
        """A copy of the network as it was built."""
        return dict(self._initial)

    @torch.no_grad()
    def prepare(self) -> None:
        """Check that the network takes the data; for other kinds of modules, `rehearse` checks that.

        Raises:
            ValueError: it does not take them.
        """
        if isinstance(self.module, ClassificationModule):
            self._require_logits()

    def _require_logits(self) -> None:
        one, network = self.example(), self.module.network.to(self.device)
        try:
            with evaluating(network):
                logits = network(one)
        except (RuntimeError, IndexError) as error:
            given = f"inputs of {self.datamodule.name}, {tuple(one.shape[1:])}"
            raise ValueError(f"{type(network).__name__} cannot take {given}: {error}") from error
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != (1, self.datamodule.num_classes):
            found = found[1:] if isinstance(found, tuple) else f"a {found}"
            raise ValueError(f"{type(network).__name__} gives {found}, not a logit for each of the classes")
        self._require_no_lone_example(one)

    def _require_no_lone_example(self, one: Tensor) -> None:
        """Refuse batches of one example if a norm cannot train on them: the same clients would fail in every round."""
        if not (clients := self.datamodule.clients_with_a_lone_example()):
            return
        network = copy.deepcopy(self.module.network)  # a copy, because its statistics would change
        try:
            with torch.random.fork_rng():
                network(one)
        except ValueError as error:
            names = ", ".join(map(str, clients[:10])) + (", ..." if len(clients) > 10 else "")
            raise ValueError(
                f"clients {names} have a batch of a single example, on which {type(network).__name__} cannot train "
                f"({error}); {self._way_out}"
            ) from error

    @property
    def _way_out(self) -> str:
        """Advice for clients with a lone example."""
        if self.datamodule.batch_size == 1:
            return "take a larger data.batch_size"
        if self.datamodule.lone_example == "keep":
            return "take data.lone_example=merge or drop, or another data.batch_size"
        return "they have no other example; take another partition, or a network without batch norm"

    def rehearse(self) -> None:
        """Train one step per epoch of one client, and test on one batch, if a part is the user's own.

        That is the case if the Trainer has objects, or the module is not a plain `ClassificationModule`. Their errors
        would make all clients fail.

        Raises:
            ValueError: the Trainer cannot train with them, or not for all epochs; or the module cannot be tested.
        """
        if not self.datamodule.num_examples(0):  # with real clients the server has none of their examples
            return
        if self._objects or self._own:
            self._rehearse()

    def _rehearse(self) -> None:
        loader, record = self.loader(0, seed=0), LocalRecord()
        examples, _ = next(iter(loader.sampler))
        module = copy.deepcopy(self._pristine)
        assert isinstance(module, LightningModule)
        try:
            with torch.random.fork_rng(), interruptible():
                trainer = self.training.trainer(limit_train_batches=1, limit_test_batches=1)
                given = lightning.callbacks(trainer)
                lightning.set_callbacks(trainer, [*given, record])
                trainer.fit(module, loader)
                lightning.set_callbacks(trainer, given)
                self._require_all_epochs(0, record, len(examples))
                if self._own:
                    (metrics,) = trainer.test(module, self.datamodule.test_dataloader(), verbose=False)
                    Metric.of(module).of_test(_named(metrics))
        except Exception as error:
            raise ValueError(f"a client cannot be trained with this Trainer and module: {described(error)}") from error

    def _require_all_epochs(self, client: int, record: LocalRecord, examples_an_epoch: int) -> None:
        if record.num_examples != (expected := examples_an_epoch * self.training.max_epochs):
            raise RuntimeError(
                f"client {client} trained on {record.num_examples} examples, not on the {expected} of its "
                f"{self.training.max_epochs} epochs: a callback of trainer.callbacks or a hook of the module cut or "
                "added some"
            )

    def example(self) -> Tensor:
        """A batch of one, as the network takes it, on the training device."""
        inputs, _ = next(iter(self.datamodule.test_dataloader()))
        return inputs[:1].to(self.device)

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """Train one task after the other, lazily; an error is a failure of its client alone."""
        for task in tasks:
            yield self._try(task)

    def _try(self, task: ClientTask) -> LocalResult | ClientFailure:
        try:
            return self._fit(task)
        except NotCaptured as error:
            log.warning(NOT_CAPTURED, str(error))
            assert self._whole is not None
            self._whole.steps.stop_capturing()
            return self._try(task)
        except Exception as error:
            outcome = failure(task.client, error)
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # raises if the device itself is lost, which is not a failure of the client
                torch.cuda.empty_cache()
            return outcome

    def _fit(self, task: ClientTask) -> LocalResult:
        start = time.perf_counter()
        module = self._own_module()
        self._load(module.network, task.state)
        module.learning_rate_factor = task.learning_rate_factor
        loader, record = self.loader(task.client, task.seed), LocalRecord()
        self._train(task, module, loader, record)
        if record.num_steps == 0:
            log.warning("client %d applied no step: every one overflowed in half precision", task.client)
        self._require_all_epochs(task.client, record, epochs_of(loader).sampler.num_examples)
        return LocalResult(
            task.client,
            read_state(module.network),
            self.datamodule.num_examples(task.client),
            record.num_steps,
            record.learning_rate_sum,
            record.mean_loss,
            time.perf_counter() - start,
        )

    def _own_module(self) -> FederatedModule:
        """The module, or a copy of it as it was built if a client could leave something in it."""
        if self._pristine is None or self._whole:
            return self.module
        module = copy.deepcopy(self._pristine)
        if hasattr(module, "personal_rates"):  # the split sets them after the executor is built
            module.personal_rates = self.module.personal_rates  # type: ignore[attr-defined]
        return module

    @torch.no_grad()
    def _load(self, network: torch.nn.Module, state: State) -> None:
        """Load the state, and reset buffers outside of it, which would have the values of the last client."""
        load_state(network, state)
        for name, value in self._unsaved.items():
            buffer = network.get_buffer(name)
            if not torch.equal(buffer, value := value.to(buffer)):  # constants can be views that cannot be written
                buffer.resize_(value.shape).copy_(value)

    def _train(self, task: ClientTask, module: FederatedModule, loader: DataLoader[Batch], record: LocalRecord) -> None:
        assert isinstance(module, LightningModule)
        gradient = self.corrections.gradient
        gradient.correction = task.correction
        seed = torch.default_generator.manual_seed if self.device.type == "cpu" else torch.manual_seed  # all devices'
        seed(substream(task.seed, "dropout"))
        with self.kept_trainer("fit", self.training.max_epochs, [record, *self.corrections.callbacks]) as trainer:
            if self._whole is None:
                trainer.fit(module, loader)
            else:
                self._whole.record, self._whole.variant = record, gradient.variant
                trainer.fit(self._whole, epochs_of(loader))

    def loader(self, client: int, seed: int) -> DataLoader[Batch]:
        """A client's batches; the first call also installs the guard for oneDNN."""
        loader = self.datamodule.client_dataloader(client, seed)
        if not self._guarded:
            self._guarded = True
            inputs, _ = loader.dataset[next(iter(loader.sampler))]
            guard(self.module.network.to(self.device), inputs[:1].to(self.device))
        return loader

    def _graphs(self) -> Capture | None:
        return CudaGraphs() if self.device.type == "cuda" and not self._scaled else None

    def _whole_epochs(self, wanted: bool | None) -> WholeEpochs | None:
        reason = self._excludes_whole_epochs()
        if wanted is None:  # on a GPU it would capture the steps too, so there it has to be asked for
            plain = self.training.trainer_class is Trainer and not self.datamodule.num_workers
            wanted = plain and self.device.type == "cpu" and not reason
        if not wanted:
            return None
        if reason:
            raise ValueError(reason)
        assert isinstance(self.module, ClassificationModule)
        return WholeEpochs(self.module, self.capture)

    def _excludes_whole_epochs(self) -> str | None:
        """Why single batches are needed, and the way out."""
        for name in own_methods(self.module, ClassificationModule)[:1]:
            return f"{type(self.module).__name__} has its own {name}: take executor.whole_epochs=false"
        given = self.training.arguments
        for name in ONLY_BY_BATCH & given.keys() | self._objects:
            return f"{name}={given[name]!r}: must be absent, or executor.whole_epochs=false"
        if self.device.type != "cpu" and (workers := self.datamodule.num_workers):
            return f"data.num_workers={workers}: must be 0, or executor.whole_epochs=false"
        return None

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """The module's metrics on the test set or on a client's part; each weight is composed once, not per batch."""
        module = self._own_module()
        assert isinstance(module, LightningModule)
        self._load(module.network, state)
        with parametrize.cached(), self.kept_trainer("test", self.training.max_epochs) as trainer:
            (metrics,) = trainer.test(module, self.datamodule.test_dataloader(client), verbose=False)
        return _named(metrics)

    def close(self) -> None:
        """Do nothing: there is no other process."""

    @contextmanager
    def kept_trainer(self, purpose: str, max_epochs: int, callbacks: Iterable[Callback] = ()) -> Iterator[Trainer]:
        """One Trainer for all clients, reset for each one and replaced after an error. See Note [Kept trainer].

        Args:
            purpose: each purpose has its own Trainer.
            max_epochs: epochs of the fit.
            callbacks: callbacks in addition to the Trainer's.
        """
        trainer = self._trainers.pop(purpose, None) or self.training.trainer()
        lightning.renew_loops(trainer, max_epochs)
        given = lightning.callbacks(trainer)
        lightning.set_callbacks(trainer, [*given, *callbacks])
        with interruptible():
            yield trainer
        if not (self._scaled or self._objects):  # its scale and its objects would be those of the last client
            lightning.set_callbacks(trainer, given)
            self._trainers[purpose] = trainer


class Corrections:
    """The callbacks that change a client's gradients before each optimizer step, in this order.

    Attributes:
        gradient: the algorithm's callback; give it the client's correction before a fit.
        callbacks: all of them.
    """

    def __init__(self, training: LocalTraining) -> None:
        self.gradient = GradientCorrection()
        correction, decay = training.jacobian_correction, training.frobenius_decay
        jacobian = [JacobianCorrection(correction)] if correction else []
        frobenius = [FrobeniusDecay(decay)] if decay else []  # first, so that J_W has it, as the factors' gradients do
        self.callbacks: list[Callback] = [*frobenius, *jacobian, self.gradient]


def epochs_of(loader: DataLoader[Batch]) -> Epochs:
    """The same batches, with one epoch per item."""
    batches, keys = loader.dataset, loader.sampler
    assert isinstance(batches, Batches)
    assert isinstance(keys, EpochBatches)
    return Epochs(batches, keys)


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a module logged in its test; one that has `test/` before its names means the same."""
    return {name.removeprefix("test/"): float(value) for name, value in metrics.items()}


def _require_hardware(precision: str, device: torch.device) -> None:
    """Refuse float16 on a CPU, where Lightning would take bfloat16, and bfloat16 on a GPU that emulates it."""
    if precision.startswith("16") and device.type == "cpu":
        raise ValueError(f"precision={precision}: needs a GPU; on a CPU take bf16-mixed or 32-true")
    if precision.startswith("bf16") and device.type == "cuda":
        with torch.cuda.device(device):  # the current one is asked
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise ValueError(f"precision={precision}: {device} has no bfloat16; take 16-mixed or 32-true")


@contextmanager
def interruptible() -> Iterator[None]:
    """Undo what Lightning does on an interruption: it raises `SystemExit` and turns SIGINT off."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from end


def _quiet() -> None:
    """Silence Lightning's banner, which would appear thousands of times."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
