"""The objects of a configuration: network, data, executor, federation."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from fedpara.app.errors import ConfigurationError
from fedpara.app.make import Make
from fedpara.app.values import check_values

if TYPE_CHECKING:  # torch takes seconds to import, and only a run that trains needs it
    from torch import nn

    from fedpara.data import FederatedDataModule
    from fedpara.execution import Executor
    from fedpara.federation import Federation, FederationCallback, MakeClients, Tier
    from fedpara.models import FederatedModule

log = logging.getLogger(__name__)
# typed under `factorization`, read by other objects
NOT_OF_RECIPE = {"jacobian_correction", "frobenius_decay", "num_dense", "delta", "trainable"}
READ_ELSEWHERE = {"network", "keep_dense", "head"}  # the same for `model`
GROUPS = (
    "model", "model.network", "model.optimizer", "factorization", "algorithm", "sharing", "link", "executor", "data",
    "data.dataset", "partition", "federation", "aggregation", "privacy", "faults", "trainer", "callbacks", "paths",
)  # fmt: skip


@dataclass
class Experiment:
    """The objects of one configuration, before its federation exists.

    Attributes:
        parameters: numbers of parameters, by their names in summary.json.
        tiers: clients of different size, by name; empty without `federation.tiers`.
    """

    datamodule: "FederatedDataModule"
    executor: "Executor"
    parameters: dict[str, int]
    tiers: "dict[str, Tier]"


Build = Callable[[DictConfig, "Sequence[FederationCallback]"], "tuple[Experiment, Federation]"]


def build_experiment(cfg: DictConfig) -> Experiment:
    """Make network, data and executor of a configuration.

    Raises:
        ConfigurationError: a value is wrong or data are missing; one line.
    """
    check_values(cfg)
    import torch

    from fedpara.sampling import seed_of_weights

    make = Make(cfg)
    make.require_targets("factorization", "executor", "data.dataset")
    torch.manual_seed(seed_of_weights(cfg.seed))
    partition = make("partition")
    datamodule = make("data", partition=partition, num_clients=cfg.federation.num_clients, seed=cfg.seed)
    network = make("model.network")
    make.call("model.network", _require_real, network)
    make.call("pretrained", _load_pretrained, network, cfg)
    dense = sum(parameter.numel() for parameter in network.parameters())
    recipe = make.call("factorization", _factorize, network, cfg)
    factorized = sum(parameter.numel() for parameter in network.parameters())
    module = make.call("model", _own_module, cfg.model, network) if has_own_module(cfg) else _classifier(cfg, network)
    tiers = make_tiers(cfg, network, recipe)
    executor = make.call("trainer", build_executor, cfg, module, datamodule, tiers)
    return Experiment(datamodule, executor, {"dense": dense, "factorized": factorized}, tiers)


def _classifier(cfg: DictConfig, network: "nn.Module") -> "FederatedModule":
    """Make the module for classification with `model.optimizer`."""
    from fedpara.models import ClassificationModule

    make = Make(cfg)
    optimizer = make("model.optimizer")
    make.call("model.optimizer", optimizer, network.parameters())  # the optimizer checks its values before slow steps
    make.call("data", _require_classes, cfg.data.num_classes)
    return ClassificationModule(network, optimizer, cfg.data.num_classes)


def has_own_module(cfg: DictConfig) -> bool:
    """Whether `model._target_` names a LightningModule of the user's own."""
    return OmegaConf.select(cfg, "model._target_") is not None


def groups(cfg: DictConfig) -> list[str]:
    """The groups of keys that a configuration must have."""
    return [group for group in GROUPS if group != "model.optimizer" or not has_own_module(cfg)]


def _own_module(model: DictConfig, network: "nn.Module") -> "FederatedModule":
    """Make the user's module from `network` and all keys of `model` that are not read elsewhere."""
    from fedpara.models.contract import require_module

    options: Any = OmegaConf.to_container(model, resolve=True)
    own = {key: value for key, value in options.items() if key not in READ_ELSEWHERE}
    # an experiment may set an optimizer's rate, though the model has no optimizer
    if "_target_" not in (own.get("optimizer") or {}):
        own.pop("optimizer", None)
    return require_module(instantiate(own, _partial_=True)(network=network))


def _require_classes(num_classes: int | None) -> None:
    if num_classes is None:
        raise ValueError("num_classes=None: must be a number, unless model._target_ names a module of your own")


def _load_pretrained(network: "nn.Module", cfg: DictConfig) -> None:
    from fedpara.models import load_pretrained

    given = cfg.get("pretrained") or {}  # runs from before this key have none
    if file := given.get("file"):
        load_pretrained(network, Path(file), list(cfg.model.head), given.get("crc32"))


