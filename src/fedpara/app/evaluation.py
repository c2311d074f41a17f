"""The program `eval`: it tests the model of a run folder, finished or interrupted, and exports it.

`client=3` takes that client's personal model, `tier=phone` exports that of clients of this size. `export=` writes the
model for use elsewhere: `dense` merged weights, `onnx` a graph, `hub` a folder with weights, configuration and a model
card, `loha` an adapter for PEFT and LyCORIS. A folder is uploaded to the Hugging Face Hub only with
`hub.repo=user/name`, which is private unless `hub.private=false`; `hub.license=mit` is for the card. Any other key is
one of the run's configuration, such as `trainer.accelerator=cpu`.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpara.app.build import Experiment, build_experiment, build_federation, groups
from fedpara.app.composition import read_resolved
from fedpara.app.errors import ConfigurationError, one_line, require_nodes, show_usage, stop, unknown_key
from fedpara.app.make import Make, find_modules_here
from fedpara.app.overrides import PATHS, escaped
from fedpara.app.trust import require_resolved, require_trusted, targets, trusted_names
from fedpara.installation import command_of
from fedpara.old_runs import KEYS_ADDED
from fedpara.runs import CLIENTS, CONFIG, Run

if TYPE_CHECKING:
    from fedpara.federation import Federation
    from fedpara.state import State

NOT_BUILT = "callbacks", "logger", "faults"
USAGE = (
    "run=<run folder> [client=<number>] [tier=<name>] [export=dense|onnx|hub|loha] [hub.repo=<user/name>] "
    "[hub.private=true] [hub.license=<licence>] [trusted=[mypackage.*]] [<key>=<value> ...]"
)
FORMATS = {"dense": ".safetensors", "onnx": ".onnx", "hub": "", "loha": ""}  # how the names of their files end
FOLDERS_OF_MODELS = "hub", "loha"
HUB_KEYS = "hub.repo", "hub.private", "hub.license"


def load(folder: Path, overrides: list[str], trusted: Sequence[str] = ()) -> tuple[Experiment, "Federation"]:
    """The experiment of a run folder with its data, and its federation where the checkpoint left it.

    Args:
        overrides: dotted keys over the run's saved configuration, such as `trainer.accelerator=cpu`.
        trusted: patterns of names, such as `mypackage.*`, that the folder may build besides this package's and torch's.

    Raises:
        ConfigurationError: there is no such run, its checkpoint is damaged, data are missing, or a name is not trusted.
    """
    from fedpara.callbacks import restore
    from fedpara.federation import simulated

    cfg = configuration(folder, overrides, trusted)
    experiment = build_experiment(cfg)
    make = Make(cfg)
    clients = simulated(experiment.executor, folder / CLIENTS, memory_gb=0)
    federation = build_federation(cfg, experiment, clients)
    make.call("run", restore, federation, folder)
    make.call("data", experiment.datamodule.setup)
    make.call("data", experiment.datamodule.to, experiment.executor.device)
    return experiment, federation


def configuration(
    folder: Path, overrides: list[str], trusted: Sequence[str] = (), not_built: Sequence[str] = NOT_BUILT
) -> Any:
    """The configuration of a run folder, with the data where they are today.

    Args:
        overrides: dotted keys over the run's saved configuration, such as `trainer.accelerator=cpu`.
        trusted: patterns of names, such as `mypackage.*`, that the folder may build besides this package's and torch's.
        not_built: groups that the caller does not build; whatever they held, such as a run's old folder, is left out.

    Raises:
        ConfigurationError: there is no such run, or a name is not trusted.
    """
    if not Run(folder).has_config:
        raise ConfigurationError(f"run={folder}: not a run folder, it holds no {CONFIG}")
    saved = read_resolved(folder / CONFIG, f"run={folder}")
    try:
        typed = _typed(overrides)
        if key := next(_unknown(OmegaConf.to_container(typed), OmegaConf.to_container(saved)), None):
            raise ConfigurationError(unknown_key(key, saved))
        cfg: Any = OmegaConf.merge(saved, typed)
        require_nodes(cfg, groups(cfg))
        cfg.update({group: {} for group in not_built})
        built: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"run={folder}: its {CONFIG} cannot be used ({one_line(error)})") from error
    require_resolved(f"run={folder}", built)
    require_trusted(f"run={folder}", built, [*trusted, *targets(OmegaConf.to_container(typed))])
    _find_data(cfg, OmegaConf.select(typed, "paths.data_dir"), folder)
    return cfg


def evaluate(federation: "Federation", client: int | None = None) -> dict[str, float]:
    """`round` and the metrics that the run logged when it last tested its model, under their names in metrics.csv.

    Args:
        client: test only this client's model, on its own test distribution. None: test the global model and, if the
            run tests clients' models, each of them (`personal/acc/<client>`, or the module's own headline metric),
            with their mean and tenth percentile.
    """
    from fedpara.federation import score
    from fedpara.record import spread

    own = f"personal/{federation.headline.name}"
    if client is not None:
        value = score(federation.executor, federation.model(client), client)
        return {"round": federation.round, f"{own}/{client}": value}
    metrics = {"round": federation.round, **federation.evaluate()}
    if federation.tests_personal and not _kept_elsewhere(federation):
        values = federation.evaluate_personal(federation.round)
        metrics |= {f"{own}/{number}": value for number, value in enumerate(values)}
        metrics |= spread(own, values, federation.headline.worst_percentile)
    return metrics


def export(
    form: str,
    experiment: Experiment,
    state: "State",
    metrics: dict[str, float],
    path: Path,
    client: int | None = None,
    licence: str | None = None,
) -> None:
    """Write the model of a run, with facts for its user.

    Args:
        form: "dense", merged weights; "onnx", a graph; "hub" or "loha", a folder with a model card.
        path: the file, or the folder, which is in the run folder.
        client: whose model it is; None: the global one.
        licence: for the card, such as `mit`; None: unknown.
    """
    from fedpara.export import Card, data_facts, export_dense, export_folder, export_onnx, metadata_of
    from fedpara.state import load_state

    network, data = experiment.executor.module.network, experiment.datamodule
    load_state(network, state)
    facts = data_facts(data)
    if form in FOLDERS_OF_MODELS:
        export_folder(network, path, Card(Run(path.parent), facts, metrics, form, client, licence))
    elif form == "onnx":
        inputs, _ = next(iter(data.test_dataloader()))
        export_onnx(network, inputs[:2], path, metadata_of(facts, metrics))
    else:
        export_dense(network, path, metadata_of(facts, metrics))


def _typed(overrides: list[str]) -> DictConfig:
    """The overrides as a configuration: values are YAML, folders are taken literally and made absolute."""
    typed = OmegaConf.create()
    for key, _, value in (override.partition("=") for override in overrides):
        if PATHS.fullmatch(key):
            OmegaConf.update(typed, key, escaped(str(Path(value).expanduser().absolute())))
            continue
        try:
            typed.merge_with_dotlist([f"{key}={value}"])
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{key}={value}: not valid YAML") from error
    return typed


def _unknown(typed: Any, saved: Any, above: str = "") -> Iterator[str]:
    """The typed keys that the groups of a saved configuration lack.

    A group that names a class may be given further arguments of it, and a run of an older version keys of today's.
    """
    for name, value in typed.items():
        key = f"{above}.{name}".lstrip(".")
        if name not in saved:
            if not (above and "_target_" in {*typed, *saved}) and key not in KEYS_ADDED:
                yield key
        elif isinstance(value, dict) and isinstance(saved[name], dict):
            yield from _unknown(value, saved[name], key)


def _find_data(cfg: Any, typed: str | None, run: Path) -> None:
    """Set the data folder to today's: `paths.data_dir=` if typed, else `DATA_DIR`, else the run's own."""
    if "data_dir" in cfg.data.dataset:
        folder = Path(typed or os.environ.get("DATA_DIR") or Run(run).started_in / cfg.data.dataset.data_dir)
        cfg.data.dataset.data_dir = escaped(str(folder.expanduser().absolute()))


def _kept_elsewhere(federation: "Federation") -> bool:
    """Whether the clients were real devices, which keep their part of the model themselves."""
    return bool(federation.split.personal and federation.round and not federation.personal)


def _client(text: str | None, federation: "Federation") -> int | None:
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) >= federation.num_clients:
        raise ConfigurationError(f"client={text}: must be 0 to {federation.num_clients - 1}")
    if _kept_elsewhere(federation):
        raise ConfigurationError(f"client={text}: must be absent, the clients of this run kept their models themselves")
    return int(text)


def _tier(name: str | None, form: str | None, client: int | None, federation: "Federation") -> str | None:
    """The tier whose model is exported: the one typed, or the client's; None: the model has all columns."""
    tiers, names = federation.tiers, federation.tiers.names if federation.tiers else []
    if name is not None and (name not in names or client is not None):
        allowed = f"{' or '.join(names)}, without client=" if names else "absent, all clients have one size"
        raise ConfigurationError(f"tier={name}: must be {allowed}")
    if name is not None and form is None:
        raise ConfigurationError(f"tier={name}: needs export=dense or onnx, a test is that of every tier")
    if tiers and client is not None:
        name = tiers.names[tiers.of[client]]
    if name is not None and form in FOLDERS_OF_MODELS:
        raise ConfigurationError(f"export={form}: must be dense or onnx for clients of the tier {name}")
    return name


