"""The reference executor: one client after the other, each a Lightning `Trainer.fit` with an optimizer of its own."""

import copy
import logging
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, validate_call
from pytorch_lightning import Trainer
from pytorch_lightning.loops.fit_loop import _FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.nn.utils import parametrize

from fedpara.data.datamodule import FederatedDataModule
from fedpara.data.examples import Batches, EpochBatches
from fedpara.execution.base import ClientFailure, ClientTask, LocalResult, failure
from fedpara.execution.local import GradientCorrection, JacobianCorrection, LocalRecord
from fedpara.execution.onednn import guard
from fedpara.execution.whole_epochs import CudaGraphs, Epochs, NotCaptured, WholeEpochs
from fedpara.models.module import ClassificationModule, evaluating, fused
from fedpara.sampling import substream
from fedpara.state import State, load_state, read_state

log = logging.getLogger(__name__)
CUT_EPOCHS = {"fast_dev_run", "max_steps", "max_time", "limit_train_batches", "overfit_batches"}
ONLY_BY_BATCH = {"gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "overfit_batches"}
OF_EVERY_FIT = {  # what a client's Trainer does without, and where a run has it
    "logger": (False, "the group logger"),
    "enable_checkpointing": (False, "callbacks.checkpoint"),
    "enable_progress_bar": (False, "callbacks.progress"),
    "enable_model_summary": (False, "print(network)"),
    "num_sanity_val_steps": (0, "federation.eval_every"),
    "limit_val_batches": (0, "federation.eval_every"),
    "limit_test_batches": (None, "data.max_test"),
    "use_distributed_sampler": (False, "executor=processes or ray"),
}
Plain = bool | int | float | str | None
MakeTrainer = Callable[..., Trainer]


class SerialExecutor:
    """Trains each task with a fresh optimizer and fresh loops of one Trainer, on one network that is loaded and read.

    Where the Trainer is given objects (callbacks, plugins, a profiler), which may remember a client or change what they
    are attached to, each task has a Trainer of its own, with copies of them, and a copy of the module as it was built.

    Args:
        module: the LightningModule; its `learning_rate_factor` is set for every task, and on a GPU its optimizer is
            the fused one where it has that.
        datamodule: gives each client's batches and the test batches.
        trainer: `functools.partial(Trainer, max_epochs=E, ...)`; called with what a client's fit needs besides
            (no loggers, checkpoints, bars).
        jacobian_correction: lambda of FedPara's regulariser (appendix B), 0 for none.
        whole_epochs: a local epoch is one batch of Lightning's, see `WholeEpochs` for what that leaves out; on a GPU
            its steps are captured once and replayed.
        matmul_precision: of float32 products, process-wide: `highest`, `high` (TF32 on a GPU, in convolutions too) or
            `medium` (bfloat16 where the processor has units for it; on others oneDNN's float32 kernels, often faster).

    Raises:
        ValueError: `trainer` would train no epoch, or without end, on more than one device, in a precision that the
            device has not, in one whose scaled gradients a fused optimizer would step on, with what whole epochs
            leave out, or with what a client's Trainer cannot be given.
    """

    workers = 1

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        module: ClassificationModule,
        datamodule: FederatedDataModule,
        trainer: Any,
        jacobian_correction: Annotated[float, Field(ge=0)] = 0.0,
        whole_epochs: bool = False,
        matmul_precision: Literal["highest", "high", "medium"] = "highest",
    ) -> None:
        self.module, self.datamodule, self.jacobian_correction = module, datamodule, jacobian_correction
        self.make_trainer: MakeTrainer = trainer
        _quiet()
        options: dict[str, Any] = getattr(trainer, "keywords", {})
        _require_allowed(options)
        self._objects = {name for name, value in options.items() if name == "profiler" or not _is_plain(value)}
        self._pristine = copy.deepcopy(module) if self._objects else module
        max_epochs = options.get("max_epochs")
        if not isinstance(max_epochs, int) or max_epochs < 1:
            raise ValueError(f"max_epochs={max_epochs!r}: must be a whole number of local epochs, 1 or more")
        if options.get("accelerator") in ("gpu", "cuda") and not torch.accelerator.is_available():
            raise ValueError(f"accelerator={options['accelerator']}: there is no GPU; take trainer=cpu")
        probe = self._trainer()
        if probe.world_size != 1:
            raise ValueError(f"devices={probe.world_size}: must be 1; a client trains on one device")
        self.device = probe.strategy.root_device
        precision = str(options.get("precision") or probe.precision)
        scaled = precision in ("16", "16-mixed")
        if scaled and getattr(module.configure_optimizers(), "_step_supports_amp_scaling", False):
            # it unscales gradients itself, after corrections were added to them
            raise ValueError(f"precision={precision}: must be bf16-mixed, or model.optimizer.fused=false")
        _require_hardware(precision, self.device)
        if self.device.type == "cuda" and not scaled:
            module.make_optimizer = fused(module.make_optimizer)
        self.max_epochs, self._scaled = max_epochs, scaled
        torch.backends.cudnn.allow_tf32 = matmul_precision != "highest"  # convolutions are products too
        torch.set_float32_matmul_precision(matmul_precision)
        module.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # convolutions are quicker
        self._corrections: list[Any] = [GradientCorrection()]
        if jacobian_correction:
            self._corrections.insert(0, JacobianCorrection(jacobian_correction))
        self._whole = self._whole_epochs(options) if whole_epochs else None
        self._trainers: dict[str, Trainer] = {}
        self._guarded = self.device.type != "cpu"
        self.trainable = [name for name, p in module.network.named_parameters() if p.requires_grad]
        self._initial = read_state(module.network)
        buffers = module.network.named_buffers()
        self._unsaved = {name: buffer.clone() for name, buffer in buffers if name not in self._initial}

    def initial_state(self) -> State:
        """A copy of the network as it was built."""
        return dict(self._initial)

    @torch.no_grad()
    def try_one_example(self) -> None:
        """See that the network takes what the data set gives.

        Raises:
            ValueError: it does not.
        """
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
        """A batch of one is an error of some norms in training, which would fail the same clients in every round."""
        if not (clients := self.datamodule.clients_with_a_lone_example()):
            return
        network = copy.deepcopy(self.module.network)  # whose statistics would change
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
        """For clients with a lone example."""
        if self.datamodule.batch_size == 1:
            return "take a larger data.batch_size"
        if self.datamodule.lone_example == "keep":
            return "take data.lone_example=merge or drop, or another data.batch_size"
        return "they have no other example; take another partition, or a network without batch norm"

    def rehearse(self) -> None:
        """One step an epoch of one client, where the Trainer is given objects: what they refuse, all would fail with.

        Raises:
            ValueError: the Trainer cannot train with them, or not for all epochs.
        """
        if not (self._objects and self.datamodule.num_examples(0)):  # in deploy/ the server has no client's
            return
        loader, record = self._loader(0, seed=0), LocalRecord()
        examples, _ = next(iter(loader.sampler))
        try:
            with torch.random.fork_rng(), interruptible():
                trainer = self._trainer(limit_train_batches=1)
                vars(trainer)["callbacks"] += [record]
                trainer.fit(self._own_module(), loader)
            self._require_all_epochs(0, record, len(examples))
        except Exception as error:
            cause = str(error) or type(error).__name__
            raise ValueError(f"a client cannot be trained with what it is given: {cause}") from error

    def _require_all_epochs(self, client: int, record: LocalRecord, examples_an_epoch: int) -> None:
        if record.num_examples != (expected := examples_an_epoch * self.max_epochs):
            raise RuntimeError(
                f"client {client} trained on {record.num_examples} examples, not on the {expected} of its "
                f"{self.max_epochs} epochs: a callback of trainer.callbacks or a hook of the module cut or added some"
            )

    def example(self) -> Tensor:
        """A batch of one, as the network takes it, where the network is trained."""
        inputs, _ = next(iter(self.datamodule.test_dataloader()))
        return inputs[:1].to(self.device)

    def run(self, tasks: Iterable[ClientTask]) -> Iterator[LocalResult | ClientFailure]:
        """One task after the other, lazily; one that raises is a failure of its client alone."""
        for task in tasks:
            yield self._try(task)

    def _try(self, task: ClientTask) -> LocalResult | ClientFailure:
        try:
            return self._fit(task)
        except NotCaptured as error:
            log.warning("every step is run as it is, for none could be captured: %s", error)
            assert self._whole is not None
            self._whole.capture = None
            return self._try(task)
        except Exception as error:
            outcome = failure(task.client, error)
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # raises where the device itself is lost: that is no client's failure
                torch.cuda.empty_cache()
            return outcome

    def _fit(self, task: ClientTask) -> LocalResult:
        start = time.perf_counter()
        module = self._own_module()
        self._load(module.network, task.state)
        module.learning_rate_factor = task.learning_rate_factor
        loader, record = self._loader(task.client, task.seed), LocalRecord()
        self._train(task, module, loader, record)
        if record.num_steps == 0:
            log.warning("client %d applied no step: every one overflowed in half precision", task.client)
        self._require_all_epochs(task.client, record, loader.sampler.num_examples)
        return LocalResult(
            task.client,
            read_state(module.network),
            self.datamodule.num_examples(task.client),
            record.num_steps,
            record.learning_rate_sum,
            record.mean_loss,
            time.perf_counter() - start,
        )

    def _own_module(self) -> ClassificationModule:
        """The one module, or a copy as it was built where something could be left behind in it."""
        return copy.deepcopy(self._pristine) if self._objects else self.module

    @torch.no_grad()
    def _load(self, network: torch.nn.Module, state: State) -> None:
        """The state, and buffers that are in no state as they were built: they would be the last client's."""
        load_state(network, state)
        for name, value in self._unsaved.items():
            buffer = network.get_buffer(name)
            if not torch.equal(buffer, value := value.to(buffer)):  # constants may be views that cannot be written
                buffer.resize_(value.shape).copy_(value)

    def _train(self, task: ClientTask, module: ClassificationModule, loader: Any, record: LocalRecord) -> None:
        *_, gradient = self._corrections
        gradient.correction = task.correction
        torch.manual_seed(substream(task.seed, "dropout"))
        with self._kept_trainer("fit") as trainer, interruptible():
            vars(trainer)["callbacks"] += [record, *self._corrections]
            if self._whole is None:
                trainer.fit(module, loader)
            else:
                self._whole.record, self._whole.variant = record, gradient.variant
                trainer.fit(self._whole, epochs_of(loader))

    def _loader(self, client: int, seed: int) -> Any:
        """A client's batches, on which the network can be trained safely."""
        loader = self.datamodule.client_dataloader(client, seed)
        if not self._guarded:
            self._guarded = True
            inputs, _ = loader.dataset[next(iter(loader.sampler))]
            guard(self.module.network.to(self.device), inputs[:1].to(self.device))
        return loader

    def _whole_epochs(self, options: dict[str, Any]) -> WholeEpochs:
        for name in ONLY_BY_BATCH & options.keys() | self._objects:
            raise ValueError(f"{name}={options[name]!r}: must be absent, or executor.whole_epochs=false")
        if self.device.type != "cpu" and (workers := self.datamodule.num_workers):
            raise ValueError(f"data.num_workers={workers}: must be 0, or executor.whole_epochs=false")
        return WholeEpochs(self.module, CudaGraphs() if self.device.type == "cuda" and not self._scaled else None)

    def evaluate(self, state: State, client: int | None = None) -> dict[str, float]:
        """Accuracy and loss on the test set or a client's part of it; a weight is composed once, not once a batch."""
        module = self._own_module()
        self._load(module.network, state)
        with parametrize.cached(), self._kept_trainer("test") as trainer, interruptible():
            (metrics,) = trainer.test(module, self.datamodule.test_dataloader(client), verbose=False)
        return {name: float(value) for name, value in metrics.items()}

    def close(self) -> None:
        """Nothing runs beside this process."""

    @contextmanager
    def _kept_trainer(self, purpose: str, max_epochs: int | None = None) -> Iterator[Trainer]:
        """One Trainer for all clients, with new loops and callbacks for each; after an error another one."""
        trainer = self._trainers.pop(purpose, None) or self._trainer()
        trainer.fit_loop = _FitLoop(trainer, max_epochs=max_epochs or self.max_epochs)
        trainer.fit_loop.epoch_loop = _TrainingEpochLoop(trainer)
        given = list(vars(trainer)["callbacks"])
        yield trainer
        if not (self._scaled or self._objects):  # its scale, or what it was given, would be the last client's
            vars(trainer)["callbacks"] = given
            self._trainers[purpose] = trainer

    def _trainer(self, **options: Any) -> Trainer:
        """A new one, which shares nothing with others."""
        make = copy.deepcopy(self.make_trainer)
        plugins = getattr(make, "keywords", {}).get("plugins") or []
        trainer = make(
            **{name: value for name, (value, _) in OF_EVERY_FIT.items()},
            # a Trainer a client must not read SLURM's number of tasks
            plugins=[*(plugins if isinstance(plugins, list) else [plugins]), LightningEnvironment()],
            **options,
        )
        # Lightning would move model and optimizer to the CPU after every client, and back before the next; and free all
        # cached memory of a GPU before each
        trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]
        trainer.accelerator.setup = lambda trainer: None  # type: ignore[method-assign]
        return trainer


