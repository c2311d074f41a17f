"""Train a federation: `python src/train.py experiment=fedpara_cifar100`. Composition root: cfg -> objects -> fit."""

import errno
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

os.environ["PROJECT_ROOT"] = os.path.abspath(os.environ.get("PROJECT_ROOT") or Path(__file__).resolve().parents[1])
os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach main(), which shows them in one line

import hydra
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedpara import sweep, sweep_table
from fedpara.configuration import (
    ConfigurationError,
    blame,
    composition_line,
    one_line,
    read_resolved,
    read_yaml,
    require_nodes,
)
from fedpara.errors import CrashesAgain, WorkerKilled
from fedpara.files import UnusableFile, reserve, write_atomically
from fedpara.interruption import INTERRUPTED, interruption
from fedpara.overrides import FOLDERS, absolute, absolute_folder, assignment, escaped, folder_text
from fedpara.record import objective, size
from fedpara.runs import Run, leaves, read_rows
from fedpara.trust import require_resolved, require_trusted_overrides, trusted_names

if TYPE_CHECKING:  # torch takes seconds to import: only a run that trains pays for it
    from torch import nn

    from fedpara.callbacks import LoggerForwarding
    from fedpara.data import FederatedDataModule
    from fedpara.execution import SerialExecutor
    from fedpara.federation import Federation, FederationCallback, MakeClients

log = logging.getLogger("train")
PROGRAM = str(Path(__file__).resolve())
CONFIG_DIR = str(Path(__file__).resolve().parents[1] / "configs")
FAILED = FloatingPointError | CrashesAgain | WorkerKilled  # of a run that could be started
RESUMABLE = (
    "federation.num_rounds", "federation.max_crashes", "logger", "callbacks", "resume", "trusted", "paths",
    "trainer.accelerator", "data.dataset.data_dir", "data.eval_batch_size", "data.num_workers", "executor.workers",
    "executor.address", "executor.actors", "executor.gpus", "executor.memory_gb",
)  # fmt: skip
NOT_OF_RECIPE = {"jacobian_correction", "num_dense"}  # said in the same group for who types, used elsewhere
GROUPS = (
    "model", "model.network", "model.optimizer", "factorization", "algorithm", "sharing", "link", "executor", "data",
    "data.dataset", "partition", "federation", "faults", "trainer", "callbacks", "paths",
)  # fmt: skip
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT,
}  # fmt: skip


@dataclass
class Experiment:
    """The objects of one configuration, before its federation exists."""

    datamodule: "FederatedDataModule"
    executor: "SerialExecutor"
    parameters: dict[str, int]


Build = Callable[[DictConfig, "Sequence[FederationCallback]"], "tuple[Experiment, Federation]"]


def build_experiment(cfg: DictConfig) -> Experiment:
    """Network, data and executor of a configuration.

    Raises:
        ConfigurationError: a value is wrong or data are missing; one line.
    """
    import torch

    from fedpara.models import ClassificationModule
    from fedpara.nn import factorize

    with blame(cfg, ""):
        torch.manual_seed(_seed(cfg))
    with blame(cfg, "partition"):
        partition = instantiate(cfg.partition)
    with blame(cfg, "data"):
        datamodule = instantiate(cfg.data, partition=partition, num_clients=cfg.federation.num_clients, seed=cfg.seed)
    with blame(cfg, "model"):
        _require_patterns(cfg.model)
    with blame(cfg, "model.network"):
        network = instantiate(cfg.model.network)
        _require_real(network)
        dense = sum(parameter.numel() for parameter in network.parameters())
    with blame(cfg, "factorization"):
        options = OmegaConf.masked_copy(cfg.factorization, [k for k in cfg.factorization if k not in NOT_OF_RECIPE])
        factorize(network, instantiate(options), list(cfg.model.keep_dense), num_dense=cfg.factorization.num_dense)
    factorized = sum(parameter.numel() for parameter in network.parameters())
    with blame(cfg, "model.optimizer"):
        _require_learning_rate(cfg.model.optimizer)
        optimizer = instantiate(cfg.model.optimizer)
        optimizer(network.parameters())  # its own checks of its values, before anything costs time
    module = ClassificationModule(network, optimizer, cfg.data.num_classes)
    with blame(cfg, "trainer"):
        trainer = instantiate(cfg.trainer, _convert_="all")  # a copy of a ListConfig shares the objects in it
        executor = instantiate(
            cfg.executor, module=module, datamodule=datamodule, trainer=trainer,
            jacobian_correction=cfg.factorization.get("jacobian_correction", 0.0),
        )  # fmt: skip
    return Experiment(datamodule, executor, {"dense": dense, "factorized": factorized})


