"""Clients of different size: what each holds, the mean of each column, and the same bits wherever they are trained."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from fedpara.aggregation import Median
from fedpara.algorithms import FedDyn, FedProx, Scaffold
from fedpara.app import evaluation
from fedpara.app.build import build_experiment
from fedpara.app.composition import compose
from fedpara.callbacks import Checkpoint, ClientTable, RunFolder, restore
from fedpara.communication import Cast, Link, StochasticUniform, TopK
from fedpara.deployment.folders import localised
from fedpara.execution import (
    AutoExecutor,
    FaultInjection,
    ProcessesExecutor,
    RayExecutor,
    SerialExecutor,
    VectorizedExecutor,
    tiered,
)
from fedpara.execution.attacks import a_little
from fedpara.federation import Tier, Tiers
from fedpara.models import MLP, VGG
from fedpara.nn import EqualSizeLowRank, FedPara, factorize, narrow, ranks_at
from fedpara.privacy import ClientLevelPrivacy
from fedpara.runs import Run, read_clients
from fedpara.sampling import cohort, drawn_groups
from fedpara.sharing import Rotating
from fedpara.state import join, load_state, num_elements, read_state
from helpers.federations import Watch, make_federation, same, watched

RECIPE = FedPara(gamma=1.0)
WIDE = partial(MLP, [16, 64, 3])
CONVOLUTIONAL = partial(VGG, [[4], [8]], [6], 3, in_channels=1)
SMALL = {"small": {"share": 0.4, "gamma": 0.0}, "large": {"share": 0.6, "gamma": 1.0}}
EQUAL = {"one": {"share": 0.4, "gamma": 1.0}, "other": {"share": 0.6, "gamma": 1.0}}


def tiers_of(given, recipe, network):
    network = factorize(network(), recipe)
    return {
        name: Tier(share=one["share"], ranks=ranks_at(network, recipe, one["gamma"])) for name, one in given.items()
    }


def tiered_options(given=SMALL, executor=SerialExecutor, recipe=RECIPE, network=WIDE, **options):
    """Options of `make_federation`, 5 clients of which the first tier has 2."""
    tiers = tiers_of(given, recipe, network)
    executor = tiered(executor, [tier.ranks for tier in tiers.values()])
    return {"tiers": tiers, "executor": executor, "recipe": recipe, "network": network, "num_rounds": 2, **options}


def finished(**options):
    federation = make_federation(**options)
    watch = Watch()
    federation.callbacks.append(watch)
    federation.fit()
    federation.close()
    return federation, watch.records


@pytest.mark.parametrize("options", [
    {}, {"algorithm": FedProx(mu=0.1)}, {"link": Link(StochasticUniform(bits=4), Cast("bfloat16"))},
    {"network": CONVOLUTIONAL}, {"recipe": EqualSizeLowRank(gamma=1.0)},
])  # fmt: skip
def test_tiers_of_all_columns_are_fedavg_bit_for_bit(options):
    plain, records = finished(**{"recipe": RECIPE, "num_rounds": 2, "network": WIDE} | options)
    equal, others = finished(**tiered_options(EQUAL, **options))
    assert same(join(plain.server), join(equal.server))
    for record, other in zip(records, others, strict=True):
        own = {name: value for name, value in other.metrics.items() if not name.endswith(("_one", "_other"))}
        assert own == record.metrics
        assert other.metrics["test/acc_one"] == other.metrics["test/acc"]
        assert (other.up_bytes, other.down_bytes) == (record.up_bytes, record.down_bytes)


def hand_made(ranks, num_clients=2):
    """Tiers over one layer of 3 columns with a core."""
    network = factorize(nn.Sequential(nn.Conv2d(3, 3, (1, 2))), EqualSizeLowRank(layers={"0": {"rank": 3}}))
    shares = 1 / len(ranks)
    tiers = {f"tier{number}": Tier(share=shares, ranks={"0": rank}) for number, rank in enumerate(ranks)}
    return Tiers(tiers, network, num_clients, seed=0), network


def test_the_mean_of_two_clients_by_hand():
    """One has a column and 30 examples, the other two and 10; the third column stays the server's."""
    tiers, network = hand_made([1, 2, 3], num_clients=3)
    name = "0.parametrizations.weight.0."
    small, middle = (tiers.narrowed(tier, read_state(network)) for tier in (0, 1))
    small = small | {f"{name}x": torch.tensor([[1.0], [2], [3]]), f"{name}t": torch.tensor([[4.0, 8]])}
    middle = middle | {
        f"{name}x": torch.tensor([[5.0, 7], [6, 8], [7, 9]]),
        f"{name}t": torch.tensor([[8.0, 1, 4, 2], [3, 5, 6, 9]]),  # T[a, b, k] is t[a, 2 k + b]
    }
    small["0.bias"], middle["0.bias"] = torch.tensor([1.0, 1, 1]), torch.tensor([5.0, 5, 5])
    server = {key: torch.full_like(tensor, -1) for key, tensor in read_state(network).items()}
    mean = tiers.mean(server, server, [(small, 30), (middle, 10)])
    assert mean[f"{name}x"].tolist() == [[2, 7, -1], [3, 8, -1], [4, 9, -1]]
    assert mean[f"{name}t"].tolist() == [[5, 1, -1, 7, 2, -1], [3, 5, -1, 6, 9, -1], [-1] * 6]
    assert mean["0.bias"].tolist() == [2, 2, 2]
    assert all((tensor == -1).all() for tensor in server.values())


