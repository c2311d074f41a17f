"""Client-level differential privacy: bits without noise, sensitivity, statistics of the noise, the account."""

import csv
import json
from dataclasses import replace
from functools import cache
from math import exp, inf, nan, sqrt

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from fedpara.algorithms import FedAvg, FedDyn, Scaffold, Upload
from fedpara.callbacks import Checkpoint, ClientTable, restore
from fedpara.callbacks.logging import _divergence
from fedpara.execution import FaultInjection, SerialExecutor, VectorizedExecutor
from fedpara.export import Card
from fedpara.federation import Federation
from fedpara.models import MLP
from fedpara.privacy import ClientLevelPrivacy, PrivacyState, Spent, calibrated, clipped, epsilon
from fedpara.privacy.accounting import _library as library
from fedpara.record import RoundRecord
from fedpara.runs import Run
from fedpara.state import combine, parts_layout_of
from helpers import ROOT
from helpers.cases import thinned
from helpers.configured import ALGORITHMS, of_yaml
from helpers.federations import Watch, make_federation, same
from helpers.shell import SMALL, newest

LINKS = sorted(path.stem for path in (ROOT / "configs" / "link").glob("*.yaml"))
NOTHING = {"clip": inf, "noise_multiplier": 0}


@pytest.fixture
def accounting():
    pytest.importorskip("dp_accounting")
    return library()


def private(**terms):
    return ClientLevelPrivacy(**{"clip": 1.0, "noise_multiplier": 0.0, "seed": 0} | terms)


def started(names=("w",), num_clients=10, clients_per_round=3, min_clients=1, num_rounds=10, **terms):
    return private(**terms).start(list(names), num_clients, clients_per_round, min_clients, num_rounds)


@cache
def linked(name):
    """The link of a yaml, for less than composing it; behind the name may be the bits of its codec."""
    choice, _, bits = name.partition(" ")
    node = OmegaConf.load(ROOT / "configs" / "link" / f"{choice}.yaml")
    for base in node.pop("defaults", []):
        node = OmegaConf.merge(OmegaConf.load(ROOT / "configs" / "link" / f"{base}.yaml"), node)
    return instantiate(OmegaConf.merge(node, {"up_codec": {"bits": int(bits)}} if bits else {}))