def _factorize(network: "nn.Module", cfg: DictConfig) -> Any:
    """Factorise the network in place; returns the recipe."""
    from fedpara.nn import factorize

    options: Any = OmegaConf.to_container(cfg.factorization, resolve=True)  # its keys refer to other groups
    recipe = instantiate({key: value for key, value in options.items() if key not in NOT_OF_RECIPE})
    _require_start(cfg, recipe, bool(options.get("delta")))
    arguments = {key: options[key] for key in ("num_dense", "delta", "trainable") if key in options}
    factorize(network, recipe, list(cfg.model.keep_dense), **arguments)
    return recipe


def _require_start(cfg: DictConfig, recipe: Any, delta: bool) -> None:
    """Refuse a warm start that cannot be made, and warn of pretrained weights that random factors replace."""
    from fedpara.nn import PFedPara

    pretrained, initialization = OmegaConf.select(cfg, "pretrained.file"), getattr(recipe, "initialization", None)
    if initialization != "fitted":
        if pretrained and initialization and not delta:  # dense and FedMUD keep the weights, and have none
            text = "factorization.initialization=%s: random factors replace the pretrained weights; fitted ones do not"
            log.warning(text, initialization)
        return
    if not pretrained:
        raise ValueError("initialization=fitted: needs weights to start from, pretrained.file=...")
    if OmegaConf.select(cfg, "federation.tiers"):
        raise ValueError("initialization=fitted: must be another one with federation.tiers, its columns have no order")
    if isinstance(recipe, PFedPara):
        raise ValueError(
            "initialization=fitted: must be another one with pFedPara, where a client's half may be fitted anew, "
            "to other values, when the run goes on elsewhere"
        )


def make_tiers(cfg: DictConfig, network: "nn.Module", recipe: Any) -> "dict[str, Tier]":
    """The tiers of `federation.tiers`, each with the ranks of its gamma; none without the key."""
    key = "federation.tiers"
    given = OmegaConf.select(cfg, key)
    if given is None:
        return {}
    if not isinstance(given, DictConfig) or not all(isinstance(tier, DictConfig) for tier in given.values()):
        raise ConfigurationError(f"{key}={given}: must be null, or {{name: {{share: 0.5, gamma: 0.1}}, ...}}")
    tiers = {str(name): tier for name, tier in given.items()}
    for name, tier in tiers.items():
        if "gamma" not in tier:
            raise ConfigurationError(f"{key}.{name}.gamma: must be given")
    return {name: Make(cfg).call(f"{key}.{name}", _tier, network, recipe, tier) for name, tier in tiers.items()}


def _tier(network: "nn.Module", recipe: Any, given: DictConfig) -> "Tier":
    from fedpara.federation import Tier
    from fedpara.nn import ranks_at

    values: Any = OmegaConf.to_container(given, resolve=True)
    gamma, own = values.pop("gamma"), getattr(recipe, "gamma", 1.0)
    if not isinstance(gamma, int | float) or not 0 <= gamma <= own:
        raise ValueError(f"gamma={gamma}: must be a number, 0 to factorization.gamma ({own:g})")
    return Tier(**values, ranks=ranks_at(network, recipe, gamma))


def build_executor(
    cfg: DictConfig, module: "FederatedModule", datamodule: "FederatedDataModule", tiers: "Mapping[str, Tier]"
) -> "Executor":
    """The executor of a configuration; the settings of one client's training come from three groups."""
    from fedpara.execution import LocalTraining, tiered

    trainer = dict(instantiate(cfg.trainer, _convert_="all", _target_="builtins.dict", _partial_=False))
    said = {name: trainer.pop(name) for name in ("max_epochs", "precision", "accelerator") if name in trainer}
    training = LocalTraining(
        module,
        datamodule,
        **{"max_epochs": None} | said,
        jacobian_correction=cfg.factorization.get("jacobian_correction", 0.0),
        frobenius_decay=cfg.factorization.get("frobenius_decay"),
        matmul_precision=_matmul_precision(cfg.executor),
        options=trainer,
        trainer_class=_trainer_class(cfg.trainer),
    )
    # `training` is not an argument of `instantiate`, because Hydra would convert its contents
    make = instantiate(_without_training(cfg.executor), _partial_=True)
    executor: Executor = (tiered(make, [tier.ranks for tier in tiers.values()]) if tiers else make)(training)
    return executor


def _trainer_class(trainer: DictConfig) -> Any:
    target = trainer.get("_target_")
    if not isinstance(target, str):
        raise ValueError(f"_target_={target}: must name a Trainer, such as pytorch_lightning.Trainer")
    return get_class(target)


def _matmul_precision(executor: DictConfig) -> Any:
    """The value of the executor, or of the one in each worker, whichever has the key."""
    found = [OmegaConf.select(executor, key) for key in ("matmul_precision", "inner.matmul_precision")]
    return next((value for value in found if value is not None), None)