def test_steps_below_the_rounding_of_the_broadcast_add_up():
    """bfloat16 has 1/128 between 1 and 2; each round moves half of the columns by 1/1000."""
    tiers, network = hand_made([1, 3])
    server = {name: torch.full_like(tensor, 1.003) for name, tensor in read_state(network).items()}
    start = server
    for _ in range(10):
        received = {name: tensor.bfloat16().float() for name, tensor in server.items()}
        small = {name: tensor + 1e-3 for name, tensor in tiers.narrowed(0, received).items()}
        server = tiers.mean(server, received, [(small, 10)])
    moved = {name: tiers.narrowed(0, server)[name] - tiers.narrowed(0, start)[name] for name in server}
    assert all(torch.allclose(tensor, torch.tensor(0.01), atol=1e-5) for tensor in moved.values())


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), max_size=6), st.integers(1, 2), st.integers(0, 99))
def test_the_mean_is_that_over_the_clients_that_have_the_entry(clients, lowest, seed):
    """Against masks: every factor padded to all columns, sums divided by the weights of those who have an entry."""
    tiers, network = hand_made([lowest, 2, 3], num_clients=3)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: {n: torch.randn(t.shape, generator=generator) for n, t in read_state(network).items()}  # noqa: E731
    server, wholes = draw(), [draw() for _ in clients]
    mean = tiers.mean(
        server, server, [(tiers.narrowed(tier, w), n) for w, (tier, n) in zip(wholes, clients, strict=True)]
    )
    column = {"x": torch.arange(3).expand(3, 3), "y": torch.arange(3).expand(3, 3)}
    column["t"] = torch.maximum(torch.arange(3)[:, None], torch.arange(6)[None] % 3)
    ranks = [lowest, 2, 3]
    for name, tensor in mean.items():
        needs = column.get(name[-1], torch.zeros(tensor.shape)) if "parametrizations" in name else torch.zeros(3)
        weights = [n * (needs < ranks[tier]) for tier, n in clients]
        total = sum(weights, torch.zeros(needs.shape))
        summed = sum((w * whole[name] for w, whole in zip(weights, wholes, strict=True)), torch.zeros(needs.shape))
        torch.testing.assert_close(tensor, torch.where(total > 0, summed / total.clamp(min=1), server[name]))


def test_each_client_is_sent_and_sends_back_its_columns(tmp_path):
    callbacks = [RunFolder(tmp_path, {}), ClientTable(tmp_path)]
    federation, results = watched(**tiered_options(clients_per_round=5, network=CONVOLUTIONAL, callbacks=callbacks))
    federation.fit()
    tiers, model = federation.tiers, federation.server["model"]
    sizes = [4 * num_elements(tiers.narrowed(tier, model)) for tier in (0, 1)]
    assert sizes[0] < sizes[1] == 4 * num_elements(model)
    assert sorted(tiers.of) == [0, 0, 1, 1, 1]
    for result in results:
        assert 4 * num_elements(result.state) == sizes[tiers.of[result.client]]
    rows = list(read_clients(tmp_path / "clients.csv"))
    assert len(rows) == 10
    for row in rows:
        tier = tiers.of[row["client"]]
        assert (row["tier"], row["up_bytes"], row["down_bytes"]) == (tiers.names[tier], sizes[tier], sizes[tier])
    for row in Run(tmp_path).rows:
        for way in ("up", "down"):
            assert (row[f"comm/{way}_bytes_small"], row[f"comm/{way}_bytes_large"]) == (2 * sizes[0], 3 * sizes[1])
            assert row[f"comm/{way}_bytes"] == 2 * sizes[0] + 3 * sizes[1]


