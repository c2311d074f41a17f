"""Factors that a round resets: what travels, what the weights take up, what clients that missed rounds are sent."""

from functools import partial

import pytest
import torch
from torch import nn

from fedpara.aggregation import Median, NormBounding
from fedpara.algorithms import FedAdam, FedAvg, FedDyn, FedProx, Scaffold
from fedpara.callbacks import Checkpoint, restore
from fedpara.communication import Cast, Link, Packet, StochasticUniform
from fedpara.communication.topk import TopK
from fedpara.execution import FaultInjection, ProcessesExecutor, SerialExecutor, VectorizedExecutor
from fedpara.federation import Kept
from fedpara.files import UnusableFile
from fedpara.models import MLP, VGG
from fedpara.nn import MUD
from fedpara.privacy import ClientLevelPrivacy
from fedpara.sampling import cohort
from fedpara.sharing import Rotating
from fedpara.state import combine, join, num_elements
from helpers.federations import make_federation, same, watched

WIDE = partial(MLP, [16, 32, 3])
VGG16 = partial(VGG, [[4], [8]], [6], 3, in_channels=1)
# at ratio 0.1 its layers have rank 2 and 1: 2 * (32 + 16) + 3 + 32 values in factors, 608 in weights, 35 in biases
A_SET, WEIGHTS, BIASES = 4 + 4 * 131, 4 * 608, 4 * 35
PLAIN = MUD(ratio=0.1)


def wide(**options):
    return make_federation(**{"network": WIDE, "recipe": PLAIN, "max_epochs": 1, "eval_every": 99} | options)


@pytest.mark.parametrize("recipe", [MUD(ratio=0.3), MUD(ratio=0.3, kronecker=True, a=1.2), MUD(ratio=0.3, aad=False)])
def test_a_round_sends_the_factors_and_the_weights_take_up_their_mean(recipe):
    """With AAD that is the mean of the clients' weights, and it is not without."""
    federation, results = watched(recipe=recipe, network=VGG16, num_rounds=4, lr=0.5)
    network = federation.executor.module.network

    def weights(state):
        network.load_state_dict(state)
        return [layer.weight.detach().clone() for layer in network.modules() if hasattr(layer, "parametrizations")]

    fixed = []
    for index in range(2):
        before = federation.server["model"]
        record = federation.run_round()
        after = federation.server["model"]
        assert before.keys() == after.keys()
        assert not any(name.endswith((".u", ".v", "fixed_u", "fixed_v")) for name in after)
        moving = federation.split.moving(after, index)
        assert record.up_bytes == 2 * 4 * num_elements(moving)
        assert record.down_bytes == 2 * 4 * num_elements(after)
        states = [result.state for result in results[-2:]]
        for name in moving.keys() & after.keys():  # biases and norms
            torch.testing.assert_close(after[name], (states[0][name] + states[1][name]) / 2)
        assert all(same(*[{n: s[n] for n in federation.split.weights} for s in (state, before)]) for state in states)
        trained = [weights(state) for state in states]
        mean = [(one + other) / 2 for one, other in zip(*trained, strict=True)]
        stepped = weights(federation.model())
        assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(mean, stepped, strict=True)) == recipe.aad
        assert not any(
            torch.equal(*pair) for pair in zip(stepped, weights(federation.client_side.initial), strict=True)
        )
        drawn = federation.split.started({}, index)
        fixed.append([tensor for tensor in drawn.values() if tensor.any()])
        assert all(torch.equal(s[name], x) for s in states for name, x in drawn.items() if "fixed" in name)
    assert not any(torch.equal(*pair) for pair in zip(*fixed, strict=True))


def test_the_packets_of_clients_that_missed_rounds_by_hand():
    """One client a round: it is sent the factors of its last round and of all since, at most 4; then the weights."""
    federation = wide(catch_up=True, clients_per_round=1, num_rounds=30)
    last, missed = {}, set()
    assert (WEIGHTS - 1) // A_SET == 4
    for number in range(1, 31):
        (client,) = cohort(0, number - 1, 5, 1)
        sets = number - last[client] if client in last else 99
        missed.add(min(sets, 99))
        expected = 4 + BIASES + (sets * A_SET if sets <= 4 else WEIGHTS)
        assert federation.run_round().down_bytes == expected
        last[client] = number
        assert [*federation.catch_up.sets] == [*range(max(1, number - 3), number + 1)]
    assert missed > {1, 2, 3, 4, 99}
    assert missed & {5, 6, 7, 8, 9}


