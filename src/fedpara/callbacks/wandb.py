"""Weights & Biases through Lightning's logger, with a federation's axes and the correct final state."""

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import wandb
from pytorch_lightning.loggers import WandbLogger

from fedpara.cost import TEST_ACCURACY
from fedpara.metric import Metric
from fedpara.record import COLUMNS, FATES, PRIVACY_COLUMNS, costs, sizes
from fedpara.runs import sample_of_clients

log = logging.getLogger(__name__)
SETTINGS = {
    "project": "project",
    "entity": "project",
    "id": "run_id",
    "tags": "run_tags",
}  # key: W&B's setting with the same rule; entity and project are both parts of a URL
OUTCOMES = {f"clients/{fate}" for fate in FATES}
TWICE = {"comm/total_bytes"}  # in another unit it is comm/total_gb
LONGEST = dict.fromkeys(("project", "entity", "id", "group", "job_type", "name"), 128)  # limits of W&B's server


class FederationWandbLogger(WandbLogger):
    """One W&B run for a federation: metrics over `round`, the headline (accuracy) also over `comm/total_gb`.

    Without an account (no API key, no `WANDB_MODE`) it runs offline and logs one line about that.

    Args:
        project: argument of `wandb.init`.
        save_dir: the folder that contains `wandb/`, one for all runs of a project.
        resumed: whether to continue the run `id`; otherwise W&B starts it anew.
        target: a value of the headline (accuracy: 0 to 1), or several. When one is first reached, the rounds, GB,
            minutes and MJ until then go into the summary, see `fedpara.record.costs`. It is compared with the global
            model, or with the clients' own models if a part of the model is personal. None: no target.
        alerts: whether W&B tells (by mail or Slack, as set there) of a run that fails and of clients that diverge.
        client_rows: largest number of rows of the table of clients, from `callbacks=clients`; 0: no table.
        log_model: whether the final model of a finished run is logged as an artifact of type `model`, with its
            configuration and its card: `model-<id>`.
        registry: where that artifact is linked, `wandb-registry-<registry>/<collection>`; None: nowhere.
        **init: further arguments of `wandb.init`: group, job_type, name, tags, notes, entity, id. Under `wandb agent`
            the sweep chooses project, entity and id.

    Raises:
        ValueError: `target` is not a number, `registry` is not such a path or comes without `log_model`, or W&B does
            not accept a name; no run is started then.
    """

    judged, over_gb = TEST_ACCURACY, "acc_over_gb"  # until `judge_by`

    def __init__(
        self,
        project: str,
        save_dir: str,
        resumed: Any = None,
        target: float | Sequence[float] | None = None,
        alerts: bool = True,
        client_rows: int = 10_000,
        log_model: bool = False,
        registry: str | None = None,
        **init: Any,
    ) -> None:
        targets = [] if target is None else [target] if isinstance(target, int | float) else list(target)
        if not all(isinstance(one, int | float) and math.isfinite(one) for one in targets):
            raise ValueError(f"target={target}: must be a number, or a list of numbers")
        if client_rows < 0:
            raise ValueError(f"client_rows={client_rows}: must be a whole number, at least 0")
        _require_registry(registry, log_model)
        self.targets, self.alerts, self.client_rows = targets, alerts, client_rows
        self.logs_model, self.registry = log_model, registry
        _require_names({"project": project, **init})
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        run = _start(project=project, dir=save_dir, resume="allow" if resumed else None, **init)
        self.rounds = int(run.summary.get("round") or 0)  # rounds that W&B has; offline it does not see earlier parts
        self.rows: list[dict[str, float]] = []
        self.left_out = OUTCOMES | TWICE
        for group in sorted({column.partition("/")[0] for column in COLUMNS + PRIVACY_COLUMNS} - {"round"}):
            run.define_metric(f"{group}/*", step_metric="round")
        super().__init__(experiment=run)

    def judge_by(self, judged: Metric, headline: Metric) -> None:
        """Set the metric that is drawn over GB, has its best value in the summary, and is compared with the target.

        Args:
            judged: its column.
            headline: the metric as the module logs it; it names the column over GB: `acc_over_gb`.

        Raises:
            ValueError: the metric is a share, but a target is not.
        """
        for target in self.targets:
            if judged.is_share and not 0 < target <= 1:
                raise ValueError(f"target={target}: must be a number above 0, at most 1")
        self.judged, self.over_gb = judged, f"{headline.name}_over_gb"
        best = "max" if judged.higher_is_better else "min"
        self.experiment.define_metric(self.over_gb, step_metric="comm/total_gb")
        for column in {judged.name, headline.judged(personal=False).name}:  # of the clients' models, and the global one
            self.experiment.define_metric(column, step_metric="round", summary=f"{best},last")

    def describe(self, parameters: Mapping[str, int], setting: str) -> None:
        """Tell W&B the sizes of the model, and the name of what differs between runs except their seeds.

        Args:
            parameters: see `fedpara.record.sizes`.
            setting: runs with the same one are grouped by the workspace; empty: it is not known.
        """
        self.experiment.summary.update(sizes(parameters))
        if setting:
            self.experiment.config.update({"setting": setting}, allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row once; it has its own axes, and W&B's internal step is not set, so that a resumed run appends.

        Numbers of clients by outcome are left out until a client fails: charts of zeros would hide the others.
        """
        if any(metrics.get(outcome) for outcome in OUTCOMES - {"clients/succeeded"}):
            self.left_out = TWICE
        row = {name: value for name, value in metrics.items() if name not in self.left_out}
        self.rows.append(dict(metrics))
        value = row.get(self.judged.name)
        if row["round"] > self.rounds:
            self.rounds = int(row["round"])
            if value is not None:
                row[self.over_gb] = value
            self.experiment.log(row)
        for target in [one for one in self.targets if value is not None and self.judged.reaches(value, one)]:
            self.experiment.summary.update(costs(self.rows, target, self.judged))
            self.targets.remove(target)

    def log_histogram(self, name: str, values: Sequence[float], number: int) -> None:
        """Log a vector of round `number` as a histogram."""
        self.experiment.log({name: wandb.Histogram(list(values)), "round": number})

    def log_clients(self, path: Path) -> None:
        """Log the rows of a clients.csv as the table `clients/table`: all of them, or all rounds of some clients."""
        rows = sample_of_clients(path, self.client_rows) if self.client_rows else []
        if rows:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self.experiment.log({"clients/table": table, "round": self.rounds})

    def alert(self, title: str, text: str, is_failure: bool) -> None:
        """Send an alert, unless they are off; one with the same title at most once an hour."""
        if self.alerts:
            level = "ERROR" if is_failure else "WARN"
            self.experiment.alert(title, text, level=level, wait_duration=timedelta(hours=1))

    def log_model_folder(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Log a folder as the artifact `model-<id>`, and link it to the registry if there is one.

        Offline W&B cannot link; a line says how to do that after the run is synchronised.
        """
        run = self.experiment
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"model-{run.id}")[:128], "model", metadata=dict(metadata))
        artifact.add_dir(str(folder))
        logged = run.log_artifact(artifact)
        if not self.registry or run.disabled:
            return
        if run.offline:
            name = f"{run.project}/{artifact.name.partition(':')[0]}:latest"
            log.info("W&B is offline; to link after wandb sync: wandb.Api().artifact(%r).link(%r)", name, self.registry)
        else:
            run.link_artifact(logged, self.registry)

    def finalize(self, status: str) -> None:
        """Close the run as finished, failed or interrupted (255, W&B's exit code for that)."""
        self.experiment.finish(exit_code={"success": 0, "aborted": 255}.get(status, 1))