def test_the_model_of_a_tier_is_tested(monkeypatch):
    federation = make_federation(**tiered_options(network=CONVOLUTIONAL, evaluate_personal=True))
    record = federation.run_round()
    network = factorize(CONVOLUTIONAL(), RECIPE)
    load_state(network, federation.model())
    narrow(network, ranks_at(network, RECIPE, 0.0))
    images, labels = next(iter(federation.executor.datamodule.test_dataloader()))
    network.eval()
    accuracy = float((network(images).argmax(1) == labels).float().mean())
    assert record.metrics["test/acc_small"] == pytest.approx(accuracy)
    assert record.metrics["test/acc_large"] == record.metrics["test/acc"]
    assert record.metrics["test/loss_small"] != record.metrics["test/loss"]
    assert len(record.personal_scores) == 5
    for client in range(5):
        own = federation.tiers.narrowed(federation.tiers.of[client], federation.model())
        assert same(federation.model(client), own)


@pytest.mark.parametrize("executor", [
    pytest.param(partial(ProcessesExecutor, workers=2), marks=pytest.mark.slow),
    pytest.param(partial(RayExecutor, actors=2), marks=pytest.mark.slow),
    pytest.param(partial(ProcessesExecutor, inner=partial(VectorizedExecutor, chunk_size=3), chunk=3, workers=2),
                 marks=pytest.mark.slow),
    partial(VectorizedExecutor, chunk_size=3),
])  # fmt: skip
def test_every_executor_trains_what_the_serial_one_does(executor):
    options = {"clients_per_round": 5, "network": CONVOLUTIONAL, "algorithm": FedProx(mu=0.1)}
    serial, _ = finished(**tiered_options(**options))
    other, _ = finished(**tiered_options(executor=executor, **options))
    exact = executor.func is not VectorizedExecutor and "inner" not in executor.keywords
    for name, tensor in join(serial.server).items():
        close = torch.equal if exact else partial(torch.allclose, atol=1e-5)
        assert close(join(other.server)[name], tensor), name


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(tmp_path):
    make = lambda **options: make_federation(**tiered_options(num_rounds=4, network=CONVOLUTIONAL, **options))  # noqa: E731
    whole, begun = make(), make(callbacks=[Checkpoint(tmp_path), ClientTable(tmp_path)])
    whole.fit()
    begun.num_rounds = 2
    begun.fit()
    resumed = make(callbacks=[Checkpoint(tmp_path), ClientTable(tmp_path)])
    restore(resumed, tmp_path)
    resumed.fit()
    assert same(join(whole.server), join(resumed.server))
    assert (resumed.total_bytes, resumed.tiers.of) == (whole.total_bytes, whole.tiers.of)
    assert len(list(read_clients(tmp_path / "clients.csv"))) == 8


def test_the_last_columns_stay_in_a_round_without_large_clients():
    federation = make_federation(**tiered_options(clients_per_round=1, num_rounds=12))
    assert len(federation.tiers._ranks[0]) == 2  # x and y of the first layer; the second one has rank 1 in both
    for index in range(12):
        (client,) = cohort(0, index, 5, 1)
        before = federation.server["model"]
        federation.run_round()
        after = federation.server["model"]
        for name, rank in federation.tiers._ranks[0].items():
            changed = not torch.equal(after[name][..., rank:], before[name][..., rank:])
            assert changed == (federation.tiers.of[client] == 1)
            assert not torch.equal(after[name][..., :rank], before[name][..., :rank])


def test_fine_tuning_starts_from_the_same_weights_in_every_tier():
    federation = make_federation(**tiered_options(factorizing={"delta": True}, clients_per_round=5))
    metrics = federation.evaluate()
    assert metrics["test/loss_small"] == metrics["test/loss_large"]
    metrics = federation.run_round().metrics
    assert metrics["test/loss_small"] != metrics["test/loss_large"]


def test_failures_are_left_out_of_their_columns_and_bytes_are_counted():
    faulty = lambda training: FaultInjection(SerialExecutor(training), dropout=0.3, nan=0.2)  # noqa: E731
    federation = make_federation(**tiered_options(executor=faulty, clients_per_round=5, num_rounds=6, retries=1))
    for _ in range(6):
        record = federation.run_round()
        assert sum(record.tiers[f"comm/up_bytes_{name}"] for name in SMALL) == record.up_bytes
    assert all(tensor.isfinite().all() for tensor in federation.server["model"].values())