def build_federation(
    cfg: DictConfig,
    experiment: Experiment,
    clients: "MakeClients | None" = None,
    callbacks: "Sequence[FederationCallback]" = (),
) -> "Federation":
    """The federation over an experiment, and the sizes of what is shared and what is personal.

    Args:
        clients: as `Federation` takes them; None: simulated ones that keep what is theirs in memory.
    """
    from fedpara.federation import Federation
    from fedpara.state import first_names, num_elements

    state, network = experiment.executor.initial_state(), experiment.executor.module.network
    with blame(cfg, "sharing"):
        split = instantiate(cfg.sharing, names=list(state), tied=first_names(network))
        _require_whole_weights(network, set(split.personal))
    with blame(cfg, "algorithm"):
        algorithm = instantiate(cfg.algorithm)
    with blame(cfg, "model.optimizer"):
        algorithm.require(experiment.executor.module.configure_optimizers())
    with blame(cfg, "link"):
        link = instantiate(cfg.link)
    options: Any = OmegaConf.to_container(cfg.federation, resolve=True)
    with blame(cfg, "federation"):
        federation = Federation(
            experiment.executor, algorithm, link, split, list(callbacks), seed=cfg.seed, clients=clients, **options
        )
    personal = num_elements(split.personal_part(state))
    experiment.parameters |= {"shared": federation.num_shared, "personal": personal}
    return federation


def _require_whole_weights(network: "nn.Module", personal: set[str]) -> None:
    """Half of FedPara's W1 * W2 is no weight that a client can keep: it takes pFedPara's W1 * (W2 + 1)."""
    from fedpara.nn import Hadamard

    for layer, weight in network.named_modules():
        if isinstance(weight, Hadamard):
            kept = [name for name, _ in weight.named_parameters() if f"{layer}.{name}" in personal]
            if 0 < len(kept) < len(list(weight.parameters())):
                raise ValueError(f"{layer} would be split, {', '.join(kept)} personal; take factorization=pfedpara")


def build(cfg: DictConfig, callbacks: "Sequence[FederationCallback]" = ()) -> "tuple[Experiment, Federation]":
    """Everything of a configuration but its callbacks and loggers.

    Args:
        callbacks: of the federation; where one is a `Checkpoint`, clients keep what is theirs where it names it.
    """
    from fedpara.callbacks import Checkpoint
    from fedpara.federation import simulated

    experiment = build_experiment(cfg)
    with blame(cfg, "faults"):
        executor = instantiate(cfg.faults, executor=experiment.executor)
    checkpoint = next((callback for callback in callbacks if isinstance(callback, Checkpoint)), None)
    clients = checkpoint.clients(executor) if checkpoint else simulated(executor)
    return experiment, build_federation(cfg, experiment, clients, callbacks)


def train(cfg: DictConfig, build: Build = build) -> float | None:
    """One run; returns the last value (0 to 1) of the metric it is judged by, for a sweeper to maximise.

    Loggers come first: what fails before the first round is a failed run there too.
    """
    from fedpara.callbacks import LoggerForwarding

    _require_nothing_lost(cfg, Path(cfg.paths.output_dir))
    with blame(cfg, ""):
        resolved = OmegaConf.to_container(cfg, resolve=True)
    require_nodes(cfg, _present(cfg, "logger"))
    with blame(cfg, "logger"):
        loggers = [instantiate(logger) for logger in (cfg.logger or {}).values() if logger is not None]
    with LoggerForwarding(loggers, Path(cfg.paths.output_dir)) as forwarding:
        with blame(cfg, "logger"):
            for logger in loggers:
                logger.log_hyperparams(resolved)
        return _train(cfg, build, forwarding)


