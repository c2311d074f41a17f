"""Flower's own strategies as an oracle, on random states of equal weights.

Flower's pins want an environment of its own: FLOWER_PYTHON names the interpreter of one, `pip install flwr==1.41.*`.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from fedpara.aggregation import Median, MultiKrum, TrimmedMean
from fedpara.algorithms import Upload

PYTHON = os.environ.get("FLOWER_PYTHON") or (find_spec("flwr") and sys.executable)
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs FLOWER_PYTHON, an interpreter with flwr")
SHAPES = {"weight": (40, 30), "bias": (7,), "scalar": ()}
CASES = [(5, 1, 1), (5, 1, 4), (10, 2, 8), (10, 2, 3), (11, 0, 11), (23, 10, 1), (23, 10, 13)]  # clients, f, m
ASKED = r"""
import sys
import numpy as np
from flwr.app import ArrayRecord, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedMedian, FedTrimmedAvg, Krum
from flwr.serverapp.strategy.multikrum import select_multikrum

given, found = np.load(sys.argv[1]), {}
for case in {name.split("/")[0] for name in given.files}:
    clients, attackers, keep = map(int, case.split(","))
    names = sorted({name.split("/")[2] for name in given.files if name.startswith(case + "/")})
    states = [[given[f"{case}/{client}/{name}"] for name in names] for client in range(clients)]
    results = [(None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters(state), 1, {})) for state in states]
    strategies = {
        "median": FedMedian(),
        "trimmed": FedTrimmedAvg(beta=(attackers + 0.5) / clients),  # it cuts int(beta n)
        "krum": Krum(num_malicious_clients=attackers, num_clients_to_keep=keep),
    }
    for rule, strategy in strategies.items():
        parameters, _ = strategy.aggregate_fit(1, results, [])
        for name, value in zip(names, parameters_to_ndarrays(parameters)):
            found[f"{case}/{rule}/{name}"] = value
    records = [RecordDict({"arrays": ArrayRecord(state)}) for state in states]
    chosen = select_multikrum(records, attackers, keep)
    found[f"{case}/chosen"] = sorted(next(i for i, one in enumerate(records) if one is kept) for kept in chosen)
np.savez(sys.argv[2], **found)
"""


def states(number, attackers):
    """Random states, some of them far off."""
    draw = np.random.default_rng([number, attackers])
    return [
        {
            name: np.asarray(draw.normal(size=shape) * (30 if client < attackers else 1), np.float32)
            for name, shape in SHAPES.items()
        }
        for client in range(number)
    ]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flower")
    given = {
        f"{number},{attackers},{keep}/{client}/{name}": value
        for number, attackers, keep in CASES
        for client, state in enumerate(states(number, attackers))
        for name, value in state.items()
    }
    np.savez(folder / "given.npz", **given)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [PYTHON, "-c", ASKED, folder / "given.npz", folder / "found.npz"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "found.npz")


@pytest.mark.parametrize(("number", "attackers", "keep"), CASES)
def test_the_rules_are_flowers(theirs, number, attackers, keep, record_property):
    case, own = f"{number},{attackers},{keep}", states(number, attackers)
    uploads = [Upload({"model": {n: torch.from_numpy(x) for n, x in state.items()}}, 1) for state in own]
    krum = MultiKrum(attackers, keep=keep)
    rules = {"median": Median(), "trimmed": TrimmedMean(attackers), "krum": krum}
    assert krum.chosen([upload.parts["model"] for upload in uploads]) == theirs[f"{case}/chosen"].tolist()
    for label, rule in rules.items():
        first = next(iter(rule.bound_to(SHAPES).replaced(uploads, {})))
        off = max(float(np.abs(first.parts["model"][n].numpy() - theirs[f"{case}/{label}/{n}"]).max()) for n in SHAPES)
        print(f"{case} {label}: greatest difference {off:.2g}")
        record_property(label, off)
        assert off < (1e-6 if label != "median" else 1e-12)
