"""The W&B workspace offline: every metric and key that it shows is one that runs have."""

import json
import re

import hydra
import pytest
from omegaconf import OmegaConf

from fedpara.app import dashboard as program
from fedpara.record import COLUMNS
from helpers import ROOT

LOGGED = {*COLUMNS, "acc_over_gb", "gb_to_target"}  # in W&B alone: fedpara.callbacks.wandb


@pytest.fixture
def spec(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dashboard.py", "project=mine"])
    program.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["project"] == "mine"
    return printed["spec"]["section"]


def test_sections_go_from_the_answer_to_the_details(spec):
    names = [section["name"] for section in spec["panelBankConfig"]["sections"]]
    assert names[:2] == ["Accuracy for the bytes sent", "Rank sweep"]
    (first, *_) = spec["panelBankConfig"]["sections"][0]["panels"]
    assert (first["config"]["xAxis"], first["config"]["metrics"]) == ("comm/total_gb", ["acc_over_gb"])
    kinds = {panel["viewType"] for section in spec["panelBankConfig"]["sections"] for panel in section["panels"]}
    assert {"Run History Line Plot", "Scatter Plot", "Parallel Coordinates Plot", "Run Comparer"} <= kinds


def test_every_metric_is_logged_and_every_key_is_configured(spec):
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = OmegaConf.to_container(hydra.compose("train", ["paths.output_dir=x"]), resolve=False)
    shown = json.dumps(spec["panelBankConfig"]["sections"])
    metrics = [m for found in re.findall(r'"metrics": (\[[^\]]*\])', shown) for m in json.loads(found)]
    metrics += re.findall(r'"xAxis": "(?!_step|config:)([^"]+)"', shown)
    metrics += re.findall(r'summary(?:_metrics)?[:.]([^"]+)"', shown)
    metrics = [metric.partition(":")[2] or metric for metric in metrics]  # of a scatter plot: summary:<metric>
    assert len(metrics) > 20
    assert {metric.removesuffix(".max") for metric in metrics} <= LOGGED
    keys = {(group, key) for group, key in re.findall(r'config[:.](\w+)\.value\.?([\w.]*)"', shown)}
    assert ("factorization", "gamma") in keys
    for group, key in keys:
        assert OmegaConf.select(OmegaConf.create(cfg), f"{group}.{key}".strip("."), throw_on_missing=False) is not None


def test_wrong_arguments_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["dashboard.py", "colour=red"])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert capsys.readouterr().err.startswith("error: colour: no such key; python src/dashboard.py [entity=")
