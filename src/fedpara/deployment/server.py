"""A run whose clients are behind a network: the server's end."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from fedpara.app.build import Experiment, build_experiment, build_federation
from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError
from fedpara.app.overrides import assignment
from fedpara.app.resume import resuming
from fedpara.app.run import Launch
from fedpara.app.run import run as run_locally
from fedpara.deployment.clients import DeployedClients, Participants
from fedpara.deployment.folders import localised
from fedpara.deployment.parcel import Nodes
from fedpara.federation import Federation, FederationCallback


def build(
    cfg: DictConfig, callbacks: Sequence[FederationCallback], data: Path, nodes: Nodes
) -> tuple[Experiment, Federation]:
    """The same as `fedpara.app.build.build`, for clients on other machines.

    Args:
        data: the folder with the server's test set.

    Raises:
        ConfigurationError: checkpoints would be further apart than clients can go back, faults would be injected, or
            clients would each choose the noise.
    """
    for name, share in cfg.faults.items():
        if name not in ("_target_", "attack", "strength") and share:
            raise ConfigurationError(f"faults.{name}={share}: must be 0, real clients fail by themselves")
    checkpoint = cfg.callbacks.get("checkpoint")
    if checkpoint and checkpoint.every != 1:
        every = f"callbacks.checkpoint.every={checkpoint.every}"
        raise ConfigurationError(f"{every}: must be 1, a client can go back by one round")
    if cfg.privacy.get("noise") == "clients" and cfg.privacy.noise_multiplier is None:
        raise ConfigurationError("privacy.noise_multiplier=None: must be given, real clients cannot agree on another")
    if cfg.privacy and cfg.data.validation and not cfg.privacy.client_metrics:
        raise ConfigurationError(
            f"data.validation={cfg.data.validation}: must be 0 with privacy, which does not cover tests on clients' "
            "own examples, or privacy.client_metrics=true"
        )
    folder = Path(cfg.paths.output_dir)
    experiment = build_experiment(localised(cfg, data, None))
    participants = Participants(folder)
    clients = DeployedClients(nodes, folder, participants)
    federation = build_federation(cfg, experiment, lambda _: clients, [participants, *callbacks])
    clients.share = federation.headline.is_share
    return experiment, federation


def run(overrides: list[str], data: Path, folder: Path, nodes: Nodes) -> None:
    """Run as `python src/train.py` does; if the folder holds a run, it is resumed.

    Raises:
        SystemExit: the run failed, and has printed the reason in one line.
    """
    own = [assignment("paths.output_dir", str(folder)), "callbacks.partition_picture=null"]  # data are with the clients
    typed = [*overrides, *own, *resuming(folder)]
    run_locally(compose(typed, folder), partial(build, data=data, nodes=nodes), Launch(typed))