def _require_registry(registry: str | None, log_model: bool) -> None:
    if registry is None:
        return
    if not re.fullmatch(r"([\w.-]+/)?wandb-registry-[^/]+/[\w.-]+", registry):
        raise ValueError(f"registry={registry}: must be wandb-registry-<registry>/<collection>")
    if not log_model:
        raise ValueError(f"registry={registry}: needs log_model=true, only an artifact can be linked")


def _require_names(init: Mapping[str, Any]) -> None:
    for key, longest in LONGEST.items():
        value = init.get(key)
        if value is not None and not (isinstance(value, str) and value.strip() and len(value) <= longest):
            raise ValueError(f"{key}={value!r}: must be a text of 1 to {longest} characters")
    for key, setting in SETTINGS.items():
        value = init.get(key)
        try:
            wandb.Settings.model_validate({setting: value if value is None or key != "tags" else list(value)})
        except (wandb.errors.UsageError, ValueError) as error:
            reason = str(error).splitlines()[-1].partition(" [type=")[0].strip()
            raise ValueError(f"{key}={value!r}: W&B does not accept it ({reason})") from error


def _own_gpus() -> list[int] | None:
    """The GPUs of CUDA_VISIBLE_DEVICES, so that the system metrics of a sweep's job are not those of all; None: all.

    Process metrics are those of this process alone: W&B does not follow the workers of `executor=processes`, which
    start no run of their own.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(name) for name in named] if all(name.strip().isdigit() for name in named) else None


def _start(**init: Any) -> Any:
    """Call `wandb.init`, offline if there is no account or no network."""
    quiet = wandb.Settings(silent=True, console="off", init_timeout=30, x_stats_gpu_device_ids=_own_gpus())
    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.login(prompt=False, verify=False):
        mode = "offline"
    try:
        run = wandb.init(mode=mode, settings=quiet, reinit="create_new", **init)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
        log.warning("W&B: %s; continuing offline", str(error).splitlines()[0])
        mode = "offline"
        run = wandb.init(mode=mode, settings=quiet, reinit="create_new", **init)
    if mode == "offline":
        folder, here = Path(run.settings.sync_dir), Path.cwd()
        folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
        log.info("W&B is offline; to look: wandb leet %s; to upload: wandb sync %s", folder.parent, folder)
    return run
