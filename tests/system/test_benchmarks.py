"""What the benchmarks compare computes the same thing, and their figures are what they say; nothing here is timed."""

import json
import logging
import sys
from dataclasses import replace
from multiprocessing import Pipe

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import load
import ours
import pace
import rounds
import scale
import server
from fedpara.app import cli
from floor import run_round
from workload import WORKLOADS, Workload

NETWORK = {"stages": [[4], [8]], "hidden": [6]}
SMALL = Workload(
    NETWORK, num_clients=4, clients_per_round=2, num_examples=12, batch_size=4, learning_rate=0.3, dtype=torch.float64
)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "small", SMALL)
    return SMALL


def trained(workload, num_rounds=2):
    network = workload.build()
    model = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for number in range(num_rounds):
        model, num_steps = run_round(network, model, workload, number)
        assert num_steps == workload.num_steps == 12
    return {name: tensor.numpy() for name, tensor in model.items()}


@pytest.mark.parametrize("variant", ["serial", "whole_epochs"])
def test_the_command_that_is_timed_trains_the_floors_model(small, monkeypatch, tmp_path, variant):
    """src/train.py as benchmarks/rounds.py starts it, two rounds of it, through wire and run folder, in float64."""
    driver, child = Pipe()
    for word in ("train", "train", "model", "end"):
        driver.send(word)
    monkeypatch.setenv(pace.DESCRIPTOR, str(child.fileno()))
    monkeypatch.setattr(pace, "Connection", lambda descriptor: child)
    arguments = [*ours.overrides("small"), *rounds.OURS[variant], f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    GlobalHydra.instance().clear()
    logging.getLogger().handlers.clear()
    cli.main()
    about, first, second, model = (driver.recv() for _ in range(4))
    assert about["versions"]["torch"] == torch.__version__
    assert first == second == {"num_steps": small.num_steps}
    assert rounds.difference(model, trained(small), "small") < 1e-12
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 3


def test_another_order_of_batches_is_told_from_the_floors(small):
    class Swapped(Workload):
        def batches(self, client, round_index, epoch):
            return super().batches(client, round_index, 1 - epoch)

    swapped = Swapped(**vars(replace(small)))
    assert rounds.difference(trained(swapped), trained(small), "small") > 10 * rounds.SAME


def test_rounds_beside_which_others_computed_do_not_count_where_enough_are_left():
    quiet = [[(1.0, 0.0), (seconds, 0.0)] for seconds in (1.0, 1.5, 2.0, 2.5, 3.0)]
    busy = [[(4.0, 0.0), (9.0, 1.0)], [(4.0, 1.0), (9.0, 0.0)]]
    summary = rounds.summarise({"rounds": [*quiet, *busy]})
    assert summary["ratio"] == summary["seconds"] == [1.5, 2.0, 2.5]
    assert (summary["counted"], summary["quiet"], summary["of"]) == (5, 5, 7)
    summary = rounds.summarise({"rounds": [*quiet[1:], *busy]})
    assert (summary["counted"], summary["quiet"], summary["of"]) == (6, 4, 6)
    assert summary["ratio"][1] == 2.25


def test_a_processes_own_are_its_descendants():
    table = {1: (0, 0.0), 10: (1, 0.0), 11: (10, 0.0), 12: (11, 0.0), 20: (1, 0.0)}
    assert [process for process in table if load.descends(process, 10, table)] == [10, 11, 12]


def test_foreign_load_is_read_off_proc(monkeypatch):
    others = iter([5.0, 5.0 + 3.0])
    monkeypatch.setattr(load, "busy_seconds", lambda: next(others))
    monkeypatch.setattr(load, "all_processes", lambda: {1: (0, 0.0)})
    clock = iter([100.0, 102.0])
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(clock))
    assert load.ForeignLoad(own=1).cores() == 1.5


@pytest.mark.parametrize(
    ("argument", "key"),
    [("nets=tiny", "nets"), ("net=huge", "net=huge"), ("variants=flwr", "flwr"), ("rounds=0", "rounds=0")],
)
def test_a_wrong_option_is_named(argument, key):
    with pytest.raises(ValueError, match=key):
        rounds.read_options([argument])


def test_a_table_says_what_did_not_run_and_what_differs():
    about = {"threads": 2, "num_steps": 80, "to_first_round_s": 1.0, "difference": 0.5, "rounds": [[(1.0, 0.0)]] * 2}
    results = {"floor": about | {"summary": rounds.summarise(about)}, "flower": {"error": "no ray"}}
    lines = rounds.table("tiny", results).splitlines()
    assert lines[0].startswith("tiny: 3,259 parameters, 8 clients a round, 80 steps of 20")
    assert "**differs**" in lines[-2]
    assert "no ray" in lines[-1]
    assert {line.count("|") for line in lines[2:]} == {11}


def test_scale_has_as_many_examples_as_its_clients_need():
    data = scale.data_set(400)
    assert (len(data.train), int(data.train.owners.max())) == (400, 99)
    assert np.unique(data.train.labels).tolist() == [0, 1]


@pytest.mark.slow
def test_the_servers_resnet50_is_torchvisions_and_its_tables_are_computed_from_units(tmp_path, capsys):
    """25,557,032 parameters, and 53,120 running values of BatchNorm; a small one is measured and kept."""
    with torch.device("meta"):
        network = server.resnet50()
    assert sum(parameter.numel() for parameter in network.parameters()) == 25_557_032
    assert sum(buffer.numel() for buffer in network.buffers()) == 53_120
    out = tmp_path / "server.json"
    server.main(["width=4", "clients=1000", "cohort=10", "repeats=1", "federation=0", "uploads=0", f"out={out}"])
    units = json.loads(out.read_text())["units"]
    dense, fedpara = units["models"].values()
    assert dense["links"]["fp16"]["up_bytes"] == 2 * dense["values"] > dense["links"]["fedpaq"]["up_bytes"]
    assert fedpara["parameters"] < dense["parameters"]
    options = server.OPTIONS | {"cohort": 10, "nic_gbit": 8e-9 * 20 * dense["links"]["fp32"]["up_bytes"]}
    assert server.round_of(units, "dense", "fp32", options)["network_s"] == pytest.approx(1)
    assert server.wall({"network": 0.5, "disk": 2.0}) == "disk, 2 x"
    assert "SCAFFOLD, FedPara" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="speed: must be one of clients, cohort"):
        server.main(["speed=3"])
