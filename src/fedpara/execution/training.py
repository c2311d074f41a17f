"""The settings of one client's training, which every executor takes, and the Trainer made from them."""

import copy
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import LightningEnvironment

from fedpara.data.datamodule import FederatedDataModule
from fedpara.models.contract import FederatedModule, optimizer_of, require_module
from fedpara.nn import factorizations
from fedpara.private.lightning import stay_on_device

CUT_EPOCHS = {"fast_dev_run", "max_steps", "max_time", "limit_train_batches", "overfit_batches"}
ONLY_BY_BATCH = {"gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches", "overfit_batches"}
# switched off in a client's Trainer, and the key that a run has instead
OF_EVERY_FIT: dict[str, tuple[object, str]] = {
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
MatmulPrecision = Literal["highest", "high", "medium"]


def _require_epochs(given: object) -> object:
    """Require a finite number of epochs, at least one."""
    if not isinstance(given, int) or given < 1:
        raise ValueError(f"max_epochs={given!r}: must be a whole number of local epochs, 1 or more")
    return given


def _allowed(options: Mapping[str, object]) -> Mapping[str, object]:
    """Refuse options that cut a client's epochs, and those that do not belong to a client's Trainer."""
    for name in sorted(CUT_EPOCHS & options.keys()):
        raise ValueError(f"{name}={options[name]!r}: must be absent, it cuts a client's epochs; see data.max_train")
    for name in OF_EVERY_FIT.keys() & options.keys():
        ours, instead = OF_EVERY_FIT[name]
        if options[name] is not None and options[name] != ours:
            raise ValueError(f"{name}={options[name]!r}: must be absent from a client's Trainer; see {instead}")
    return options


@dataclass(frozen=True, eq=False, config=ConfigDict(arbitrary_types_allowed=True))
class LocalTraining:
    """The settings of one client's training. Each executor adds where clients are trained, and how many at once.

    Example:
        >>> from functools import partial
        >>> from torch import nn
        >>> from fedpara.data import IID, mnist_small
        >>> from fedpara.models import ClassificationModule
        >>> module = ClassificationModule(nn.Linear(784, 10), partial(torch.optim.SGD, lr=0.1), num_classes=10)
        >>> data = FederatedDataModule(mnist_small, IID(), num_clients=10, num_classes=10, in_channels=1, batch_size=64)
        >>> training = LocalTraining(module, data, max_epochs=2, accelerator="cpu", options={"gradient_clip_val": 1.0})
        >>> training.trainer().max_epochs, training.jacobian_correction
        (2, 0.0)

    Attributes:
        module: a LightningModule with the interface of `FederatedModule`.
        datamodule: gives each client's batches and the test batches.
        max_epochs: local epochs of a client.
        precision: the Trainer's precision; None: its default, 32-true.
        accelerator: the Trainer's accelerator: `auto`, `cpu`, `gpu`, or an object.
        jacobian_correction: lambda of FedPara's regulariser (appendix B); 0: none.
        frobenius_decay: l of the penalty l/2 |W|^2 on each composed weight; None: none.
        matmul_precision: precision of float32 products in the whole process: `highest`, `high` (TF32 on a GPU, also in
            convolutions) or `medium` (oneDNN's kernels, in bfloat16 if the processor has matrix units for it). None:
            the fastest one that is float32, see Note [Float32 products].
        memory_format: format of the network's 4-D weights; convolutions are faster in `channels_last`.
        options: further arguments of the Trainer.
        trainer_class: class of the Trainer.

    Raises:
        ValueError: `max_epochs` is not a positive number, an option is not allowed in a client's Trainer, or the module
            does not have the interface.
    """

    module: Annotated[FederatedModule, PlainValidator(require_module)]
    datamodule: FederatedDataModule
    max_epochs: Annotated[int, BeforeValidator(_require_epochs)]
    precision: object = None
    accelerator: object = "auto"
    jacobian_correction: Annotated[float, Field(ge=0)] = 0.0
    frobenius_decay: Annotated[float, Field(ge=0)] | None = None
    matmul_precision: MatmulPrecision | None = None
    memory_format: torch.memory_format = torch.channels_last
    options: Annotated[Mapping[str, object], AfterValidator(_allowed)] = field(default_factory=dict)
    trainer_class: type[Trainer] = Trainer

    @property
    def arguments(self) -> dict[str, object]:
        """The Trainer's arguments, by name, as they were given."""
        own = {"max_epochs": self.max_epochs, "precision": self.precision, "accelerator": self.accelerator}
        return own | dict(self.options)

    @property
    def objects(self) -> frozenset[str]:
        """Names of the Trainer's arguments that are objects, because these may remember a client."""
        given = self.arguments.items()
        return frozenset(name for name, value in given if name == "profiler" or not _is_plain(value))

    @property
    def wants_gpu(self) -> bool:
        """Whether the accelerator must be a GPU."""
        return self.accelerator in ("gpu", "cuda")

    @property
    def names_a_device(self) -> bool:
        """Whether the Trainer's `devices` name a certain GPU, such as [2], instead of a number of them."""
        return self.options.get("devices") not in (None, 1, -1, "1", "-1", "auto")

    def trainer(self, **options: object) -> Trainer:
        """A new Trainer, which shares nothing with others.

        Args:
            options: further arguments for this Trainer.
        """
        given = copy.deepcopy(self.arguments)
        plugins = given.pop("plugins", None) or []
        trainer = self.trainer_class(
            **given | {name: value for name, (value, _) in OF_EVERY_FIT.items()} | options,  # type: ignore[arg-type]
            # otherwise every client's Trainer would read SLURM's number of tasks
            plugins=[*(plugins if isinstance(plugins, list) else [plugins]), LightningEnvironment()],
        )
        stay_on_device(trainer)
        return trainer

    def probe(self) -> Trainer:
        """A new Trainer that is asked and never run.

        It has no data, so that Lightning gives its `max_steps` as `estimated_stepping_batches`, by which modules make
        their schedulers; one step an epoch stands for the number that is not known yet.
        """
        return self.trainer(max_steps=self.max_epochs)

    def optimizer(self, trainer: Trainer | None = None) -> torch.optim.Optimizer:
        """The optimizer that the module's `configure_optimizers` gives, called before any training.

        Args:
            trainer: the Trainer that the module sees meanwhile; None: a new one.

        Raises:
            ValueError: a client cannot be trained with it.
        """
        return optimizer_of(self.module, trainer or self.probe())

    @property
    def needs_sgd(self) -> str:
        """What is made for the step of SGD, as the message of `require_sgd` names it; empty if nothing is."""
        if self.jacobian_correction:
            return f"jacobian_correction={self.jacobian_correction:g}: must be 0"
        scaled = any(made.gradient_scale != 1 for _, made in factorizations(self.module.network))
        return "step must be null" if scaled else ""

    def require_sgd(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse factors whose gradients are made for the step of SGD with an optimizer that takes another.

        Raises:
            ValueError: the message names the setting and the allowed value.
        """
        if self.needs_sgd and not isinstance(optimizer, torch.optim.SGD):
            name = type(optimizer).__name__
            raise ValueError(f"{self.needs_sgd} with {name}, for it scales gradients of SGD; or take torch.optim.SGD")

    def without_data(self) -> dict[str, object]:
        """Everything except the data module, by name; that is sent to another process separately."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "datamodule"}


def _is_plain(value: object) -> bool:
    """Whether a value has no state; a list, such as one of devices, is plain if its items are."""
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, Plain)