def epochs_of(loader: Any) -> Epochs:
    """The same batches, an epoch an item."""
    return Epochs(cast(Batches, loader.dataset), cast(EpochBatches, loader.sampler))


def _is_plain(value: Any) -> bool:
    """Whether it can remember nothing; lists, as of devices, are judged by what is in them."""
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, Plain)


def _require_allowed(options: dict[str, Any]) -> None:
    """Refuse what would cut a client's epochs, and what is not for a client's Trainer to say."""
    for name in CUT_EPOCHS & options.keys():
        raise ValueError(f"{name}={options[name]!r}: must be absent, it cuts a client's epochs; see data.max_train")
    for name in OF_EVERY_FIT.keys() & options.keys():
        ours, instead = OF_EVERY_FIT[name]
        if options[name] is not None and options[name] != ours:
            raise ValueError(f"{name}={options[name]!r}: must be absent from a client's Trainer; see {instead}")


def _require_hardware(precision: str, device: torch.device) -> None:
    """On a CPU Lightning would take bfloat16 for float16, and an old GPU emulates bfloat16 slowly."""
    if precision.startswith("16") and device.type == "cpu":
        raise ValueError(f"precision={precision}: needs a GPU; on a CPU take bf16-mixed or 32-true")
    if precision.startswith("bf16") and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"precision={precision}: this GPU has no bfloat16; take 16-mixed or 32-true")


@contextmanager
def interruptible() -> Iterator[None]:
    """Lightning turns an interruption into `SystemExit`, and SIGINT off; turn both back."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from end


def _quiet() -> None:
    """A Trainer a client would repeat its banner thousands of times."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