def _narrowed(tier: str, experiment: Experiment, federation: "Federation") -> "State":
    """The part of the model that a tier holds; the network becomes that of the tier."""
    from fedpara.nn import narrow

    assert federation.tiers
    narrow(experiment.executor.module.network, experiment.tiers[tier].ranks)
    return federation.tiers.narrowed(federation.tiers.names.index(tier), federation.model())


def main() -> None:
    """Print the metrics, one a line, and the file of an export; exit status 2 and one line for wrong arguments."""
    show_usage(f"{command_of('eval')} {USAGE}\n\n{__doc__}")
    find_modules_here()
    try:
        _evaluate_and_export(dict(argument.partition("=")[::2] for argument in sys.argv[1:]))
    except (ConfigurationError, ValueError, OSError) as error:  # OSError: an export where nothing can be written
        stop(one_line(error))


def _evaluate_and_export(arguments: dict[str, str]) -> None:
    from fedpara.export import push, require_loha

    if "run" not in arguments:
        raise ConfigurationError(f"run: missing; give a run folder, {command_of('eval')} run=logs/train/runs/<run>")
    folder, form = Path(arguments.pop("run")).expanduser(), arguments.pop("export", None)
    trusted = trusted_names([f"trusted={arguments.pop('trusted')}"] if "trusted" in arguments else [])
    if form not in (None, *FORMATS):
        raise ConfigurationError(f"export={form}: must be {', '.join([*FORMATS][:-1])} or {[*FORMATS][-1]}")
    hub = _hub_keys(arguments, form)
    chosen, size = arguments.pop("client", None), arguments.pop("tier", None)
    experiment, federation = load(folder, [f"{key}={value}" for key, value in arguments.items()], trusted)
    client = _client(chosen, federation)
    tier = _tier(size, form, client, federation)
    if form == "loha":
        require_loha(experiment.executor.module.network)
    metrics = evaluate(federation, client)
    for name, value in metrics.items():
        print(f"{name}: {value}")
    if form:
        name, whose = form if form in FOLDERS_OF_MODELS else "model", "" if size is None else f"-{size}"
        path = folder / f"{name}{whose if client is None else f'-client{client}'}{FORMATS[form]}"
        state = federation.model(client) if tier is None else _narrowed(tier, experiment, federation)
        export(form, experiment, state, metrics, path, client, hub.get("hub.license"))
        print(f"wrote {path}")
        if repo := hub.get("hub.repo"):
            print(f"pushed to {push(path, repo, hub.get('hub.private', 'true') == 'true')}")


def _hub_keys(arguments: dict[str, str], form: str | None) -> dict[str, str]:
    """Take the keys of the Hub out of the arguments, and check them before anything is read."""
    from fedpara.export import require_repo

    given = {key: arguments.pop(key) for key in [*arguments] if key.startswith("hub.")}
    for key, value in given.items():
        if key not in HUB_KEYS:
            raise ConfigurationError(f"{key}: no such key; allowed in hub: {', '.join(HUB_KEYS)}")
        if form not in FOLDERS_OF_MODELS:
            raise ConfigurationError(f"{key}={value}: needs export={' or export='.join(FOLDERS_OF_MODELS)}")
    if (private := given.get("hub.private", "true")) not in ("true", "false"):
        raise ConfigurationError(f"hub.private={private}: must be true or false")
    if "hub.repo" in given:
        require_repo(given["hub.repo"])
    return given