def _train(cfg: DictConfig, build: Build, forwarding: "LoggerForwarding") -> float | None:
    from fedpara.callbacks import RunFolder, restore

    require_nodes(cfg, [*GROUPS, *_present(cfg, "callbacks")])
    folder = Path(cfg.paths.output_dir)
    with blame(cfg, "callbacks"):
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback is not None]
    experiment, federation = build(cfg, callbacks)
    with blame(cfg, "resume"):
        if cfg.resume and read_rows(folder / "metrics.csv"):  # one killed before its first round starts anew
            restore(federation, folder)
    log.info("reading %s", cfg.data.dataset._target_.rpartition(".")[2])
    with blame(cfg, "data"):
        experiment.datamodule.setup()
        experiment.datamodule.to(experiment.executor.device)
    with blame(cfg, "model.network"):
        experiment.executor.try_one_example()
    with blame(cfg, "trainer"):
        experiment.executor.rehearse()
    _describe(experiment, federation)
    record = RunFolder(folder, experiment.parameters)
    with blame(cfg, "paths.output_dir"):
        write_atomically(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(_typed())).encode())
        write_atomically(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True).encode())
    # the run folder first: what is logged elsewhere, or checkpointed, has its row on disk
    federation.callbacks = [record, *federation.callbacks, forwarding]
    try:
        federation.fit()
    except KeyboardInterrupt:
        way_on = shlex.quote(f"resume={_short(folder)}")
        log.info("interrupted after %d rounds; go on: python src/train.py %s", federation.round, way_on)
        raise
    finally:
        federation.close()
    _conclude(record, federation, folder)
    return record.rows[-1].get(objective(bool(federation.split.personal))) if record.rows else None


def _typed() -> list[str]:
    """What was typed for this run, and its number where it is the job of a sweep."""
    hydra_cfg = HydraConfig.get()
    number = [f"hydra.job.num={hydra_cfg.job.num}"] if sweep.is_job(hydra_cfg) else []
    return sweep.texts(hydra_cfg.overrides.task) + number


def _present(cfg: DictConfig, group: str) -> list[str]:
    """The keys of a group that has any number of them; null takes one out."""
    return [f"{group}.{name}" for name, value in (cfg[group] or {}).items() if value is not None]


def _require_patterns(model: DictConfig) -> None:
    given: Any = OmegaConf.to_container(model)
    for name in ("keep_dense", "head"):
        value = given.get(name)
        if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
            raise ValueError(f"{name}={value!r}: must be a list of patterns of names")


def _require_real(network: "nn.Module") -> None:
    """What travels is real: a complex tensor has no place in a codec, nor in a factorisation."""
    wrong = [name for name, tensor in network.state_dict().items() if tensor.is_complex()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{', '.join(wrong[:3])}{more}: must be real, complex parameters cannot be sent; keep two halves"
        )


def _require_learning_rate(optimizer: DictConfig) -> None:
    """The one value that everybody sets: torch takes NaN for it, and of a word it only says that it is no number."""
    if "lr" in optimizer and not (isinstance(optimizer.lr, int | float) and 0 <= optimizer.lr < math.inf):
        raise ValueError(f"lr={optimizer.lr!r}: must be a number, 0 or more")


def _require_nothing_lost(cfg: DictConfig, folder: Path) -> None:
    """Refuse to start anew where there is a run to go on with."""
    if not cfg.resume and (folder / "checkpoint.safetensors").is_file() and (rows := Run(folder).rows):
        way_out = f"go on with it by resume={folder}, or take another folder"
        raise ConfigurationError(f"paths.output_dir={folder}: holds a run of {len(rows)} rounds; {way_out}")


def _seed(cfg: DictConfig) -> int:
    """Torch takes 64 bits, W&B and what is in files signed ones."""
    if not isinstance(cfg.seed, int) or isinstance(cfg.seed, bool) or not 0 <= cfg.seed < 2**63:
        raise ValueError(f"seed={cfg.seed}: must be a whole number, 0 to 2^63 - 1")
    return cfg.seed