def test_clients_that_missed_rounds_hold_the_servers_bits_after_their_packet():
    """Some never answer, and some rounds do not count."""
    faulty = lambda training: FaultInjection(SerialExecutor(training), dropout=0.3)  # noqa: E731
    federation = wide(catch_up=True, num_rounds=16, min_clients=2, clients_per_round=2, executor=faulty)
    side, held, sets = federation.client_side, {client: {} for client in range(5)}, set()
    for index in range(16):
        chosen = cohort(0, index, 5, 2)
        broadcast = federation.broadcast(index, chosen)
        got = {client: side.receive_own(broadcast.to(client), index, Kept(received=held[client])) for client in chosen}
        for client, own in got.items():
            assert same(own.received["model"], federation.server["model"])
            sets.add(int(broadcast.to(client).payload[0]))
            assert federation.catch_up.last.get(client) or not broadcast.to(client).payload[0]
        record = federation.run_round()
        assert record.down_bytes == sum(broadcast.to(client).num_bytes for client in chosen)
        held |= {c: own.received["model"] for c, own in got.items() if federation.catch_up.last.get(c) == index + 1}
    assert sets >= {0, 1, 2, 3}
    assert {*federation.catch_up.sets} < {*range(1, 17)}


def test_packets_that_do_not_fit_are_refused():
    federation = wide(catch_up=True, clients_per_round=5)
    for _ in range(2):
        federation.run_round()
    downlink, message = federation.client_side.downlink, {"model": federation.server["model"]}
    packet = downlink.encode_sets(message, federation.catch_up.sets, 0)
    assert packet.num_bytes == 4 + BIASES + 2 * A_SET
    for payload, line in {
        packet.payload[:3]: "does not hold the numbers of its rounds",
        packet.payload[:11]: "does not hold the numbers of its rounds",
        packet.payload[:-4]: "the model needs",
        torch.tensor([2, 2, 1], dtype=torch.int32).view(torch.uint8): r"the factors of rounds \[2, 1\]",
        torch.tensor([-1], dtype=torch.int32).view(torch.uint8): "does not hold",
        torch.tensor([1, 0], dtype=torch.int32).view(torch.uint8): r"the factors of rounds \[0\]",
    }.items():
        with pytest.raises(ValueError, match=line):
            downlink.decode(Packet(payload), federation.server["model"])
    with pytest.raises(ValueError, match="packet with factors of 2 rounds: a client that holds no model needs it all"):
        downlink.decode(packet, {})


def test_what_is_kept_changes_nothing_but_bytes():
    plain, kept = (wide(catch_up=catch_up) for catch_up in (False, True))
    for _ in range(3):
        one, other = plain.run_round(), kept.run_round()
    assert same(join(plain.server), join(kept.server))
    assert one.down_bytes == 2 * (WEIGHTS + BIASES)
    assert other.down_bytes < one.down_bytes


@pytest.mark.parametrize("recipe", [PLAIN, MUD(ratio=0.15, kronecker=True), MUD(ratio=0.1, aad=False)])
def test_a_resumed_run_has_the_bits_and_the_bytes(tmp_path, recipe):
    make = partial(wide, recipe=recipe, catch_up=True, num_rounds=13, clients_per_round=1)
    whole, parts = make(), make(callbacks=[Checkpoint(tmp_path)])
    whole.fit()
    for _ in range(11):
        parts.run_round()
    parts.callbacks[0].write(parts)
    resumed = make()
    restore(resumed, tmp_path)
    assert [*resumed.catch_up.sets] == [*parts.catch_up.sets] == [*range(12 - len(parts.catch_up.sets), 12)]
    packets = [federation.broadcast(11, range(5)).packets for federation in (resumed, parts)]
    assert all(torch.equal(packets[0][client].payload, packets[1][client].payload) for client in range(5))
    resumed.fit()
    assert same(join(whole.server), join(resumed.server))
    assert resumed.total_bytes == whole.total_bytes
    assert resumed.catch_up.last == whole.catch_up.last


def test_a_checkpoint_with_other_factors_is_refused(tmp_path):
    """The weights of another ratio are of the same shapes."""
    federation = wide(catch_up=True, callbacks=[Checkpoint(tmp_path)])
    federation.run_round()
    federation.callbacks[0].write(federation)
    with pytest.raises(UnusableFile, match="the factors of round 1 are of another model"):
        restore(wide(catch_up=True, recipe=MUD(ratio=0.2)), tmp_path)


