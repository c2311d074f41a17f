"""Weights & Biases offline: read back with W&B's own reader, as a person would."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
import wandb
from safetensors.torch import load_file

from fedpara.callbacks import Checkpoint, LoggerForwarding, RunFolder, restore
from fedpara.callbacks.wandb import FederationWandbLogger
from fedpara.models import MLP
from fedpara.runs import Run
from fedpara.state import load_state
from helpers.federations import make_federation
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
    assert logged["gb_to_target"] == pytest.approx(logged["comm/total_gb"] / 3)  # met in the first of three rounds
    assert {"test/acc", "train/loss", "comm/total_gb", "time/round_s"} <= set(summary["summary"])
    assert summary["config"]["factorization"]["gamma"] == 0.25
    axes = {m["metric"].get("name") or m["metric"]["glob_name"]: m["metric"] for m in records if m["type"] == "metric"}
    assert axes["test/*"]["step_metric"] == axes["test/acc"]["step_metric"] == "round"
    assert axes["acc_over_gb"]["step_metric"] == "comm/total_gb"
    failed, _ = of_wandb(offline, "run-1e+30")
    assert [r["exit"].get("exit_code", 0) for r in (records[-1], failed[-1])] == [0, 1]


def test_what_is_personal_is_judged_by_the_clients_own_models(offline, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger, rows = FederationWandbLogger(project="test", save_dir=str(offline), target=0.01), []
    monkeypatch.setattr(logger.experiment, "log", rows.append)
    make_federation(personal=["*2"], num_rounds=1, callbacks=[LoggerForwarding([logger], offline)]).fit()
    assert rows[0]["acc_over_gb"] == rows[0]["personal/acc_mean"] != rows[0]["test/acc"]


@pytest.mark.parametrize(("known", "logged"), [(0, [1, 2, 3]), (1, [2, 3]), (2, [3])])
def test_a_run_that_goes_on_logs_each_round_that_wandb_lacks_once(offline, monkeypatch, known, logged):
    """Offline W&B sees nothing of what was before; online it has what a killed process had sent."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    make_federation(num_rounds=2, callbacks=[RunFolder(offline, {}), Checkpoint(offline)]).fit()
    logger = FederationWandbLogger(project="test", save_dir=str(offline), id="again")
    logger.rounds, rows = known, []
    monkeypatch.setattr(logger.experiment, "log", rows.append)
    federation = make_federation(num_rounds=3)
    restore(federation, offline)
    federation.callbacks = [RunFolder(offline, {}), LoggerForwarding([logger], offline)]
    federation.fit()
    assert [row["round"] for row in rows] == logged


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
