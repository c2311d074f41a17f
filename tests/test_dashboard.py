"""The W&B workspace: printed, and saved to a server on this machine; what it shows is what a run has."""

import json
import os
import re
import subprocess
import sys

import hydra
import pytest
from omegaconf import OmegaConf

from fedpara.app import dashboard as program
from fedpara.callbacks import LoggerForwarding, RunFolder
from fedpara.callbacks.wandb import FederationWandbLogger
from fedpara.record import COSTS
from fedpara.runs import OVERRIDES, Run
from helpers import ROOT
from helpers.federations import make_federation
from helpers.runs import of_wandb
from helpers.sweep_server import SweepServer

TARGETS = [0.01, 0.02]  # that every model reaches


def printed(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["dashboard.py", "project=mine", *arguments])
    program.main()
    return json.loads(capsys.readouterr().out)


def sections_of(spec):
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """The metrics of a run in W&B's file, each with its last value; what the workspace names must be one of them."""
    folder = tmp_path_factory.mktemp("run")
    (folder / OVERRIDES).write_text("[factorization.gamma=0.5, seed=1, logger.wandb.target=0.01]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        logger = FederationWandbLogger(project="test", save_dir=str(folder), id="a", target=TARGETS)
        callbacks = [RunFolder(folder, {"dense": 8, "factorized": 4, "shared": 2, "personal": 2})]
        callbacks.append(LoggerForwarding([logger], folder))
        make_federation(num_rounds=2, personal=["*2"], evaluate_personal=True, callbacks=callbacks).fit()
    records, read = of_wandb(folder, "a")
    (rows, summary) = ([one["history"]["item"] for one in records if one["type"] == "history"], read["summary"])
    flat = {f"{name}.{kind}": v for name, own in summary.items() if isinstance(own, dict) for kind, v in own.items()}
    return {name: value for row in rows for name, value in row.items()} | summary | flat | read["config"]


def test_its_table_and_figures_are_those_of_the_report(monkeypatch, capsys):
    made = printed(monkeypatch, capsys, "target=0.8,0.825")
    assert made["project"] == "mine"
    sections = sections_of(made["spec"])
    first, *costs = list(sections)[:3]
    assert (first, costs) == ("Accuracy for the bytes sent", ["Cost to accuracy 80 %", "Cost to accuracy 82.5 %"])
    over_gb, over_rounds, size = (panel["config"] for panel in sections[first])
    assert (over_gb["xAxis"], over_gb["metrics"]) == ("comm/total_gb", ["acc_over_gb"])
    assert (over_rounds["xAxis"], over_rounds["metrics"]) == ("round", ["test/acc"])
    assert (over_gb["groupBy"], over_gb["groupArea"]) == ("setting.value", "stderr")
    assert (size["xAxis"], size["yAxis"]) == ("summary:parameters/share_of_dense", "summary:test/acc.last")
    bars = [panel["config"]["metrics"] for panel in sections["Cost to accuracy 82.5 %"]]
    assert bars == [[f"to_82_5/{name}"] for name in COSTS]
    (runs,) = made["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "config", "name": "setting.value"}]
    columns = [column.partition(":")[2] for column in runs["runFeed"]["columnOrder"]]
    assert columns == [
        "displayName", "state", "setting.value", "seed.value", "parameters/shared", "parameters/share_of_dense",
        "test/acc.last", "test/acc.max", "comm/total_gb",
        *(f"{group}/{name}" for group in ("to_80", "to_82_5") for name in COSTS),
    ]  # fmt: skip


def test_a_metric_of_which_less_is_better_and_clients_own_models(monkeypatch, capsys):
    shown = json.dumps(printed(monkeypatch, capsys, "metric=mse", "best=min", "target=0.25", "personal=true"))
    assert "personal/mse_mean.min" in shown
    assert "to_0_25/gb" in shown
    assert "Cost to personal mse 0.25" in shown


@pytest.mark.parametrize("arguments", [[], ["target=0.01,0.02"], ["personal=true", "target=0.01"]])
def test_every_metric_is_logged_and_every_key_is_configured(logged, monkeypatch, capsys, arguments):
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = OmegaConf.to_container(hydra.compose("train", ["paths.output_dir=x"]), resolve=False)
    spec = printed(monkeypatch, capsys, *arguments)["spec"]
    shown = json.dumps(spec["section"])
    metrics = [m for found in re.findall(r'"metrics": (\[[^\]]*\])', shown) for m in json.loads(found)]
    metrics += re.findall(r'"xAxis": "(?!_step|config:)([^"]+)"', shown)
    metrics += re.findall(r'summary(?:_metrics)?[:.]([^"]+)"', shown)
    metrics = [metric.partition(":")[2] or metric for metric in metrics]  # of a scatter plot: summary:<metric>
    assert len(metrics) > 20
    assert not set(metrics) - logged.keys()
    keys = {(group, key) for group, key in re.findall(r'config[:.](\w+)\.value\.?([\w.]*)"', shown)}
    assert ("factorization", "gamma") in keys
    for group, key in keys - {("setting", "")}:
        assert OmegaConf.select(OmegaConf.create(cfg), f"{group}.{key}".strip("."), throw_on_missing=False) is not None
    assert logged["setting"] == "gamma=0.5"


def test_what_a_run_has_of_a_target_is_what_the_report_computes(logged, tmp_path):
    """Both call `fedpara.cost.cost_to_target`; here with rows of which the second one reaches the target."""
    from fedpara.record import costs
    from fedpara.report.settings import Setting

    rounds = [
        {"round": n, "test/acc": accuracy, "comm/total_bytes": n * 10**9}
        | {f"cost/round_s_{speed}mbps": 60.0 * speed for speed in (2, 10, 50)}
        for n, accuracy in ((1, 0.3), (2, 0.6), (3, 0.9))
    ]
    names = list(rounds[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rounds)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    run = Run(tmp_path)
    found = costs(run.rows, 0.5, run.judged)
    for speed in (2, 10, 50):
        (reported,) = Setting({}, [run]).cost(0.5, speed)
        assert (found["to_50/rounds"], found["to_50/gb"]) == (reported.rounds, reported.num_bytes / 1e9) == (2, 2.0)
        assert found[f"to_50/minutes_{speed}mbps"] == reported.seconds / 60 == 2 * speed
        assert found["to_50/mj"] == reported.megajoules
    assert costs(run.rows, 0.95, run.judged) == {}
    sizes = {f"parameters/{name}" for name in ("dense", "factorized", "shared", "personal", "share_of_dense")}
    assert {f"to_1/{name}" for name in COSTS} | sizes <= logged.keys()
    assert (logged["to_1/rounds"], logged["parameters/share_of_dense"]) == (1, 0.25)


@pytest.mark.slow
def test_it_is_saved_to_a_server(monkeypatch, capsys):
    """What W&B's client sends, to a stand-in of the server."""
    made = printed(monkeypatch, capsys, "target=0.8")
    server = SweepServer()
    account = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "no_proxy": "127.0.0.1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | account
    command = [sys.executable, ROOT / "src" / "dashboard.py", "entity=me", "project=mine", "target=0.8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "mine", "FedPara")
    assert view["type"] == "project-view"
    assert done.stdout.strip() == f"{server.url}/me/mine?nw={view['name'].removeprefix('nw-').removesuffix('-v')}"
    sent, shown = sections_of(view["spec"]), sections_of(made["spec"])
    assert [[panel["viewType"] for panel in panels] for panels in sent.values()] == [
        [panel["viewType"] for panel in panels] for panels in shown.values()
    ]
    assert list(sent) == list(shown)
    assert sent["Cost to accuracy 80 %"][1]["config"]["metrics"] == ["to_80/gb"]
    (own,), (other,) = (one["section"]["runSets"] for one in (view["spec"], made["spec"]))
    assert own["runFeed"]["columnOrder"] == other["runFeed"]["columnOrder"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("colour=red", "colour: no such key; python src/dashboard.py [entity="),
        ("best=high", "best=high: must be max or min"),
        ("personal=1", "personal=1: must be false or true"),
        ("target=80", "target=80: must be above 0, at most 1"),
        ("target=high", "target=high: must be numbers with commas between them"),
    ],
)
def test_wrong_arguments_are_one_line(monkeypatch, capsys, argument, line):
    monkeypatch.setattr("sys.argv", ["dashboard.py", argument])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert capsys.readouterr().err.startswith(f"error: {line}")