def test_attackers_that_collude_do_so_among_those_of_their_size():
    options = tiered_options(clients_per_round=5)
    attackers = lambda training: FaultInjection(options["executor"](training), 0, 0, 0, 0, 0, 0.8, "alie", 1.0)  # noqa: E731
    (federation, honest), (attacked, sent) = watched(**options), watched(**options | {"executor": attackers})
    federation.run_round()
    attacked.run_round()
    mine = attacked.executor.inner.clients
    for tier in range(2):
        own = [client for client in mine if attacked.tiers.of[client] == tier]
        expected = a_little([result.state for result in honest if result.client in own], 1.0)
        got = [result.state for result in sent if result.client in own]
        assert got
        assert all(same(state, expected) for state in got)


@given(st.integers(0, 99), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_the_tiers_of_clients_are_drawn_by_share(seed, counts):
    total = sum(counts)
    groups = drawn_groups(seed, total, [count / total for count in counts])
    assert [groups.count(number) for number in range(len(counts))] == counts
    assert groups == drawn_groups(seed, total, [count / total for count in counts])


def test_another_seed_draws_other_tiers():
    assert len({tuple(drawn_groups(seed, 20, [0.5, 0.5])) for seed in range(5)}) == 5


@pytest.mark.parametrize(("options", "message"), [
    ({"catch_up": True}, "catch_up=True: must be false with federation.tiers"),
    ({"privacy": ClientLevelPrivacy(noise_multiplier=1.0)}, "tiers need privacy=none, whose mean is over"),
    ({"aggregation": Median()}, "tiers need aggregation=mean, whose uploads are of one size"),
    ({"link": Link(TopK(0.1), Cast(), error_feedback=True)}, "tiers need link.error_feedback=false, whose"),
    ({"personal": ["layers.3.bias"]}, "tiers need a split without personal parts, and layers.3.bias is one"),
    ({"split": Rotating}, "tiers need sharing=full, not Rotating"),
    ({"algorithm": Scaffold()}, "tiers need algorithm=fedavg or fedprox, not Scaffold, whose step is of one size"),
    ({"algorithm": FedDyn()}, "tiers need algorithm=fedavg or fedprox, not FedDyn"),
    ({"training": {"jacobian_correction": 1.0}}, "jacobian_correction=1.0: must be 0 with federation.tiers"),
])  # fmt: skip
def test_what_needs_clients_of_one_size_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_federation(**tiered_options(**options))


@pytest.mark.parametrize(("given", "message"), [
    ({"a": (0.5, 1), "b": (0.4, 3)}, "the shares of tiers must sum to 1, and sum to 0.9"),
    ({"a": (0.01, 1), "b": (0.99, 3)}, "the tier a has none of 10 clients, its share is 0.01"),
    ({"a": (0.5, 1), "b": (0.5, 2)}, "one of the tiers must have factorization.gamma, or nobody"),
    ({"a/b": (0.5, 1), "b": (0.5, 3)}, "the tier 'a/b' must have a name of letters, digits and _"),
])  # fmt: skip
def test_tiers_that_make_no_federation_are_refused(given, message):
    network = factorize(nn.Sequential(nn.Linear(9, 9)), EqualSizeLowRank(layers={"0": {"rank": 3}}))
    tiers = {name: Tier(share=share, ranks={"0": rank}) for name, (share, rank) in given.items()}
    with pytest.raises(ValueError, match=message):
        Tiers(tiers, network, num_clients=10, seed=0)


def test_an_executor_that_chooses_by_itself_is_refused():
    with pytest.raises(ValueError, match="executor=auto: must be serial, processes, vectorized or ray"):
        tiered(AutoExecutor, [])


TYPED = ["model=mlp", "model.network.widths=[784,16,10]", "data.max_train=80", "data.max_test=40", "data.batch_size=16"]
TYPED += ["federation.num_clients=4", "federation.clients_per_round=3", "federation.num_rounds=2", "logger=none"]
TYPED += ["callbacks.partition_picture=null", "factorization.gamma=0.5", "trainer.max_epochs=1"]
TIERS = "federation.tiers={phone:{share:0.5,gamma:0.0},desk:{share:0.5,gamma:0.5}}"


@pytest.mark.slow
def test_a_run_with_tiers_is_resumed_and_tested(shell, tmp_path):
    """All that a person types; a resumed run has the bits of an uninterrupted one."""
    for folder, rounds in (("whole", 2), ("parts", 1)):
        changed = [*TYPED, TIERS, f"federation.num_rounds={rounds}", f"paths.output_dir={tmp_path / folder}"]
        status, error, _ = shell(*changed, "callbacks=clients")
        assert status == 0, error
    status, error, _ = shell(f"resume={tmp_path / 'parts'}", "federation.num_rounds=2")
    assert status == 0, error
    whole, parts = (load_file(tmp_path / folder / "checkpoint.safetensors") for folder in ("whole", "parts"))
    assert same(whole, parts)
    rows = Run(tmp_path / "parts").rows
    assert [{*row} >= {"test/acc_phone", "test/loss_desk", "comm/up_bytes_phone"} for row in rows] == [True, True]
    status, error, out = shell(f"run={tmp_path / 'whole'}", program=evaluation)
    assert status == 0, error
    assert f"test/acc_phone: {Run(tmp_path / 'whole').rows[-1]['test/acc_phone']}" in out
    require_exports(shell, tmp_path / "whole")
    status, error, _ = shell(f"resume={tmp_path / 'parts'}", "federation.num_rounds=3", "federation.tiers=null")
    assert status == 2
    assert "the run cannot be resumed with another federation.tiers" in error


def require_exports(shell, folder):
    """The dense weights of a tier's model have its accuracy; a client's are those of its tier."""
    accuracy = Run(folder).rows[-1]["test/acc_phone"]
    assert shell(f"run={folder}", "tier=phone", "export=dense", program=evaluation)[0] == 0
    assert shell(f"run={folder}", "export=hub", program=evaluation)[0] == 0
    sizes = Run(folder).summary["parameters"]
    sent = f"sent {sizes['shared_phone']:,} to {sizes['shared_desk']:,} of the {sizes['dense']:,} parameters"
    assert sent in (folder / "hub/README.md").read_text()
    weights = load_file(folder / "model-phone.safetensors")
    data = build_experiment(compose([*TYPED, TIERS])).datamodule
    data.setup()
    network = MLP([784, 16, 10])
    network.load_state_dict(weights)
    images, labels = next(iter(data.test_dataloader()))
    assert float((network(images).argmax(1) == labels).float().mean()) == pytest.approx(accuracy)
    phone = drawn_groups(0, 4, [0.5, 0.5]).index(0)
    assert shell(f"run={folder}", f"client={phone}", "export=dense", program=evaluation)[0] == 0
    assert same(load_file(folder / f"model-client{phone}.safetensors"), weights)
    for typed, message in {
        "tier=tablet": "tier=tablet: must be phone or desk, without client=",
        f"tier=phone client={phone}": "tier=phone: must be phone or desk, without client=",
        "tier=phone": "tier=phone: needs export=dense or onnx, a test is that of every tier",
        "tier=phone export=hub": "export=hub: must be dense or onnx for clients of the tier phone",
    }.items():
        status, error, _ = shell(f"run={folder}", *typed.split(" "), program=evaluation)
        assert (status, error.strip()) == (2, f"error: {message}")


@pytest.mark.parametrize(("typed", "message"), [
    ("federation.tiers=[0.1,0.5]", "federation.tiers=[0.1, 0.5]: must be null, or {name: {share: 0.5, gamma: "),
    ("federation.tiers={a:{share:1}}", "federation.tiers.a.gamma: must be given"),
    ("federation.tiers={a:{share:1,gamma:0.6}}", "federation.tiers.a.gamma=0.6: must be a number, 0 to factorization."),
    ("federation.tiers={a:{gamma:0.5}}", "federation.tiers.a.share: must be given"),
    ("federation.tiers={a:{share:0,gamma:0.5}}", "federation.tiers.a.share=0: "),
    ("federation.tiers={a:{share:1,gamma:0.5,rank:3}}", "federation.tiers.a.rank: no such key"),
    (f"{TIERS} executor=auto", "executor=auto: must be serial, processes, vectorized or ray with federation.tiers"),
    (f"{TIERS} factorization=dense", "federation.tiers.phone.gamma=0.0: Dense has none; take factorization=fedpara"),
    (f"{TIERS} factors.jacobian_correction=1", "jacobian_correction=1.0: must be 0 with federation.tiers"),
    (f"{TIERS} algorithm=scaffold", "federation: tiers need algorithm=fedavg or fedprox, not Scaffold"),
])  # fmt: skip
def test_what_cannot_be_typed_is_one_line(shell, typed, message):
    kept = [one for one in TYPED if not ("factorization=dense" in typed and "gamma" in one)]
    status, error, _ = shell(*kept, *typed.split(" "))
    assert (status, error.count("\n")) == (2, 1), error
    assert message in error


def test_real_clients_are_of_one_size(tmp_path):
    with pytest.raises(ValueError, match=r"federation.tiers: must be null with real clients"):
        localised(compose([*TYPED, TIERS]), tmp_path, 0)