def _describe(experiment: Experiment, federation: "Federation") -> None:
    sizes, data = experiment.parameters, experiment.datamodule
    log.info(
        "%s parameters, %s dense (%.1f %%), %s travel | %s, %d clients, %d a round, %d rounds of %d local epochs, %s",
        f"{sizes['factorized']:,}", f"{sizes['dense']:,}", 100 * sizes["factorized"] / sizes["dense"],
        f"{sizes['shared']:,}", data.name, federation.num_clients, federation.clients_per_round, federation.num_rounds,
        experiment.executor.max_epochs, experiment.executor.device,
    )  # fmt: skip


def _conclude(record: Any, federation: "Federation", folder: Path) -> None:
    """What was reached, what it cost, what the dense model would have cost, where to look."""
    if not record.rows:
        log.info("nothing to do: the run has its %d rounds", federation.num_rounds)
        return
    sizes, last = record.parameters, record.rows[-1]
    saved = ""
    if 0 < sizes["shared"] < sizes["dense"]:
        ratio = sizes["dense"] / sizes["shared"]
        saved = f", the dense model would have sent {size(federation.total_bytes * ratio)} ({ratio:.1f}x)"
    judged = objective(bool(federation.split.personal))
    accuracy = f"{judged.partition('/')[0]} accuracy {100 * last[judged]:.2f} %" if judged in last else "not tested"
    sent = size(federation.total_bytes)
    log.info("%s after %d rounds | sent %s%s", accuracy, federation.round, sent, saved)
    log.info("run folder: %s (metrics.csv, summary.json, config.yaml, checkpoint.safetensors)", _short(folder))


def _short(path: Path) -> Path:
    """Relative to where the person is, where that is shorter."""
    here = Path(HydraConfig.get().runtime.cwd)  # the process may have gone into the run folder
    return path.relative_to(here) if path.is_relative_to(here) else path


KEYS_ADDED = {"data.lone_example": "keep"}  # what runs did before the key was there


def _check_same(cfg: DictConfig, folder: Path, hint: str = "") -> None:
    """Refuse to go on in `folder` under a configuration that would change the result."""
    saved = read_resolved(folder / "config.yaml", f"resume={folder}")
    before, now = (dict(leaves(OmegaConf.to_container(one, resolve=True))) for one in (saved, cfg))
    before = KEYS_ADDED | before
    differing = [
        k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and not k.startswith(RESUMABLE)
    ]
    if differing:
        shown = ", ".join(f"{key} ({before.get(key)!r} then, {now.get(key)!r} now)" for key in differing[:3])
        shown = ", ".join([shown, *differing[3:]])
        raise ConfigurationError(f"resume={folder}: the run cannot go on with another {shown}{hint}")


def run_name(folder: str) -> str:
    """A run's own name: its folder's, with the sweep's in front of a job's, in letters that W&B takes for an id."""
    path = Path(folder)
    own = f"{path.parent.name}-{path.name}" if sweep.is_job(HydraConfig.get()) else path.name
    return re.sub(r"[^\w.-]", "-", own)[-128:]


def run_title(folder: str, choices: str) -> str:
    """What a person reads in a list: of a sweep's job what varies, of any other what was chosen and when."""
    path = Path(folder)
    title = path.name.replace("_", " ") if sweep.is_job(HydraConfig.get()) else f"{choices} {path.name}"
    return title[:128]  # what W&B takes


def run_group(folder: str, experiment: str) -> str:
    """The sweep of a job; of any other run the experiment."""
    return Path(folder).parent.name[-128:] if sweep.is_job(HydraConfig.get()) else experiment


OmegaConf.register_new_resolver("first", lambda *values: next(value for value in values if value), replace=True)
for resolver in (run_name, run_title, run_group):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


@hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name="train")
def hydra_main(cfg: DictConfig) -> float | None:
    """Hydra's entry point, for a run and, in a sweep, once a job."""
    _make_absolute(cfg)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return _run_job(cfg)
    if (Path(cfg.paths.output_dir) / "participants.jsonl").is_file():
        raise ConfigurationError(f"resume={cfg.resume}: its clients are real ones; `flwr run deploy` goes on with it")
    return run(cfg)


def _make_absolute(cfg: DictConfig) -> None:
    """Have every folder of the configuration where the program was started, whatever names it: a yaml, `DATA_DIR`."""
    here = Path(HydraConfig.get().runtime.cwd)
    for key, value in leaves(OmegaConf.to_container(cfg, resolve=True)):
        if isinstance(value, str) and value and FOLDERS.fullmatch(key) and not value.startswith("/"):
            OmegaConf.update(cfg, key, absolute_folder(escaped(value), here))