def _without_training(executor: DictConfig) -> dict[str, Any]:
    """The keys of the executor and its inner ones, without those that belong to `LocalTraining`."""
    own: Any = OmegaConf.to_container(executor, resolve=True)
    node = own
    while isinstance(node, dict):
        node.pop("matmul_precision", None)
        node = node.get("inner")
    return own


def build_federation(
    cfg: DictConfig,
    experiment: Experiment,
    clients: "MakeClients | None" = None,
    callbacks: "Sequence[FederationCallback]" = (),
) -> "Federation":
    """The federation over an experiment, and the sizes of its shared and its personal part.

    Args:
        clients: the argument of `Federation`; None: simulated clients that keep their states in memory.
    """
    from fedpara.callbacks import Audit, Checkpoint
    from fedpara.federation import Federation
    from fedpara.nn import stacked_factors
    from fedpara.sharing import Resetting, resetting
    from fedpara.state import first_names, num_elements

    state, network = experiment.executor.initial_state(), experiment.executor.module.network
    make = Make(cfg)
    split = make("sharing", names=list(state), tied=first_names(network), stacks=stacked_factors(network))
    split = make.call("sharing", resetting, split, network, cfg.seed)
    make.call("sharing", _require_whole_weights, network, set(split.personal))
    make.call("sharing", split.set_rates, experiment.executor.module)
    training = experiment.executor.training
    make.call("sharing", split.require_steps, training.jacobian_correction)
    algorithm = make("algorithm")
    made_by = "model" if has_own_module(cfg) else "model.optimizer"
    optimizer = make.call(made_by, training.optimizer)
    make.call(made_by, algorithm.require, optimizer)
    make.call(made_by, split.require, optimizer)
    make.call("factorization", training.require_sgd, optimizer)
    link = make("link")
    privacy = make("privacy") if cfg.get("privacy") else None
    aggregation = make("aggregation") if cfg.get("aggregation") else None
    options: Any = OmegaConf.to_container(cfg.federation, resolve=True)
    options |= {"seed": cfg.seed, "clients": clients, "privacy": privacy, "aggregation": aggregation}
    options["tiers"] = experiment.tiers
    parts = (experiment.executor, algorithm, link, split, list(callbacks))
    federation: Federation = make.call("federation", Federation, *parts, **options)
    for callback in federation.callbacks:
        if isinstance(callback, Audit | Checkpoint):
            make.call(f"callbacks.{type(callback).__name__.lower()}", callback.require, federation)
    personal = num_elements(split.personal_part(state))
    experiment.parameters |= {"shared": federation.num_shared, "personal": personal}
    if isinstance(split, Resetting):
        experiment.parameters["up"] = num_elements(split.movable(federation.server["model"]))
    if tiers := federation.tiers:
        held = {tier: tiers.narrowed(number, federation.server["model"]) for number, tier in enumerate(tiers.names)}
        experiment.parameters |= {f"shared_{tier}": num_elements(own) for tier, own in held.items()}
    return federation


def _require_whole_weights(network: "nn.Module", personal: set[str]) -> None:
    """Refuse a split within FedPara's W1 * W2: a client can keep a half only in pFedPara's W1 * (W2 + 1)."""
    from fedpara.nn import Hadamard

    for layer, weight in network.named_modules():
        if isinstance(weight, Hadamard):
            kept = [name for name, _ in weight.named_parameters() if f"{layer}.{name}" in personal]
            if 0 < len(kept) < len(list(weight.parameters())):
                raise ValueError(f"{layer} would be split, {', '.join(kept)} personal; take factorization=pfedpara")


def build(cfg: DictConfig, callbacks: "Sequence[FederationCallback]" = ()) -> "tuple[Experiment, Federation]":
    """Make everything in a configuration except its callbacks and loggers.

    Args:
        callbacks: callbacks of the federation; if one is a `Checkpoint`, clients keep their states in its files.
    """
    from fedpara.callbacks import Checkpoint
    from fedpara.federation import simulated

    experiment = build_experiment(cfg)
    executor = Make(cfg)("faults", executor=experiment.executor)
    checkpoint = next((callback for callback in callbacks if isinstance(callback, Checkpoint)), None)
    clients = checkpoint.clients(executor) if checkpoint else simulated(executor)
    return experiment, build_federation(cfg, experiment, clients, callbacks)


def _require_real(network: "nn.Module") -> None:
    """Refuse complex tensors: neither codecs nor factorisations can handle them."""
    wrong = [name for name, tensor in network.state_dict().items() if tensor.is_complex()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{', '.join(wrong[:3])}{more}: must be real, complex parameters cannot be sent; use two real tensors"
        )