@pytest.mark.parametrize("make", [
    pytest.param(partial(SerialExecutor, whole_epochs=False), id="batches"),
    pytest.param(partial(VectorizedExecutor, chunk_size=2), id="vectorized"),
    pytest.param(partial(ProcessesExecutor, workers=2), id="processes", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_executor_trains_the_same(make):
    recipes = [MUD(ratio=0.3), MUD(ratio=0.3, kronecker=True, a=1.2)]
    for recipe in recipes if make.func is not ProcessesExecutor else recipes[:1]:
        options = {"recipe": recipe, "network": VGG16, "num_rounds": 2, "eval_every": 2, "catch_up": True}
        serial, other = make_federation(**options), make_federation(executor=make, **options)
        for federation in (serial, other):
            federation.fit()
            federation.close()
        assert other.total_bytes == serial.total_bytes
        exact = make.func is not VectorizedExecutor
        for name, tensor in serial.server["model"].items():
            bound = 0 if exact else 1e-5
            torch.testing.assert_close(other.server["model"][name], tensor, rtol=bound, atol=bound)


def test_fedprox_pulls_the_factors_to_the_rounds_start():
    """A strong pull holds them near 0, without AAD U near what was drawn; and with mu = 0 it is FedAvg."""
    assert same(*[join(federation.server) for federation in map(run_once, (FedAvg(), FedProx(mu=0.0)))])
    for aad in (True, False):
        distances = []
        for mu in (0.0, 3.0):
            federation, results = watched(network=WIDE, recipe=MUD(ratio=0.1, aad=aad), algorithm=FedProx(mu=mu))
            federation.run_round()
            start = federation.split.started({}, 0)
            names = federation.split.factors
            distances.append(sum(float((results[0].state[name] - start[name]).square().sum()) for name in names))
        assert distances[1] < 0.5 * distances[0]


def run_once(algorithm):
    federation = wide(algorithm=algorithm)
    federation.run_round()
    return federation


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def test_running_means_of_a_batch_norm_travel_beside_the_factors():
    federation, results = watched(network=normed, recipe=PLAIN, max_epochs=1, eval_every=99, num_rounds=1)
    assert {*federation.split.movable({})} == {*federation.split.factors}  # no value that no round trains
    federation.run_round()
    means = [result.state["2.running_mean"] for result in results]
    assert not torch.equal(*means)
    torch.testing.assert_close(federation.server["model"]["2.running_mean"], sum(means) / len(means))


def test_robust_rules_judge_uploads_of_factors():
    """Not of weights, which no client trains or sends."""
    federation = wide(aggregation=NormBounding(bound=0.01))
    start = federation.split.moving(federation.server["model"], 0)
    moved = federation.algorithm.aggregate
    federation.algorithm.aggregate = lambda *given: stepped.append(moved(*given)) or stepped[0]
    stepped = []
    federation.run_round()
    update = combine(stepped[0]["model"], -1, start)
    assert 0 < sum(step.square().sum() for step in update.values()) ** 0.5 <= 0.01 * (1 + 1e-5)
    wide(aggregation=Median(memory_gb=2 * 4 * (131 + 35) / 1e9))  # two uploads are kept
    with pytest.raises(ValueError, match="memory_gb"):
        wide(aggregation=Median(memory_gb=2 * 4 * (131 + 34) / 1e9))


@pytest.mark.parametrize(("up", "size"), [
    (Cast("float16"), 2 * (131 + 35)),
    (StochasticUniform(bits=8), 6 * 4 + 131 + 35),
    (TopK(share=0.1), 21 + 4 * 17),  # a bit for each of 166 values, 17 of them
])  # fmt: skip
def test_uploads_of_factors_by_any_codec(up, size):
    """The server takes up what it has received; what clients catch up with is the mean of that, as float32."""
    federation = wide(link=Link(up, Cast()), catch_up=True, num_rounds=4, clients_per_round=5)
    for _ in range(3):
        assert federation.run_round().up_bytes == 5 * size
    broadcast = federation.broadcast(3, [0])
    assert broadcast.to(0).num_bytes == 4 + BIASES + A_SET


@pytest.mark.parametrize(("options", "message"), [
    ({"algorithm": Scaffold()}, r"algorithm must be fedavg or fedprox where factors are reset .* also keeps control"),
    ({"algorithm": FedAdam()}, "algorithm must be fedavg or fedprox where factors are reset"),
    ({"algorithm": FedDyn()}, "algorithm must be fedavg or fedprox where factors are reset"),
    ({"split": Rotating}, "groups=cores: must give two groups of factors that travel, and gives 0"),
    ({"personal": ["*bias"]}, "what travels must be the whole model, sharing=full, where factors are reset"),
    ({"link": Link(TopK(), Cast(), error_feedback=True)}, "error_feedback=True: must be false where factors are reset"),
    ({"privacy": ClientLevelPrivacy(noise_multiplier=0.0, seed=0)}, "privacy must be none where factors are reset"),
    ({"catch_up": True, "down": "bfloat16"}, "catch_up=True: link.down_codec must be a Cast to float32 where factors"),
    ({"catch_up": True, "link": Link(*[StochasticUniform()] * 2)}, "catch_up=True: link.down_codec must be a Cast to"),
])  # fmt: skip
def test_combinations_that_cannot_be_served_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        wide(**options)


def test_without_catch_up_a_broadcast_may_be_rounded():
    """The server's own weights are not; the update is added to them."""
    federation = wide(down="bfloat16")
    before = federation.server["model"]
    assert federation.run_round().down_bytes == 2 * (WEIGHTS + BIASES) // 2
    name = next(iter(federation.split.weights))
    assert (federation.server["model"][name] - before[name]).any()
    assert not torch.equal(before[name], before[name].bfloat16().float())