def run(cfg: DictConfig, build: Build = build) -> float | None:
    """One run in its folder, which no other process uses meanwhile, and which keeps the error of one that fails.

    Args:
        build: the run's objects; what is in deploy/ has its clients elsewhere.
    """
    folder = Path(cfg.paths.output_dir)
    try:
        if cfg.resume:
            require_resolved(f"resume={cfg.resume}", OmegaConf.to_container(cfg, resolve=True))
            _check_same(cfg, Path(cfg.resume))
        with blame(cfg, "paths.output_dir"):
            reservation = reserve(folder)
        with reservation:
            return train(cfg, build)
    except Exception as error:
        line = _line(error)
        _record_failure(folder, error, line or f"{type(error).__name__}: {one_line(error)}")
        if line is None:
            raise
        _stop(line, status=1 if isinstance(error, FAILED) else 2)


def _record_failure(folder: Path, error: Exception, line: str) -> None:
    """In the run's own log, with its stack trace, and in its summary; the console has it from `main`."""
    from fedpara.callbacks.run_folder import summarise_failure

    record = log.makeRecord(log.name, logging.ERROR, "", 0, line, (), (type(error), error, error.__traceback__))
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
    if folder.is_dir():
        summarise_failure(folder, line)


def _run_job(cfg: DictConfig) -> float:
    """A job of a sweep in a process of its own, where it is not finished; its last accuracy, for a sweeper.

    Of a job that did not finish it is the worst one there is: a sweeper that optimises goes on, and goes elsewhere.
    """
    hydra_cfg, folder = HydraConfig.get(), Path(cfg.paths.output_dir)
    run = Run(folder)
    if (folder / "config.yaml").is_file():
        _check_same(cfg, folder, "; give the sweep another folder, hydra.sweep.dir=...")
    ended = run.summary.get("stopped") or run.summary.get("rounds", 0) >= cfg.federation.num_rounds
    if run.state == "finished" and ended:
        log.info("%s: finished before, skipped", folder.name)
    else:
        parallel = hydra_cfg.runtime.choices["hydra/launcher"] != "basic"
        overrides = sweep.inherited(hydra_cfg) + sweep.texts(hydra_cfg.overrides.task)
        here = Path(hydra_cfg.runtime.cwd)
        sweep.run_job(Path(PROGRAM), overrides, folder, hydra_cfg.job.num, quiet=parallel, here=here)
    run = Run(folder)
    accuracy = run.last(run.objective) if run.state == "finished" else None
    return sweep.worst(hydra_cfg.sweeper) if accuracy is None else accuracy


def _with_saved_overrides(arguments: list[str]) -> list[str]:
    """For `resume=<run folder>`: what was typed to start that run, then what is typed now.

    Not Hydra's own `.hydra/overrides.yaml`, which every attempt to resume rewrites, refused ones too.
    """
    folder = next((a.partition("=")[2] for a in arguments if a.startswith("resume=")), None)
    if not folder or folder == "null":
        return arguments
    path = Path(str(OmegaConf.create([folder_text(folder)])[0])).expanduser().resolve()
    for name in ("config.yaml", "overrides.yaml"):
        if not (path / name).is_file():
            raise ConfigurationError(f"resume={folder}: not a run folder, it holds no {name}")
    if {"-m", "--multirun"} & set(arguments):
        raise ConfigurationError(f"resume={folder}: goes on with one run; leave out -m")
    now = [assignment("resume", str(path)) if a.startswith("resume=") else a for a in arguments]
    typed = {a.partition("=")[0] for a in now}
    kept = [o for o in _saved_overrides(path, folder) if o.partition("=")[0] not in {*typed, "trusted", "+trusted"}]
    require_trusted_overrides(f"resume={folder}", kept, trusted_names(arguments))
    kept = [absolute(override, Run(path).started_in) for override in kept]
    kept += [] if "hydra.mode" in typed else ["hydra.mode=RUN"]  # of a sweep's job the job alone
    first = next(n for n, a in enumerate(now) if re.match(r"[^-].*=", a))  # Hydra takes no flag between overrides
    return [*now[:first], *kept, *now[first:]]


