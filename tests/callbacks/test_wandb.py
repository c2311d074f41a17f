"""Weights & Biases offline: read back with W&B's own reader, as a person would."""

import logging

import pytest
import wandb

from fedpara.callbacks import Checkpoint, LoggerForwarding, RunFolder, restore
from fedpara.callbacks.wandb import FederationWandbLogger
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
