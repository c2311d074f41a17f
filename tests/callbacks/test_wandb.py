"""Weights & Biases offline: read back with W&B's own reader, as a person would."""

import json
import logging
import os
import re
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
import wandb
from safetensors.torch import load_file

from fedpara.callbacks import Checkpoint, ClientTable, LoggerForwarding, RunFolder, restore
from fedpara.callbacks.wandb import FederationWandbLogger
from fedpara.execution import FaultInjection, ProcessesExecutor
from fedpara.federation import FederationCallback, simulated
from fedpara.metric import Metric
from fedpara.models import MLP
from fedpara.record import CLIENT_COLUMNS, FATES, RoundRecord
from fedpara.runs import Run
from fedpara.state import load_state
from helpers.federations import make_federation
from helpers.noting import Noting
from helpers.runs import of_wandb


@pytest.fixture
def offline(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    return tmp_path


def run(folder, lr=0.1, **options):
    logger = FederationWandbLogger(project="test", save_dir=str(folder), id=f"run-{lr}", name="n", target=0.01)
    logger.log_hyperparams({"federation": {"num_rounds": 3}, "factorization": {"gamma": 0.25}})
    federation = make_federation(lr=lr, callbacks=[LoggerForwarding([logger], folder)], **options)
    try:
        federation.fit()
    except FloatingPointError:
        return logger
    return logger


@pytest.mark.slow
def test_offline_without_an_account_and_says_how_to_look_and_upload(offline, caplog):
    with caplog.at_level(logging.INFO):
        run(offline)
    (line,) = [r.message for r in caplog.records if "W&B" in r.message]
    folder = next((offline / "wandb").glob("offline-run-*-run-0.1"))
    assert line == f"W&B is offline; to look: wandb leet {folder.parent}; to upload: wandb sync {folder}"
    assert wandb.run is None  # closed: the next run of a sweep starts afresh


def test_rows_axes_resolved_config_and_state_are_in_the_file(offline):
    run(offline, evaluate_personal=True)
    run(offline, lr=1e30)
    records, summary = of_wandb(offline, "run-0.1")
    rows = [record["history"] for record in records if record["type"] == "history"]
    assert len(rows) == 6  # a row and a histogram a round
    assert "histogram" in str(summary["summary"]["personal/acc"])
    logged = summary["summary"]
    assert logged["to_1/rounds"] == 1
    assert logged["to_1/gb"] == pytest.approx(logged["comm/total_gb"] / 3)  # met in the first of three rounds
    assert {"test/acc", "train/loss", "comm/total_gb", "time/round_s"} <= set(summary["summary"])
    assert summary["config"]["factorization"]["gamma"] == 0.25
    axes = {m["metric"].get("name") or m["metric"]["glob_name"]: m["metric"] for m in records if m["type"] == "metric"}
    assert axes["test/*"]["step_metric"] == axes["test/acc"]["step_metric"] == "round"
    assert axes["acc_over_gb"]["step_metric"] == "comm/total_gb"
    failed, _ = of_wandb(offline, "run-1e+30")
    assert [r["exit"].get("exit_code", 0) for r in (records[-1], failed[-1])] == [0, 1]


def test_another_headline_leaves_no_definitions_of_accuracy(offline):
    logger = FederationWandbLogger(project="test", save_dir=str(offline), id="mse")
    headline = Metric("mse", higher_is_better=False)
    logger.judge_by(headline.judged(personal=False), headline)
    logger.finalize("success")
    records, _ = of_wandb(offline, "mse")
    named = {record["metric"].get("name") for record in records if record["type"] == "metric"} - {None}
    assert named == {"test/mse", "mse_over_gb"}


def test_what_is_personal_is_judged_by_the_clients_own_models(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger, rows = FederationWandbLogger(project="test", save_dir=str(offline), target=0.01), []
    monkeypatch.setattr(logger.experiment, "log", rows.append)
    make_federation(personal=["*2"], num_rounds=1, callbacks=[LoggerForwarding([logger], offline)]).fit()
    assert rows[0]["acc_over_gb"] == rows[0]["personal/acc_mean"] != rows[0]["test/acc"]


def test_numbers_of_clients_are_logged_from_the_first_failure_on(offline, monkeypatch):
    """Until then they would be charts of zeros, in front of all others; metrics.csv has them in each round."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger, rows = FederationWandbLogger(project="test", save_dir=str(offline)), []
    monkeypatch.setattr(logger.experiment, "log", rows.append)
    for number, dropped in enumerate([0, 1, 0], start=1):
        counts = dict.fromkeys(FATES, 0) | {"succeeded": 5 - dropped, "dropped": dropped}
        logger.log_metrics(RoundRecord(number, 0.5, {"test/acc": 0.5}, 1, 2, 3, 5, 0.1, 0.2, clients=counts).as_row())
    named = {f"clients/{fate}" for fate in FATES}
    assert [named & row.keys() for row in rows] == [set(), named, named]
    assert {"test/acc", "train/loss", "comm/total_gb"} <= rows[0].keys()
    assert not any("comm/total_bytes" in row for row in rows)


class Told(list):
    def __init__(self, logger, monkeypatch):
        super().__init__()
        monkeypatch.setattr(logger.experiment, "alert", lambda *said, level, wait_duration: self.append((*said, level)))


def alerted(offline, monkeypatch, alerts=True, **options):
    """The alerts of a run; its error, if it has one, is no concern here."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = FederationWandbLogger(project="test", save_dir=str(offline), alerts=alerts)
    told = Told(logger, monkeypatch)
    federation = make_federation(callbacks=[LoggerForwarding([logger], offline)], **options)
    with suppress(FloatingPointError, KeyboardInterrupt):
        federation.fit()
    return told


def test_a_run_that_diverges_is_told_with_its_error(offline, monkeypatch):
    ((title, text, level),) = alerted(offline, monkeypatch, lr=1e30)
    assert (title, level) == ("Run diverged", "ERROR")
    assert text.startswith(f"{offline.name} after 0 rounds: FloatingPointError: client ")
    assert text.endswith(
        "returned NaN or infinite parameters in round 1: the training diverged; try a smaller model.optimizer.lr"
    )


def test_clients_that_diverge_are_told_where_the_round_still_counts(offline, monkeypatch):
    faulty = lambda executor: simulated(FaultInjection(executor, nan=0.3))  # noqa: E731
    told = alerted(offline, monkeypatch, clients=faulty, clients_per_round=5)
    assert told
    assert {(title, level) for title, _, level in told} == {("Clients diverged", "WARN")}
    assert re.fullmatch(r"round \d: \d of 5 clients returned NaN or infinite parameters; try .*", told[0][1])


def test_alerts_can_be_off_and_a_run_that_goes_well_has_none(offline, monkeypatch):
    assert alerted(offline, monkeypatch, alerts=False, lr=1e30) == []
    assert alerted(offline, monkeypatch) == []


def test_an_interruption_is_not_told(offline, monkeypatch):
    class Stop(FederationCallback):
        def on_round_end(self, federation, record):
            raise KeyboardInterrupt

    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = FederationWandbLogger(project="test", save_dir=str(offline))
    told = Told(logger, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make_federation(callbacks=[LoggerForwarding([logger], offline), Stop()]).fit()
    assert told == []


def test_a_run_that_fails_before_its_first_round_is_told(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = FederationWandbLogger(project="test", save_dir=str(offline))
    told = Told(logger, monkeypatch)
    with pytest.raises(ValueError, match="no data"), LoggerForwarding([logger], offline):
        raise ValueError("no data")
    assert told == [("Run failed", f"{offline.name} before its first round: ValueError: no data", "ERROR")]


def test_an_alert_notes_and_the_job_type_are_in_the_file(offline):
    """They reach the server when the run is synced."""
    logger = FederationWandbLogger(
        project="test", save_dir=str(offline), id="told", notes="a pilot", tags=["a", "b"], job_type="train", group="g"
    )
    with suppress(FloatingPointError):
        make_federation(lr=1e30, callbacks=[LoggerForwarding([logger], offline)]).fit()
    records, _ = of_wandb(offline, "told")
    (own,) = [record["run"] for record in records if record["type"] == "run"]
    assert (own["notes"], own["tags"], own["job_type"], own["run_group"]) == ("a pilot", ["a", "b"], "train", "g")
    (alert,) = [record["alert"] for record in records if record["type"] == "alert"]
    assert (alert["title"], alert["level"]) == ("Run diverged", "ERROR")


def test_the_table_of_clients_is_logged_whole_also_after_a_resume(offline):
    make_federation(num_rounds=2, callbacks=[RunFolder(offline, {}), ClientTable(offline), Checkpoint(offline)]).fit()
    logger = FederationWandbLogger(project="test", save_dir=str(offline), id="clients")
    federation = make_federation(num_rounds=3)
    restore(federation, offline)
    federation.callbacks = [ClientTable(offline), LoggerForwarding([logger], offline)]
    federation.fit()
    (path,) = (offline / "wandb").glob("offline-run-*-clients/files/media/table/clients/table_*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == list(CLIENT_COLUMNS)
    assert [row[0] for row in table["data"]] == [1, 1, 2, 2, 3, 3]
    assert {row[2] for row in table["data"]} == {"succeeded"}


def test_no_table_where_none_is_wanted(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger, rows = FederationWandbLogger(project="test", save_dir=str(offline), client_rows=0), []
    monkeypatch.setattr(logger.experiment, "log", rows.append)
    make_federation(callbacks=[ClientTable(offline), LoggerForwarding([logger], offline)]).fit()
    assert not any("clients/table" in row for row in rows)
    with pytest.raises(ValueError, match="client_rows=-1: must be a whole number, at least 0"):
        FederationWandbLogger(project="test", save_dir=str(offline), client_rows=-1)


@pytest.mark.parametrize(
    ("visible", "watched"), [("1", [1]), ("0,3", [0, 3]), (None, None), ("", None), ("GPU-8932f937", None)]
)
def test_system_metrics_are_those_of_the_jobs_own_gpus_and_process(offline, monkeypatch, visible, watched):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    logger = FederationWandbLogger(project="test", save_dir=str(offline))
    settings = logger.experiment.settings
    logger.finalize("success")
    assert settings.x_stats_gpu_device_ids == watched
    assert (settings.x_stats_pid, settings.x_stats_track_process_tree) == (os.getpid(), False)


@pytest.mark.slow
def test_workers_start_no_run_of_their_own(offline):
    """Lightning imports W&B's module there, but there is one run for all processes."""
    notes = offline / "notes"
    notes.mkdir()
    logger = FederationWandbLogger(project="test", save_dir=str(offline), id="one")
    federation = make_federation(
        executor=lambda training: ProcessesExecutor(training, workers=2),
        network=lambda: Noting([16, 8, 3], notes),
        callbacks=[LoggerForwarding([logger], offline)],
        num_rounds=1,
    )
    federation.fit()
    federation.close()
    found = {int(path.name): path.read_text() for path in notes.iterdir()}
    found.pop(os.getpid())  # it tests the model
    assert found
    assert set(found.values()) == {"False"}
    assert len(list((offline / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(("known", "logged"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3])])
def test_a_run_that_goes_on_logs_each_round_that_wandb_lacks_once(offline, monkeypatch, known, logged):
    """Offline W&B sees nothing of what was before; online it has what a killed process had sent."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    make_federation(num_rounds=2, callbacks=[RunFolder(offline, {}), Checkpoint(offline)]).fit()
    logger = FederationWandbLogger(project="test", save_dir=str(offline), id="again", target=[0.01, 0.99])
    logger.rounds, rows = known, []
    monkeypatch.setattr(logger.experiment, "log", rows.append)
    federation = make_federation(num_rounds=3)
    restore(federation, offline)
    federation.callbacks = [RunFolder(offline, {}), LoggerForwarding([logger], offline)]
    federation.fit()
    assert [row["round"] for row in rows] == logged
    assert logger.experiment.summary["to_1/rounds"] == 1  # of the whole run
    assert logger.targets == [0.99]


def finished(folder, **options):
    """A run that logs its final model, and the name of its only artifact in W&B's file."""
    logger = FederationWandbLogger(project="test", save_dir=str(folder), id="a=b", **options)
    callbacks = [RunFolder(folder, {"dense": 10, "shared": 5}), LoggerForwarding([logger], folder)]
    federation = make_federation(num_rounds=2, callbacks=callbacks)
    federation.fit()
    return federation


def artifacts(folder):
    records, _ = of_wandb(folder, "a=b")
    return [record["artifact"] for record in records if record["type"] == "artifact"]


@pytest.fixture
def staged(offline, monkeypatch):
    """W&B's own copies of artifacts are in the test's folder."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(offline / name))
    return offline


def test_no_model_is_logged_unless_told(staged):
    finished(staged)
    assert artifacts(staged) == []
    assert not (staged / "hub").exists()


def test_the_final_model_is_an_artifact_offline_too(staged, caplog):
    with caplog.at_level(logging.INFO):
        federation = finished(staged, log_model=True, registry="wandb-registry-model/digits")
    (artifact,) = artifacts(staged)
    assert (artifact["name"], artifact["type"]) == ("model-a-b", "model")
    metadata = json.loads(artifact["metadata"])
    assert metadata["metrics"]["test/acc"] == Run(staged).last("test/acc")
    assert metadata["data"]["data"] == "tiny"
    assert {entry["path"] for entry in artifact["manifest"]["contents"]} == {
        "README.md", "config.json", "model.safetensors",
    }  # fmt: skip
    assert "wandb.Api().artifact('test/model-a-b:latest').link('wandb-registry-model/digits')" in caplog.text
    assert "| state of the run | finished |" in (staged / "hub" / "README.md").read_text()
    network = MLP([16, 8, 3])
    network.load_state_dict(load_file(staged / "hub" / "model.safetensors"))
    images = torch.randn(3, 1, 4, 4)
    trained = federation.executor.module.network
    load_state(trained, federation.model())
    with torch.no_grad():
        torch.testing.assert_close(network(images), trained(images), rtol=0, atol=1e-6)
    federation.num_rounds = 3
    federation.fit()  # the network is still factorised
    assert federation.round == 3


def test_online_the_artifact_is_linked_to_the_registry(staged, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger, calls = FederationWandbLogger(project="test", save_dir=str(staged), log_model=True), []
    logger.registry = "wandb-registry-model/digits"
    logger._experiment = SimpleNamespace(
        id="x", disabled=False, offline=False, log_artifact=lambda artifact: artifact,
        link_artifact=lambda artifact, target: calls.append((artifact.name, artifact.type, target)),
    )  # fmt: skip
    (staged / "hub").mkdir()
    (staged / "hub" / "README.md").write_text("card")
    logger.log_model_folder(staged / "hub", {})
    assert calls == [("model-x", "model", "wandb-registry-model/digits")]


def test_a_run_that_fails_logs_no_model(staged):
    logger = FederationWandbLogger(project="test", save_dir=str(staged), id="a=b", log_model=True)
    federation = make_federation(lr=1e30, callbacks=[RunFolder(staged, {}), LoggerForwarding([logger], staged)])
    with pytest.raises(FloatingPointError):
        federation.fit()
    assert artifacts(staged) == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"registry": "digits", "log_model": True}, "registry=digits: must be wandb-registry-<registry>/<collection>"),
        ({"registry": "wandb-registry-model/digits"}, "registry=wandb-registry-model/digits: needs log_model=true"),
    ],
)
def test_a_wrong_registry_starts_no_run(offline, options, line):
    with pytest.raises(ValueError, match=line):
        FederationWandbLogger(project="test", save_dir=str(offline), **options)
    assert not (offline / "wandb").exists()