def _require_no_reference(texts: list[str]) -> None:
    """A folder may have any name but one with `${`: Hydra writes it into its configuration, as a reference."""
    for text in texts:
        names_folder = FOLDERS.fullmatch(text.partition("=")[0].lstrip("+")) is not None
        if (names_folder and r"\${" in text) or (text.startswith("/") and "${" in text):
            line = "must be a folder without ${ in its path, which Hydra takes for a reference"
            raise ConfigurationError(f"{text}: {line}")


def _saved_overrides(path: Path, folder: str) -> list[str]:
    saved: Any = OmegaConf.to_container(read_yaml(path / "overrides.yaml", f"resume={folder}"))
    if not isinstance(saved, list) or not all(isinstance(override, str) for override in saved):
        raise ConfigurationError(f"resume={folder}: its overrides.yaml must be a list of what was typed")
    return saved


def _composition_error(error: Exception) -> str:
    """One line; for an unknown key, with the keys of the configuration composed without it."""
    allowed = None
    with_key = [a for a in sys.argv[1:] if re.match(r"[^-].*=", a) and f"'{a.partition('=')[0]}'" not in str(error)]
    try:
        with hydra.initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            allowed = hydra.compose("train", with_key)
    except (HydraException, OmegaConfBaseException):
        pass
    return composition_line(error, allowed)


def _choice_line() -> str | None:
    """One line for a group of which what was typed is no choice; Hydra does not say which."""
    for group, _, choice in (argument.partition("=") for argument in sys.argv[1:]):
        choices = sorted(path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml"))
        if choices and choice not in choices:
            return f"{group}={choice}: must be one of {', '.join(choices)}"
    return None


@contextmanager
def _resolved_before_shown() -> Iterator[None]:
    """For `--cfg ... --resolve`: Hydra cuts out the part to show first, whose references then lead nowhere.

    No job has started yet: its folder is the one that a run would have.
    """
    cut = Hydra.get_sanitized_cfg

    def resolve_and_cut(self: Hydra, cfg: DictConfig, cfg_type: str) -> DictConfig:
        cfg.hydra.runtime.output_dir = os.path.abspath(cfg.hydra.run.dir)
        HydraConfig.instance().set_config(cfg)
        OmegaConf.set_readonly(cfg.hydra, None)  # set by the line above
        OmegaConf.resolve(cfg)
        return cut(self, cfg, cfg_type)

    if "--resolve" in sys.argv:
        Hydra.get_sanitized_cfg = resolve_and_cut  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_sanitized_cfg = cut  # type: ignore[method-assign]


def main() -> None:
    """Exit status 2 and one line for what the person can mend, 1 for a run that failed, 130 for an interruption."""
    try:
        sys.argv[1:] = [absolute(argument, Path.cwd()) for argument in _with_saved_overrides(sys.argv[1:])]
        _require_no_reference([*sys.argv[1:], str(Path.cwd()), os.environ["PROJECT_ROOT"]])
        for resolver in (sweep.sweep_name, sweep.job_name):  # bound here, for the processes of parallel launchers
            typed = partial(resolver, tuple(sys.argv[1:]))
            OmegaConf.register_new_resolver(resolver.__name__, typed, replace=True)
        with interruption.handled(), _resolved_before_shown():
            hydra_main()
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        _stop(_composition_error(error))
    except ValueError as error:
        if not str(error).startswith("Config group override"):  # Hydra's, for algorithm=3
            raise
        _stop(_choice_line() or one_line(error))
    except (ConfigurationError, OSError) as error:
        if (line := _line(error)) is None:
            raise
        _stop(line)
    except KeyboardInterrupt:
        _stop("interrupted", status=INTERRUPTED)
    if sweep_table.unfinished:
        _stop(f"not finished: {', '.join(sweep_table.unfinished)}", status=1)


def _line(error: Exception) -> str | None:
    """What to show for an error that the person can mend; None for a fault of ours, which wants its stack trace."""
    if isinstance(error, ConfigurationError | UnusableFile | FAILED):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"paths.output_dir: {one_line(error)}; must be a folder that can be written, on a disk with space"
    return None


def _stop(line: str, status: int = 2) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