def states(draw, sizes):
    """A model of a few values, large enough to be clipped or tiny."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = 10 ** draw(st.floats(-4, 3))
    return {name: scale * torch.randn(size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize("algorithm", thinned(one for one in ALGORITHMS if one != "scaffold"))
def test_without_noise_and_clip_it_is_the_algorithm_bit_for_bit(algorithm):
    """Clients have as many examples each."""
    found = []
    for privacy in (None, private(**NOTHING)):
        federation = make_federation(
            algorithm=of_yaml(algorithm)(), privacy=privacy, num_rounds=2, max_epochs=1, down="bfloat16"
        )
        federation.fit()
        found.append(federation)
    assert all(same(found[0].server[part], found[1].server[part]) for part in found[0].server)
    assert found[0].total_bytes == found[1].total_bytes


@pytest.mark.parametrize(
    ("link", "executor"), thinned([*((link, SerialExecutor) for link in LINKS), ("fedpaq", VectorizedExecutor)], 3)
)
def test_the_same_bits_over_every_link_and_with_a_personal_part(link, executor):
    found = []
    for privacy in (None, private(**NOTHING)):
        federation = make_federation(
            privacy=privacy, link=linked(link), executor=executor, num_rounds=1, max_epochs=1,
            personal=["*.parametrizations.*.0.[xyt]2"], evaluate_personal=False,
        )  # fmt: skip
        federation.fit()
        found.append(federation)
    assert same(found[0].server["model"], found[1].server["model"])
    assert all(same(found[0].personal[client], found[1].personal[client]) for client in found[0].personal)


@pytest.mark.parametrize("link", thinned([*LINKS, "fedpaq 4", "fedpaq 2"], 3))
@settings(max_examples=20)
@given(groups=st.sampled_from(["all", "factor", "tensor"]), data=st.data())
def test_a_replaced_client_moves_the_sum_by_at_most_twice_the_clip(link, groups, data):
    """Whatever its model, and over every codec; a client that fails instead moves it by at most the clip."""
    sizes = {"a.x1": 40, "a.y1": 30, "b.x1": 7, "b.bias": 3}
    codec, clip = linked(link), 10 ** data.draw(st.floats(-3, 2))
    mean = started(sizes, clip=clip, groups=groups)
    received = {"model": states(data.draw, sizes)}
    layout = parts_layout_of(received)

    def upload(client):
        moved = {"model": combine(received["model"], 1, states(data.draw, sizes))}
        packet = codec.encode_up(mean.uploaded(moved, received, 0, client), received, seed=client)
        return Upload(codec.decode_up(packet, layout, received), num_examples=10**client)

    others, one, another = [upload(0), upload(1)], upload(2), upload(2)

    def released(uploads):
        first, *_ = mean.released(uploads, received, 0)
        return first.parts["model"]

    present, replaced, absent = (released([*others, *last]) for last in ([one], [another], []))
    for changed, most in ((replaced, 2 * clip), (absent, clip)):
        moved = 3 * torch.cat([(present[name] - changed[name]).double() for name in sizes])
        # the float32 of the mean itself rounds too, in proportion to the model and not to the clip
        rounding = 3 * 4 * 2**-23 * torch.cat([*present.values(), *received["model"].values()]).norm()
        assert moved.norm() <= most * (1 + 1e-6) + rounding
    for each in (*others, one, another):
        short, _ = clipped(each.parts["model"], received["model"], mean.groups, clip)
        own = [(short[name].double() - received["model"][name].double()).square().sum() for name in sizes]
        assert sum(own) <= clip**2 * (1 + 1e-12)  # exactly, whatever the rounding


def test_twice_the_clip_is_reached_by_opposite_updates():
    mean, received = started(), {"model": {"w": torch.zeros(4)}}

    def moved(first):
        clients = [torch.full((4,), first), torch.ones(4), -torch.ones(4)]
        (one, *_) = mean.released([Upload({"model": {"w": w}}, 1) for w in clients], received, 0)
        return 3 * one.parts["model"]["w"]

    assert (moved(5.0) - moved(-5.0)).norm() == pytest.approx(2.0)


def test_a_short_update_is_the_same_tensor_and_a_long_one_keeps_its_direction():
    origin, model = {"w": torch.ones(2), "v": torch.ones(2)}, {"w": torch.tensor([1.3, 1.4]), "v": torch.ones(2)}
    kept, unclipped = clipped(model, origin, [["w", "v"]], 0.6)
    assert unclipped
    assert kept["w"] is model["w"]
    cut, unclipped = clipped(model, origin, [["w", "v"]], 0.05)
    assert not unclipped
    torch.testing.assert_close(cut["w"] - 1, torch.tensor([0.03, 0.04]), rtol=1e-5, atol=1e-6)
    grouped, _ = clipped(model, origin, [["w"], ["v"]], 0.05)
    assert float((grouped["w"] - 1).norm()) == pytest.approx(0.05 / sqrt(2), rel=1e-5)
    assert same(clipped({"w": torch.full((2,), 3e38)}, {"w": torch.full((2,), -3e38)}, [["w"]], 1.0)[0],
                {"w": torch.full((2,), -3e38)})  # fmt: skip


@pytest.mark.parametrize(("noise", "arrived"), [("server", 4), ("server", 2), ("clients", 4), ("clients", 2)])
def test_the_noise_has_its_deviation_whoever_fails(noise, arrived):
    """At the server z C / m; shares of clients make up at least that from min_clients on."""
    mean = started(clients_per_round=4, min_clients=2, clip=0.5, noise_multiplier=3.0, noise=noise)
    received = {"model": {"w": torch.zeros(20_000)}}
    drawn = []
    for number in range(2):
        own = [mean.uploaded(received, received, number, client) for client in range(arrived)]
        first, *others = mean.released([Upload(parts, 1) for parts in own], received, number)
        assert len(others) == 3
        drawn.append(first.parts["model"]["w"])
    expected = 3.0 * 0.5 / 4 * (sqrt(arrived / 2) if noise == "clients" else 1)
    for one in drawn:
        assert float(one.std()) == pytest.approx(expected, rel=0.02)  # four standard errors
        assert abs(float(one.mean())) < 4 * expected / sqrt(20_000)
        kurtosis = float((one / one.std()).pow(4).mean())
        assert kurtosis == pytest.approx(3, abs=4 * sqrt(24 / 20_000))
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 4 / sqrt(20_000)


def test_noise_does_not_come_from_the_experiments_seed_unless_told(accounting, caplog):
    def model(seed):
        federation = make_federation(
            seed=2**40, num_rounds=1, max_epochs=1, privacy=ClientLevelPrivacy(noise_multiplier=1.0, seed=seed)
        )
        federation.fit()
        return federation.server["model"]

    assert not same(model(None), model(None))
    assert not caplog.records
    assert same(model(3), model(3))
    assert "privacy.seed=3: for tests alone" in caplog.text


def test_an_algorithm_gets_nothing_but_the_private_mean():
    seen = []

    class Looking(FedAvg):
        def aggregate(self, server, received, uploads):
            taken = list(uploads)
            seen.append([upload.num_examples for upload in taken])
            assert all(same(upload.parts["model"], taken[0].parts["model"]) for upload in taken)
            return super().aggregate(server, received, taken)

    federation = make_federation(algorithm=Looking(), privacy=private(clip=1e-3), num_rounds=1, max_epochs=1)
    before = federation.server["model"]
    federation.fit()
    assert seen == [[1, 1]]
    moved = combine(federation.server["model"], -1, before)
    assert 0 < sqrt(sum(float(x.double().square().sum()) for x in moved.values())) <= 1e-3 * (1 + 1e-3)


@pytest.mark.slow
def test_the_account_is_the_librarys_own(accounting):
    rdp, relation = accounting.rdp, accounting.NeighboringRelation.REPLACE_ONE
    own = rdp.RdpAccountant(neighboring_relation=relation)
    for multiplier, rounds in ((1.5, 7), (2.0, 3)):
        noise = accounting.GaussianDpEvent(multiplier / 2)  # the sum moves by two clips
        own.compose(accounting.SampledWithoutReplacementDpEvent(300, 50, noise), rounds)
    spent = [Spent(noise_multiplier=z, num_clients=300, clients_per_round=50, rounds=n) for z, n in ((1.5, 7), (2, 3))]
    assert epsilon(spent, 1e-3) == pytest.approx(own.get_epsilon(1e-3), rel=1e-12)
    known = rdp.RdpAccountant(neighboring_relation=relation).compose(accounting.GaussianDpEvent(0.75), 7)
    public = spent[0].model_copy(update={"secret_cohorts": False})
    assert epsilon([public], 1e-3) == pytest.approx(known.get_epsilon(1e-3), rel=1e-12)
    assert epsilon([], 1e-3) == epsilon([spent[0].of(0)], 1e-3) == 0


@pytest.mark.parametrize(("num_clients", "published"), [(2, 9.86), (3, 6.73), (4, 5.36), (10, 3.27)])
def test_the_published_table_of_fixed_size_rounds(accounting, num_clients, published):
    """Ramaswamy et al. 2020 (arXiv 2009.10031): 2,000 rounds of 20,000 clients, noise 0.8, delta N^-1.1.

    Their epsilons are quoted from memory; the paper could not be read here. Their noise is in units of the sensitivity,
    of which a clip is half here. They turned Renyi divergences into epsilon by Mironov 2017, Proposition 3; the library
    has a later bound, which is smaller.
    """
    from fedpara.privacy import accounting as ours

    number = num_clients * 10**6
    spent = Spent(noise_multiplier=1.6, num_clients=number, clients_per_round=20_000, rounds=2000)
    orders = [float(order) for order in range(2, 12)]
    divergences = 2000 * ours._divergences(spent, orders)
    by_mironov = min(rdp + 1.1 * float(torch.tensor(float(number)).log()) / (order - 1)
                     for order, rdp in zip(orders, divergences, strict=True))  # fmt: skip
    assert by_mironov == pytest.approx(published, abs=0.005)
    assert 0.8 * published < accounting.rdp.compute_epsilon(orders, divergences, number**-1.1)[0] < published


def test_the_epsilons_of_the_guide(accounting):
    plans = [(2.0, 300, 50, 100, 18.95), (4.0, 300, 50, 100, 7.09), (1.6, 3_000_000, 20_000, 2000, 6.11)]
    for z, clients, cohort, rounds, expected in plans:
        plan = Spent(noise_multiplier=z, num_clients=clients, clients_per_round=cohort, rounds=rounds)
        assert epsilon([plan], clients**-1.1) == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("target", [2.0, 50.0])
def test_the_noise_follows_from_a_target(accounting, target):
    planned = Spent(noise_multiplier=0, num_clients=300, clients_per_round=50, rounds=40)
    found = calibrated(planned, target, 1e-3)
    assert 0.97 * target < epsilon([planned.model_copy(update={"noise_multiplier": found})], 1e-3) <= target
    assert calibrated(planned.model_copy(update={"rounds": 1}), 1e6, 1e-3) == pytest.approx(0.2)


HALF_OR_MORE = Spent(noise_multiplier=8.0, num_clients=100, clients_per_round=90, rounds=100)


@pytest.mark.parametrize("cohort", [50, 90])
def test_secret_cohorts_never_cost_more_than_known_ones(accounting, cohort):
    secret = HALF_OR_MORE.model_copy(update={"clients_per_round": cohort})
    known = secret.model_copy(update={"secret_cohorts": False})
    assert epsilon([secret], 100**-1.1) <= epsilon([known], 100**-1.1)


def test_secret_cohorts_take_no_more_noise_than_known_ones(accounting):
    known = HALF_OR_MORE.model_copy(update={"secret_cohorts": False})
    assert calibrated(HALF_OR_MORE, 100.0, 1e-3) <= calibrated(known, 100.0, 1e-3)


@pytest.mark.parametrize("secret", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_smaller_noise_would_do(accounting, secret):
    """The best orders lie far apart here, between 63 and 512."""
    planned = Spent(noise_multiplier=0, num_clients=100_000, clients_per_round=100, secret_cohorts=secret, rounds=100)
    found, delta = calibrated(planned, 0.1, 100_000**-1.1), 100_000**-1.1
    now, before = (epsilon([planned.model_copy(update={"noise_multiplier": z})], delta) for z in (found, found - 0.002))
    assert now <= 0.1 < before


def test_a_target_that_no_noise_reaches_is_one_line(accounting):
    planned = HALF_OR_MORE.model_copy(update={"secret_cohorts": False})
    with pytest.raises(ValueError, match=r"target_epsilon=0.1: no noise is enough for it with delta=1e-200"):
        calibrated(planned, 0.1, 1e-200)


def test_a_resumed_run_keeps_its_old_noise_and_counts_anew_what_it_spent(accounting):
    """Its first rounds had the noise for a looser bound on epsilon."""
    mean = started(num_clients=100, clients_per_round=90, num_rounds=200, noise_multiplier=None, target_epsilon=8.0)
    spent = HALF_OR_MORE.model_copy(update={"noise_multiplier": 17.191})
    mean.resume(PrivacyState(clip=1.0, spent=[spent]), 100)
    assert mean.noise_multiplier == 17.191
    assert mean.epsilon == epsilon([spent.model_copy(update={"secret_cohorts": False})], 100**-1.1) < 5
    assert not mean.exhausted(100)
    assert mean.exhausted(400)


def test_a_run_stops_before_it_exceeds_its_target_and_tests_its_last_round(accounting):
    target = epsilon([Spent(noise_multiplier=2.0, num_clients=5, clients_per_round=2, rounds=2)], 0.1) + 1e-6
    watch = Watch()
    federation = make_federation(
        privacy=private(noise_multiplier=2.0, target_epsilon=target, delta=0.1),
        num_rounds=5, eval_every=5, max_epochs=1, callbacks=[watch],
    )  # fmt: skip
    federation.fit()
    assert [record.privacy["privacy/epsilon"] <= target for record in watch.records] == [True, True]
    assert [bool(record.metrics) for record in watch.records] == [False, True]
    assert federation.stopped == f"privacy.target_epsilon={target:g}: another round would exceed it"
    federation.fit()
    assert federation.round == 2


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_a_resumed_run_continues_account_and_clip(accounting, tmp_path, quantile):
    def federation(folder, num_rounds, target=None):
        folder.mkdir(exist_ok=True)
        terms = {"noise_multiplier": None if target else 0.1, "target_epsilon": target, "quantile": quantile}
        return make_federation(
            privacy=private(**terms), num_rounds=num_rounds, max_epochs=1, callbacks=[Checkpoint(folder)]
        )

    whole = federation(tmp_path / "whole", 4)
    whole.fit()
    federation(tmp_path / "parts", 2).fit()
    rest = federation(tmp_path / "parts", 4)
    restore(rest, tmp_path / "parts")
    assert rest.privacy.rounds == 2
    rest.fit()
    assert rest.privacy.state == whole.privacy.state
    assert (rest.privacy.state.clip == 1.0) == (quantile is None)
    assert rest.privacy.figures().items() >= {"privacy/epsilon": whole.privacy.epsilon}.items()
    assert same(rest.server["model"], whole.server["model"])


def test_a_longer_run_keeps_the_noise_that_its_first_rounds_had(accounting):
    short = make_federation(privacy=private(noise_multiplier=None, target_epsilon=9.0), num_rounds=2, max_epochs=1)
    short.fit()
    longer = make_federation(privacy=private(noise_multiplier=None, target_epsilon=9.0), num_rounds=5, max_epochs=1)
    longer.privacy.resume(PrivacyState.model_validate_json(short.privacy.state.model_dump_json()), 2)
    assert longer.privacy.noise_multiplier == short.privacy.noise_multiplier
    assert longer.privacy.exhausted()
    assert longer.privacy.promise().endswith("; it stops within 9")
    endless = PrivacyState(clip=inf)
    assert PrivacyState.model_validate_json(endless.model_dump_json()) == endless
    longer.privacy.resume(None, 2)  # rounds of a run without privacy
    assert longer.privacy.epsilon == inf


def test_the_clip_follows_the_median_of_the_norms():
    """Andrew et al. 2021, Algorithm 1; here without noise."""
    mean = started(clients_per_round=5, quantile=0.5, clip=0.01)
    received = {"model": {"w": torch.zeros(1)}}
    uploads = [Upload({"model": {"w": torch.tensor([norm])}}, 1) for norm in (0.5, 1.0, 2.0, 3.0, 40.0)]
    list(mean.released(uploads, received, 0))
    assert mean.state.clip == pytest.approx(0.01 * exp(0.2 * 0.5))  # none was below
    for number in range(1, 200):
        list(mean.released(uploads, received, number))
    assert 1.7 < mean.state.clip < 2.3
    clip = mean.state.clip
    list(mean.released([], received, 200))
    assert mean.state.clip == clip  # nobody answered


def test_the_count_takes_its_part_of_the_noise():
    """The two queries together have the sensitivity of one with noise multiplier z."""
    mean = started(clients_per_round=50, quantile=0.5, noise_multiplier=2.0)
    assert mean.count_noise == 2.5
    assert (2 / mean.update_multiplier) ** 2 + (1 / mean.count_noise) ** 2 == pytest.approx((2 / 2.0) ** 2)
    with pytest.raises(ValueError, match=r"count_noise=0.5: must be above 1, half the noise multiplier"):
        _ = started(clients_per_round=10, quantile=0.5, noise_multiplier=2.0).update_multiplier


def test_clients_that_fail_do_not_make_the_denominator_smaller():
    def moved(privacy, **faults):
        federation = make_federation(
            seed=1, privacy=privacy, num_rounds=1, max_epochs=1, clients_per_round=4,
            executor=lambda training: FaultInjection(SerialExecutor(training), **faults),
        )  # fmt: skip
        before = federation.server["model"]
        watch = Watch()
        federation.callbacks.append(watch)
        federation.fit()
        change = combine(federation.server["model"], -1, before)
        return sum(float(x.square().sum()) for x in change.values()) ** 0.5, watch.records[0].clients["succeeded"]

    plain, number = moved(None, dropout=0.5)
    assert 0 < number < 4
    length, _ = moved(private(**NOTHING), dropout=0.5)
    assert length == pytest.approx(plain * number / 4, rel=1e-3)


def test_client_figures_are_left_out_unless_they_stay_secret():
    for shown in (False, True):
        watch = Watch()
        federation = make_federation(
            privacy=private(**NOTHING, client_metrics=shown), num_rounds=1, max_epochs=1, callbacks=[watch]
        )
        federation.fit()
        assert ("train/loss" in watch.records[0].as_row()) == shown


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


REFUSED = {
    "the algorithm also uploads its control": {"algorithm": Scaffold()},
    "must be null with an algorithm whose clients remember": {"algorithm": FedDyn(), "privacy": {"quantile": 0.5}},
    "would tell a client's own noise": {"algorithm": FedDyn(), "privacy": {"noise": "clients"}},
    "no trained value travels": {"personal": ["*"], "evaluate_personal": False},
    "a statistic of clients' data that noise would spoil": {"network": normed},
    "evaluate_personal=True: clients' own scores are not private": {"evaluate_personal": True},
    "needs uploads that are not rounded": {"codec": "float16", "privacy": {"noise": "clients"}},
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_breaks_the_promise_is_refused(reason):
    options = dict(REFUSED[reason])
    with pytest.raises(ValueError, match=reason):
        make_federation(privacy=private(**options.pop("privacy", {})), **options)


def test_tables_of_clients_and_rare_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="figures of clients in ClientTable: leave it out"):
        make_federation(privacy=private(), callbacks=[ClientTable(tmp_path)])
    make_federation(privacy=private(client_metrics=True), callbacks=[ClientTable(tmp_path)])
    executor = make_federation().executor
    executor.datamodule.validation = 0.2
    with pytest.raises(ValueError, match="tests on clients' own examples"):
        Federation(executor, num_clients=5, clients_per_round=2, num_rounds=1, privacy=private())
    with pytest.raises(ValueError, match="every=2: must be 1 with privacy"):
        make_federation(privacy=private(), callbacks=[Checkpoint(tmp_path, every=2)]).fit()


@pytest.mark.parametrize(
    ("terms", "line"),
    [
        ({"noise_multiplier": None}, "noise_multiplier=None: must be given, or target_epsilon"),
        ({"clip": inf, "noise_multiplier": 1.0}, "clip=inf: must be a number"),
        ({"quantile": 0.5, "noise": "clients"}, "quantile: must be None with noise=clients"),
        ({"clip": 0.0}, "clip"),
    ],
)
def test_terms_that_do_not_go_together(terms, line):
    with pytest.raises(ValueError, match=line):
        private(**terms)


@pytest.mark.slow
def test_a_private_run_as_one_would_type_it(accounting, shell, tmp_path):
    typed = [*SMALL, "privacy=gaussian", "privacy.noise_multiplier=1", "privacy.delta=0.1"]
    status, error, out = shell(*typed)
    assert status == 0, error
    folder = newest(tmp_path)
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    spent = Spent(noise_multiplier=1.0, num_clients=4, clients_per_round=2)
    assert [float(row["privacy/epsilon"]) for row in rows] == pytest.approx(
        [epsilon([spent.of(n)], 0.1) for n in (1, 2)]
    )
    assert {row["train/loss"] for row in rows} == {""}
    assert all(float(row["privacy/clip"]) == 1 for row in rows)
    assert "if one client's data are replaced; secret cohorts of 2 of 4 without replacement" in out
    assert "| epsilon " in out
    status, error, _ = shell(f"resume={folder}", "federation.num_rounds=3")
    assert status == 0, error
    with (folder / "metrics.csv").open() as stream:
        (*_, last) = csv.DictReader(stream)
    assert float(last["privacy/epsilon"]) == pytest.approx(epsilon([spent.of(3)], 0.1))


TYPED = {
    "privacy=gaussian": "privacy.noise_multiplier=None: must be given, or target_epsilon from which it follows",
    "privacy=gaussian privacy.noise_multiplier=1 algorithm=scaffold": "federation: privacy clips and noises the model",
    "privacy=gaussian privacy.noise_multiplier=1 callbacks=clients": "federation: privacy does not cover the figures",
    "privacy=gaussian privacy.noise_multiplier=1 callbacks.checkpoint.every=2": "callbacks.checkpoint.every=2: must be",
    "privacy=gaussian privacy.noise_multiplier=1 federation.evaluate_personal=true": "federation.evaluate_personal",
    "privacy=gaussian privacy.noise_multiplier=-1": "privacy.noise_multiplier=-1: ",
    "privacy.clip=1": "privacy.clip: no such key",
}


@pytest.mark.parametrize("typed", thinned(TYPED, 3))
def test_a_wrong_line_names_its_key(shell, typed):
    status, error, _ = shell(*SMALL, *typed.split())
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith(f"error: {TYPED[typed]}"), error


def test_no_privacy_leaves_no_trace(tmp_path):
    watch = Watch()
    federation = make_federation(num_rounds=1, max_epochs=1, callbacks=[Checkpoint(tmp_path), watch])
    federation.fit()
    assert b"privacy" not in (tmp_path / "checkpoint.safetensors").read_bytes()
    assert not [name for name in watch.records[0].as_row() if name.startswith("privacy")]


def test_a_hidden_loss_is_no_alarm():
    record = RoundRecord(1, nan, {}, 0, 0, 0, 2, 0.0, 0.0, clients={"succeeded": 2}, privacy={"privacy/clip": 1.0})
    assert not _divergence(record)
    assert "training loss is nan" in _divergence(replace(record, privacy={}))


def test_what_weakens_the_promise_is_said(caplog):
    def said(seed, **options):
        caplog.clear()
        terms = {"noise_multiplier": 1.0, "seed": None} | options.pop("terms", {})
        make_federation(seed=seed, privacy=private(**terms), **options)
        return [word for word in ("can be guessed", "keep states") if word in caplog.text]

    assert said(2**40) == []
    assert said(3) == ["can be guessed"]
    assert said(3, algorithm=FedDyn()) == ["can be guessed", "keep states"]
    assert said(3, algorithm=FedDyn(), terms={"secret_cohorts": False}) == []


def test_the_card_of_a_private_model_tells_epsilon_and_no_seed(tmp_path):
    config = {
        "seed": 4711, "federation": {"num_clients": 300}, "algorithm": {"recycled": 1, "seed": 4711},
        "privacy": {"_target_": "fedpara.privacy.ClientLevelPrivacy", "secret_cohorts": True, "seed": None},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (tmp_path / "metrics.csv").write_text("round,privacy/epsilon\n1,3.5\n2,7.25\n")
    card = Card(Run(tmp_path), {"data": "digits"}, {})
    assert "4711" not in json.dumps(card.config()) + str(card._training())
    assert card.config()["training"]["privacy"]["secret_cohorts"]
    assert "epsilon is 7.25 at delta 0.0019, if one client is replaced and cohorts are secret" in str(card._unknown())


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match=r"^privacy needs values of float32 or float64, and layers\.1\S+ is "):
        make_federation(
            network=lambda: MLP([16, 8, 3]).bfloat16(), training={"precision": "bf16-true"},
            privacy=ClientLevelPrivacy(noise_multiplier=1.0),
        )  # fmt: skip


def test_the_delta_of_one_client_must_be_given():
    start = ClientLevelPrivacy(noise_multiplier=1.0).start
    with pytest.raises(ValueError, match=r"^privacy\.delta=null: must be given with one client"):
        start(["w"], num_clients=1, clients_per_round=1, min_clients=1, num_rounds=1)
    ClientLevelPrivacy(noise_multiplier=1.0, delta=1e-3).start(["w"], 1, 1, 1, 1)
