"""The contract of every executor: what serial gives, for every algorithm, factorisation and split.

By default each executor has every factorisation, every split and every algorithm that corrects gradients once, in one
precision (to it the others are FedAvg), and a few cases that are drawn from the whole product, the same ones in every
run; `--draws=N` draws more of them. Of those drawn the ones that start workers are slow.
"""

import logging
from dataclasses import replace
from functools import cache, partial
from itertools import product

import pytest
import torch

from fedpara.algorithms import FedAvg
from fedpara.communication import Cast, Link
from fedpara.data import Dirichlet
from fedpara.execution import ProcessesExecutor, RayExecutor, SerialExecutor, VectorizedExecutor
from fedpara.models import VGG
from fedpara.nn import Dense, EqualSizeLowRank, FedPara, PFedPara
from fedpara.state import join
from helpers.cases import drawn
from helpers.configured import ALGORITHMS, named, of_yaml
from helpers.federations import Watch, make_federation

EXECUTORS = {  # how each is made, and how far it may be off in float32 and in float64
    "processes": (partial(ProcessesExecutor, workers=2), 0, 0),
    "ray": (partial(RayExecutor, actors=2), 0, 0),
    "vectorized": (partial(VectorizedExecutor, chunk_size=3), 1e-5, 1e-12),
}
BY_DEFAULT = [("processes", True), ("vectorized", True)]  # one precision: they are held against the same serial runs
RECIPES = {  # and other arguments of `factorize`
    "dense": (Dense(), {}),
    "low_rank": (EqualSizeLowRank(gamma=1.0), {}),
    "hybrid": (EqualSizeLowRank(gamma=1.0), {"num_dense": 2}),
    "fine_tuning": (FedPara(gamma=1.0), {"delta": True, "trainable": ["*norm*", "classifier.3.*"]}),
    "fedpara": (FedPara(gamma=1.0), {}),
    "pfedpara": (PFedPara(gamma=1.0), {}),
}
SPLITS = {"full": [], "pfedpara": ["*.0.[xyt]2"], "fedper": ["classifier.3.*"], "fedbn": ["*norm*"], "local": ["*"]}
CORRECTING = [name for name in ALGORITHMS if of_yaml(name).correction is not FedAvg.correction]
USUAL = [(name, "pfedpara", "full") for name in ["fedavg", *CORRECTING]]
USUAL += [("scaffold", recipe, "full") for recipe in RECIPES if recipe != "pfedpara"]
USUAL += [("scaffold", "pfedpara", split) for split in SPLITS if split != "full"]


def cases():
    """Those with the same executor, precision and factorisation after one another: they share what was made."""
    for executor, double, recipe, split, algorithm in product(EXECUTORS, (False, True), RECIPES, SPLITS, ALGORITHMS):
        if split != "pfedpara" or recipe == "pfedpara":
            yield executor, double, algorithm, recipe, split


def is_usual(executor, double, algorithm, recipe, split):
    one_start = executor != "processes" or recipe == "pfedpara"  # workers start for each factorisation
    return (executor, double) in BY_DEFAULT and (algorithm, recipe, split) in USUAL and one_start


def named_case(executor, double, *rest):
    name = "-".join([executor, "double" if double else "float", *rest])
    marks = [] if executor == "vectorized" or is_usual(executor, double, *rest) else [pytest.mark.slow]  # workers start
    return pytest.param(executor, double, *rest, id=name, marks=marks)


def pytest_generate_tests(metafunc):
    if "recipe" in metafunc.fixturenames:
        chosen = drawn(list(cases()), metafunc.config.getoption("draws"), always=is_usual)
        metafunc.parametrize(("name", "double", "algorithm", "recipe", "split"), [named_case(*case) for case in chosen])


def finished(make, double, algorithm, recipe, split):
    """Two rounds of convolutions, GroupNorm, dropout and linear layers, on clients of unequal size."""
    factorization, options = RECIPES[recipe]
    watch, exact = Watch(), Cast()
    exact.dtype = torch.float64 if double else torch.float32
    federation = make_federation(
        network=partial(VGG, [[4], [8]], [6], 3, in_channels=1, dropout=0.4), recipe=factorization, factorizing=options,
        algorithm=named(algorithm), personal=SPLITS[split], executor=partial(in_precision, make, double),
        partition=Dirichlet(0.5, 6), clients_per_round=3, num_rounds=2, eval_every=2, evaluate_personal=False,
        lr_decay=0.9, callbacks=[watch], link=Link(exact, exact),
    )  # fmt: skip
    federation.fit()
    return federation, watch


def in_precision(make, double, training):
    """The executor in float32 or float64."""
    return make(replace(training, module=training.module.double(), precision="64-true") if double else training)


@cache
def by_serial(*case):
    return finished(partial(SerialExecutor, whole_epochs=False), *case)  # single batches: the workers take whole epochs


@pytest.fixture(scope="module")
def kept():
    """The executor that was made last: workers take seconds to start."""
    made = {}

    def executor(key, *given):
        if key not in made:
            for other in made.values():
                other.close()
            made.clear()
            made[key] = EXECUTORS[key[0]][0](*given)
        return made[key]

    yield executor
    for other in made.values():
        other.close()


def assert_close(states, expected, tolerance):
    assert states.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            states[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_every_algorithm_factorisation_and_split_as_by_serial(kept, caplog, name, double, algorithm, recipe, split):
    """Personal parts and what clients remember too."""
    case = double, algorithm, recipe, split
    (serial, expected), (other, watch) = by_serial(*case), finished(partial(kept, (name, double, recipe)), *case)
    assert not [
        r for r in caplog.records if r.levelno > logging.INFO
    ]  # no client was trained in another way than the one asked for
    assert other.model()["classifier.3.bias"].dtype == (torch.float64 if double else torch.float32)
    tolerance = EXECUTORS[name][1 + double]
    assert_close(join(other.server), join(serial.server), tolerance)
    assert_close(join(other.personal), join(serial.personal), tolerance)
    assert_close(join(other.memories), join(serial.memories), tolerance)
    assert [report.client for report in watch.reports] == [report.client for report in expected.reports]
    losses, those = ([record.train_loss for record in one.records] for one in (watch, expected))
    assert losses == (pytest.approx(those, rel=1e-5) if tolerance else those)
