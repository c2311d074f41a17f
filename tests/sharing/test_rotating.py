"""Rotating factors, and broadcasts of what a client lacks: what moves, what is sent, and what each client holds."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError

from fedpara.algorithms import FedAvg, FedProx, Scaffold
from fedpara.callbacks import Checkpoint, restore
from fedpara.communication import Link, StochasticUniform
from fedpara.execution import FaultInjection, ProcessesExecutor, SerialExecutor, VectorizedExecutor
from fedpara.federation import Kept
from fedpara.models import VGG
from fedpara.nn import Dense, EqualSizeLowRank, FedPara, PFedPara, factorize, stacked_factors
from fedpara.privacy import ClientLevelPrivacy
from fedpara.sampling import cohort
from fedpara.sharing import Rotating, Split
from fedpara.state import join, num_elements
from helpers.federations import make_federation, same, watched

VGG16 = partial(VGG, [[4], [8]], [6], 3, in_channels=1)


def rotating(groups="cores", **options):
    return {"split": partial(Rotating, groups=groups), **options}


@pytest.mark.parametrize(("groups", "number"), [("cores", 3), ("branches", 2), ("factors", 6)])
def test_a_round_trains_and_sends_back_one_group(groups, number):
    """The frozen factors keep their bits at every client, and together the groups are all factors, each once."""
    federation, results = watched(**rotating(groups, network=VGG16, num_rounds=6, algorithm=FedProx(mu=0.1)))
    split, seen = federation.split, []
    assert len(split.turns) == number
    for index in range(number):
        before = split.cut(federation.server["model"])
        record = federation.run_round()
        after, moving = split.cut(federation.server["model"]), split.moving(federation.server["model"], index)
        assert {name for name, piece in after.items() if not torch.equal(piece, before[name])} == set(moving)
        for result in results[-2:]:
            own = split.cut(result.state)
            assert all(torch.equal(own[name], before[name]) for name in own.keys() - moving.keys())
        assert record.up_bytes == 2 * 4 * num_elements(moving)
        seen += [name for name in moving if "parametrizations" in name]
    assert sorted(seen) == sorted(name for name in after if "parametrizations" in name)


@pytest.mark.parametrize(("recipe", "groups", "exact"), [
    (FedPara(gamma=1.0, nonlinearity="identity"), "factors", True),
    (FedPara(gamma=1.0, nonlinearity="identity"), "branches", False),
    (FedPara(gamma=1.0), "factors", False),
    (EqualSizeLowRank(gamma=1.0), "factors", True),
])  # fmt: skip
def test_the_mean_of_the_weights_is_the_weight_of_the_mean_where_it_is_linear(recipe, groups, exact):
    federation, results = watched(**rotating(groups, recipe=recipe, lr=0.5))
    network = federation.executor.module.network

    def weight(state):
        network.load_state_dict(state)
        return network.layers[1].weight.detach()

    for _ in range(2):
        federation.run_round()
        mean = sum(weight(result.state) for result in results[-2:]) / 2
        assert torch.allclose(weight(federation.server["model"]), mean, atol=1e-6) == exact


@pytest.mark.parametrize("down", ["float32", "bfloat16"])
@pytest.mark.parametrize("split", [Split, partial(Rotating, groups="factors")])
def test_clients_that_missed_rounds_hold_the_model_after_their_packet(split, down):
    """Some never answer, and some rounds do not count: what a client is not known to have is sent again."""
    faulty = lambda training: FaultInjection(SerialExecutor(training), dropout=0.3)  # noqa: E731
    federation = make_federation(
        split=split, down=down, catch_up=True, num_rounds=12, min_clients=2, clients_per_round=2, executor=faulty
    )
    side, held, sizes = federation.client_side, {client: {} for client in range(5)}, set()
    for index in range(12):
        chosen = cohort(0, index, 5, 2)
        broadcast = federation.broadcast(index, chosen)
        got = {client: side.receive_own(broadcast.to(client), index, Kept(received=held[client])) for client in chosen}
        assert all(same(join(own.received), join(broadcast.received)) for own in got.values())
        sizes |= {broadcast.to(client).num_bytes for client in chosen}
        record = federation.run_round()
        assert record.down_bytes == sum(broadcast.to(client).num_bytes for client in chosen)
        held |= {c: own.received["model"] for c, own in got.items() if federation.catch_up.last.get(c) == index + 1}
    assert 0 < len(federation.catch_up.last) <= 5
    assert (len(sizes) > 2) == (split is not Split)


def test_the_bytes_of_clients_that_miss_nothing():
    """First everything, then the group of the round before; a bit for each piece before it."""
    federation = make_federation(**rotating("factors", catch_up=True, clients_per_round=5, num_rounds=5))
    pieces = federation.split.cut(federation.server["model"])
    bits = -(-len(pieces) // 8)
    for index in range(5):
        sent = federation.split.moving(federation.server["model"], index - 1) if index else pieces
        assert federation.run_round().down_bytes == 5 * (bits + 4 * num_elements(sent))


def test_what_is_kept_changes_nothing_but_bytes():
    plain, kept = (make_federation(catch_up=catch_up, clients_per_round=5) for catch_up in (False, True))
    for _ in range(2):
        one, other = plain.run_round(), kept.run_round()
    assert same(join(plain.server), join(kept.server))
    bits = -(-len(kept.split.cut(kept.server["model"])) // 8)
    assert (other.up_bytes, other.down_bytes) == (one.up_bytes, one.down_bytes + 5 * bits)


def test_a_resumed_run_knows_what_its_clients_hold(tmp_path):
    make = partial(make_federation, **rotating("factors", catch_up=True, num_rounds=5))
    whole, parts = make(), make(callbacks=[Checkpoint(tmp_path)])
    whole.fit()
    for _ in range(2):
        parts.run_round()
    parts.callbacks[0].write(parts)
    resumed = make()
    restore(resumed, tmp_path)
    resumed.fit()
    assert same(join(whole.server), join(resumed.server))
    assert resumed.total_bytes == whole.total_bytes
    assert (resumed.catch_up.last, resumed.catch_up.changed) == (whole.catch_up.last, whole.catch_up.changed)


@pytest.mark.parametrize("make", [
    pytest.param(partial(SerialExecutor, whole_epochs=False), id="batches"),
    pytest.param(partial(VectorizedExecutor, chunk_size=2), id="vectorized"),
    pytest.param(partial(ProcessesExecutor, workers=2), id="processes", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_executor_freezes_the_same(make):
    recipes = [FedPara(gamma=1.0), PFedPara(gamma=1.0)]
    for recipe in recipes if make.func is not ProcessesExecutor else recipes[:1]:
        options = rotating("factors", recipe=recipe, num_rounds=3, eval_every=3, catch_up=True)
        serial, other = make_federation(**options), make_federation(executor=make, **options)
        for federation in (serial, other):
            federation.fit()
            federation.close()
        assert other.total_bytes == serial.total_bytes
        for name, tensor in serial.server["model"].items():
            torch.testing.assert_close(other.server["model"][name], tensor, rtol=1e-5, atol=1e-5)


def test_a_personal_branch_is_trained_in_every_round():
    federation = make_federation(**rotating("factors", personal=["*2"], num_rounds=2))
    federation.run_round()
    initial = federation.executor.initial_state()
    assert all(not torch.equal(x, initial[name]) for kept in federation.personal.values() for name, x in kept.items())


def test_privacy_clips_the_pieces_that_move():
    """It knows them by the names that they have on the wire; others it would put back to where they were."""
    privacy = ClientLevelPrivacy(clip=0.01, noise_multiplier=0.0, seed=0)
    federation = make_federation(**rotating("factors", privacy=privacy))
    for index in range(2):
        before = federation.split.cut(federation.server["model"])
        federation.run_round()
        after = federation.split.cut(federation.server["model"])
        steps = {name: piece - before[name] for name, piece in after.items()}
        assert {name for name, step in steps.items() if step.any()} == set(
            federation.split.moving(federation.server["model"], index)
        )
        assert 0.001 < sum(float(step.square().sum()) for step in steps.values()) ** 0.5 < 0.01 * (1 + 1e-4)


@pytest.mark.parametrize(("options", "message"), [
    ({"recipe": Dense()}, "groups=cores: must give two groups of factors that travel, and gives 0"),
    ({"recipe": EqualSizeLowRank(gamma=1.0)}, "groups=cores: must give two groups .* and gives 1"),
    ({"algorithm": Scaffold()}, "whose server keeps control beside the model: take algorithm=fedavg or fedprox"),
    ({"catch_up": True, "link": Link(*[StochasticUniform()] * 2)}, "catch_up=True: link.down_codec must be a Cast"),
])  # fmt: skip
def test_combinations_that_cannot_be_served_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_federation(**rotating(**options))


def test_what_would_move_a_frozen_factor_is_refused():
    split = make_federation(**rotating()).split
    split.require(torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9))
    with pytest.raises(ValueError, match=r"weight_decay=0.1: must be 0 with rotating factors"):
        split.require(torch.optim.SGD([torch.zeros(1)], lr=0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match=r"jacobian_correction=1.0: must be 0 with rotating factors"):
        split.require_steps(1.0)
    assert FedAvg().require(torch.optim.SGD([torch.zeros(1)], weight_decay=0.1)) is None


def test_a_network_that_is_one_layer_has_its_factors():
    layer = factorize(torch.nn.Linear(64, 64), FedPara(gamma=0.1))
    assert len(Rotating(layer.state_dict(), stacks=stacked_factors(layer)).turns) == 2


def test_the_stacks_of_factors_must_be_named():
    with pytest.raises(ValidationError, match="stacks"):
        Rotating(factorize(torch.nn.Linear(64, 64), FedPara(gamma=0.1)).state_dict())
