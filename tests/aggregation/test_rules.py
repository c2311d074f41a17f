"""Robust rules: closed forms, what a few wrong uploads cannot do, and every algorithm, link and split with them."""

import logging
from functools import partial
from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedpara.aggregation import GeometricMedian, Median, MultiKrum, NormBounding, TrimmedMean, rule
from fedpara.algorithms import FedDyn, Scaffold, Upload
from fedpara.callbacks import Checkpoint
from fedpara.execution import FaultInjection
from fedpara.federation import simulated
from fedpara.nn import PFedPara
from fedpara.privacy import ClientLevelPrivacy
from fedpara.sharing import Rotating
from fedpara.state import combine, is_finite, join, num_elements
from helpers import ROOT
from helpers.cases import thinned
from helpers.configured import ALGORITHMS, linked, of_yaml
from helpers.federations import Watch, make_federation, require_same_bits_if_resumed, same
from helpers.shell import SMALL

LINKS = sorted((path.stem for path in (ROOT / "configs" / "link").glob("*.yaml")), reverse=True)
SIZES = {"a": (3, 2), "b": (4,), "c": ()}
KEEPING = {
    "median": Median(), "trimmed": TrimmedMean(attackers=2), "krum": MultiKrum(attackers=2),
    "one krum": MultiKrum(attackers=2, keep=1), "geometric": GeometricMedian(),
}  # fmt: skip
NOTHING_CUT = {"trimmed": TrimmedMean(attackers=0), "krum": MultiKrum(attackers=0), "bound": NormBounding(bound=1e9)}


def one(given_rule, states, known=None, counts=None):
    """What a rule makes of the models of a round; every upload it gives is the same and weighs alike."""
    uploads = [Upload({"model": state}, n) for state, n in zip(states, counts or [7] * len(states), strict=True)]
    given = list(given_rule.bound_to(SIZES).replaced(uploads, {"model": known or {}}))
    assert len(given) == len(states)
    assert {upload.num_examples for upload in given} == {1}
    assert all(same(upload.parts["model"], given[0].parts["model"]) for upload in given)
    return given[0].parts["model"]


def numbers(*values):
    return [{"a": torch.tensor(value)} for value in values]


def drawn(seed, number, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [{n: scale * torch.randn(shape, generator=generator) for n, shape in SIZES.items()} for _ in range(number)]


def flat(state):
    return torch.cat([state[name].reshape(-1).double() for name in SIZES])


@pytest.mark.parametrize(
    ("given_rule", "values", "expected"),
    [
        (Median(), (5.0, 1.0, 9.0), 5.0),
        (Median(), (5.0, 1.0, 9.0, 6.0), 5.5),
        (Median(), (3e38, 3e38), 3e38),
        (TrimmedMean(1), (5.0, 1.0, 9.0, 6.0), 5.5),
        (TrimmedMean(2), (5.0, 1.0, 9.0, 6.0, -1e30), 5.0),
        (MultiKrum(1, keep=1), (0.0, 1.0, 1.5, 2.5, 100.0), 1.0),  # 1.0 has 0.5 and 1.0 near it, 1.5 too; the first
        (MultiKrum(1), (0.0, 1.0, 1.5, 2.5, 100.0), 1.25),
        (MultiKrum(0), (1.0, 2.0, 6.0), 3.0),
        (GeometricMedian(), (0.0, 1.0, 2.0, 50.0, 1000.0), 2.0),  # on a line it is the median
        (GeometricMedian(), (4.0,), 4.0),
    ],
)
def test_closed_forms(given_rule, values, expected):
    torch.testing.assert_close(one(given_rule, numbers(*values))["a"], torch.tensor(expected), rtol=0, atol=2e-5)


def test_the_geometric_median_of_triangles_is_fermats_point():
    def of(*corners):
        return one(GeometricMedian(), [{"b": torch.tensor(corner)} for corner in corners])["b"]

    even = of([0.0, 0.0], [1.0, 0.0], [0.5, sqrt(3) / 2])
    torch.testing.assert_close(even, torch.tensor([0.5, sqrt(3) / 6]), atol=1e-4, rtol=0)
    right = of([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])  # it sees the sides of a right isosceles triangle under 120 degrees
    torch.testing.assert_close(right, torch.full((2,), (3 - sqrt(3)) / 6), atol=1e-4, rtol=0)
    wide = of([0.0, 0.0], [1.0, 0.05], [-1.0, 0.05])  # an angle above 120 degrees: its corner
    torch.testing.assert_close(wide, torch.zeros(2), atol=1e-3, rtol=0)


@pytest.mark.parametrize("far", [0.0, 1e6, 1e12, 3e38])
def test_far_uploads_do_not_end_the_geometric_median_early(far):
    """The directions from it to the uploads cancel out."""
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:3] += far
    found = one(GeometricMedian(), [{"b": value} for value in values])["b"]
    assert torch.nn.functional.normalize(values - found, dim=1).mean(0).norm() < 3e-6


@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-3, 1e9])
def test_the_geometric_median_is_the_same_at_every_scale(scale):
    values = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:3] += 100
    expected, found = (one(GeometricMedian(), [{"b": s * value} for value in values])["b"] for s in (1.0, scale))
    torch.testing.assert_close(found / scale, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("others", [[], [5.0, 1e30, -7.0]])
def test_most_uploads_are_alike(others):
    """A mean of 0.1 would have other bits."""
    states = numbers(*[0.1] * 4, *others)
    assert float(one(GeometricMedian(), states)["a"]) == float(states[0]["a"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_geometric_median_keeps_the_type(dtype):
    states = [{"b": torch.tensor([value, 1.0], dtype=dtype)} for value in (1.0, 2.0, 3.0, 4.0, 1000.0)]
    found = one(GeometricMedian(), states)["b"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), torch.tensor([3.0, 1.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_krum_scores_as_written_in_the_paper(seed):
    states, f = drawn(seed, 9), 2
    points = [flat(state).numpy() for state in states]
    scores = []
    for i, point in enumerate(points):
        squares = sorted(float(np.square(point - other).sum()) for j, other in enumerate(points) if j != i)
        scores.append(sum(squares[: 9 - f - 2]))
    for keep in (1, 4, 7):
        assert MultiKrum(f, keep=keep).chosen(states) == sorted(np.argsort(scores)[:keep].tolist())


@pytest.mark.parametrize("name", KEEPING)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), order=st.permutations(range(8)), counts=st.permutations(range(1, 9)))
def test_neither_the_order_nor_the_counts_of_examples_matter(name, seed, order, counts):
    states = drawn(seed, 8)
    expected = one(KEEPING[name], states)
    found = one(KEEPING[name], [states[index] for index in order], counts=list(counts))
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KEEPING)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), number=st.integers(7, 11), far=st.sampled_from([1e3, 1e12, 3e38]),
    signs=st.lists(st.sampled_from([-1, 1]), min_size=2, max_size=2), attackers=st.integers(0, 2),
)  # fmt: skip
def test_up_to_f_uploads_however_far_do_not_lead_out_of_the_honest_ones(name, seed, number, far, signs, attackers):
    """Value by value; for the geometric median in distance (Lopuhaa and Rousseeuw 1991, Theorem 2.2)."""
    honest = drawn(seed, number - attackers)
    wrong = [{n: torch.full(shape, sign * far) for n, shape in SIZES.items()} for sign in signs[:attackers]]
    found = flat(one(KEEPING[name], [*wrong, *honest]))
    points = torch.stack([flat(state) for state in honest])
    assert found.isfinite().all()
    if name != "geometric":
        assert (found >= points.amin(0) - 1e-6).all()
        assert (found <= points.amax(0) + 1e-6).all()
    else:
        share, center = attackers / number, points.mean(0)
        most = 2 * (1 - share) / (1 - 2 * share) * (points - center).norm(dim=1).max()
        assert (found - center).norm() <= most


@pytest.mark.parametrize("name", KEEPING)
def test_f_plus_more_uploads_do(name):
    """The bound is no better than it says: with a majority of attackers every rule follows them."""
    honest, wrong = drawn(0, 3, 0.1), [{n: torch.full(s, 100.0) for n, s in SIZES.items()}] * 5
    assert (flat(one(KEEPING[name], [*wrong, *honest])) > 50).all()


@pytest.mark.parametrize("name", KEEPING)
def test_blocks_do_not_matter(name, monkeypatch):
    states = drawn(1, 8)
    expected = one(KEEPING[name], states)
    monkeypatch.setattr(rule, "BLOCK", 20)
    torch.testing.assert_close(flat(one(KEEPING[name], states)), flat(expected), rtol=1e-6, atol=1e-7)


def test_statistics_and_counters_take_the_median():
    """An attacker's own are not believed, though its trained values are those of an honest client."""
    states = [
        {"b": torch.ones(4), "mean": torch.tensor([float(i)]), "count": torch.tensor(i)}
        for i in (10, 11, 12, 13, 2**40)
    ]
    for given_rule in KEEPING.values():
        given_rule = type(given_rule)(1) if hasattr(given_rule, "attackers") else given_rule
        found = one(given_rule, states)
        assert (float(found["mean"]), int(found["count"]), found["count"].dtype) == (12, 12, torch.int64)
    assert int(one(Median(), states[:4])["count"]) == 11


def test_a_norm_is_bounded_and_short_updates_stay_the_same_tensors():
    known = drawn(0, 1)[0]
    states = [combine(known, scale, drawn(seed, 1)[0]) for seed, scale in ((1, 1e-3), (2, 1e3), (3, 1e37))]
    asked = []

    def arriving():
        for number, state in enumerate(states):
            asked.append(number)
            yield Upload({"model": state}, 10**number)

    given = NormBounding(bound=0.5).bound_to(SIZES).replaced(arriving(), {"model": known})
    first = next(given)
    assert asked == [0]  # one at a time
    assert all(first.parts["model"][name] is states[0][name] for name in SIZES)
    for upload, state in zip(given, states[1:], strict=True):
        assert upload.num_examples == 1
        moved, wanted = (flat(combine(one_of, -1, known)) for one_of in (upload.parts["model"], state))
        assert moved.norm() <= 0.5 * (1 + 1e-12)
        assert float(torch.cosine_similarity(moved, wanted, dim=0)) > 0.999


def rounds(**options):
    federation = make_federation(
        **{"num_rounds": 2, "max_epochs": 1, "clients_per_round": 4, "eval_every": 2} | options
    )
    federation.fit()
    return federation


@pytest.mark.parametrize("algorithm", thinned(ALGORITHMS))
def test_a_rule_that_cuts_nothing_is_the_algorithm_bit_for_bit(algorithm):
    """Clients have as many examples each."""
    made = partial(rounds, down="bfloat16")
    expected = made(algorithm=of_yaml(algorithm)())
    for name, given_rule in NOTHING_CUT.items():
        if (name, algorithm) != ("bound", "scaffold"):
            found = made(algorithm=of_yaml(algorithm)(), aggregation=given_rule)
            assert same(join(found.server), join(expected.server)), name
            assert all(same(found.memories[client], memory) for client, memory in expected.memories.items())


@pytest.mark.parametrize(("algorithm", "name"), thinned(product(ALGORITHMS, ["median", "krum", "geometric"]), 4))
def test_every_algorithm_takes_every_rule(algorithm, name):
    given_rule = MultiKrum(attackers=0, keep=2) if name == "krum" else KEEPING[name]
    found = rounds(algorithm=of_yaml(algorithm)(), aggregation=given_rule)
    assert is_finite(*found.server.values())
    assert found.round == 2


@pytest.mark.parametrize("link", thinned(LINKS))
def test_every_link_with_what_is_personal(link):
    given_rule = MultiKrum(attackers=0) if link == "topk" else Median()
    options = {"link": linked(link), "personal": ["*.parametrizations.*.0.[xyt]2"], "evaluate_personal": False}
    plain, found = rounds(**options), rounds(aggregation=given_rule, **options)
    assert found.total_bytes == plain.total_bytes
    assert found.personal.keys() == plain.personal.keys()
    assert is_finite(found.server["model"])


@pytest.mark.parametrize("given_rule", thinned([Median(), NormBounding(0.1), MultiKrum(attackers=0, keep=1)], 3))
def test_rotating_factors_and_clients_that_catch_up(given_rule):
    options = {"split": Rotating, "recipe": PFedPara(gamma=1.0), "num_rounds": 4, "eval_every": 4}
    found = rounds(aggregation=given_rule, catch_up=True, **options)
    whole = rounds(aggregation=given_rule, **options)
    assert same(found.server["model"], whole.server["model"])
    assert not same(found.server["model"], rounds(**options).server["model"])


def test_a_scaffold_client_is_counted_though_its_upload_is_replaced():
    """The change of c is |S| / N of the rule's, for |S| clients that came."""
    seen = []

    class Looking(Scaffold):
        def aggregate(self, server, received, uploads):
            taken = list(uploads)
            after = super().aggregate(server, received, taken)
            seen.append((taken, server["control"], after["control"]))
            return after

    rounds(algorithm=Looking(), aggregation=Median(), num_rounds=1)
    ((taken, before, after),) = seen
    assert len(taken) == 4
    expected = combine(before, 4 / 5, taken[0].parts["control"])
    assert all(torch.allclose(after[name], expected[name]) for name in after)


def normed():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def test_batch_norms_train_with_the_rules_that_keep_uploads():
    found = rounds(network=normed, aggregation=MultiKrum(attackers=0, keep=2), clients_per_round=3)
    assert found.server["model"]["2.num_batches_tracked"].dtype == torch.int64
    assert (found.server["model"]["2.running_var"] > 0).all()


def lossy(**shares):
    return lambda executor: simulated(FaultInjection(executor, **shares))


def test_a_round_with_too_few_uploads_for_the_rule_changes_nothing(caplog):
    watch = Watch()
    federation = make_federation(
        seed=3, clients_per_round=4, num_rounds=8, max_epochs=1, aggregation=MultiKrum(attackers=0), callbacks=[watch],
        clients=lossy(dropout=0.4), algorithm=Scaffold(),
    )  # fmt: skip
    few = 0
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            before, memories = join(federation.server), dict(federation.memories)
            record = federation.run_round()
            counts = record.clients["succeeded"] >= 3
            few += not counts
            assert same(join(federation.server), before) != counts
            if not counts:
                assert federation.memories == memories
    assert 0 < few < 8
    assert sum("nothing changes, MultiKrum of attackers=0 takes 3 uploads" in line for line in caplog.messages) == few


@pytest.mark.parametrize("given_rule", thinned([*KEEPING.values(), NormBounding(1.0)], 3))
def test_a_client_of_nan_is_left_out_before_the_rule(given_rule):
    if hasattr(given_rule, "attackers"):
        given_rule = type(given_rule)(0)
    watch = Watch()
    federation = make_federation(
        seed=1, clients_per_round=5, max_epochs=1, aggregation=given_rule, clients=lossy(nan=0.3), callbacks=[watch]
    )
    federation.fit()
    assert 0 < sum(record.clients["diverged"] for record in watch.records) < 10
    assert is_finite(federation.server["model"])


@pytest.mark.parametrize("given_rule", thinned([GeometricMedian(), TrimmedMean(1), NormBounding(0.3)], 3))
def test_a_resumed_run_has_the_bits_of_a_whole_one(tmp_path, given_rule):
    def federation(folder, num_rounds):
        folder.mkdir(exist_ok=True)
        return make_federation(
            aggregation=given_rule, num_rounds=num_rounds, max_epochs=1, clients_per_round=3, lr_decay=0.9,
            algorithm=FedDyn(), callbacks=[Checkpoint(folder)],
        )  # fmt: skip

    require_same_bits_if_resumed(federation, tmp_path)


def test_the_memory_is_that_of_the_kept_uploads():
    size = num_elements(make_federation().server["model"]) * 4
    make_federation(clients_per_round=5, aggregation=Median(memory_gb=5 * size / 1e9))
    with pytest.raises(ValueError, match=r"aggregation.memory_gb=.*: must be at least .*, Median keeps the 5 uploads"):
        make_federation(clients_per_round=5, aggregation=Median(memory_gb=4.99 * size / 1e9))


REFUSED = {
    "clients_per_round=4: must be at least 5 for TrimmedMean of attackers=2": {"aggregation": TrimmedMean(2)},
    "clients_per_round=4: must be at least 5 for MultiKrum of attackers=1": {"aggregation": MultiKrum(1)},
    "aggregation.keep=5: must be at most 4": {"aggregation": MultiKrum(0, keep=5)},
    "Median and link=topk: most clients do not send": {"aggregation": Median(), "link": "topk"},
    "also uploads its control": {"aggregation": NormBounding(1.0), "algorithm": Scaffold()},
    "cannot bound 2.num_batches_tracked, which is not trained": {"aggregation": NormBounding(1.0), "network": normed},
    "privacy and aggregation=Median: epsilon is counted": {
        "aggregation": Median(), "privacy": ClientLevelPrivacy(noise_multiplier=0.0),
    },
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_would_be_wrong_is_refused(reason):
    options = dict(REFUSED[reason])
    link = linked(options.pop("link")) if "link" in options else None
    with pytest.raises(ValueError, match=reason):
        make_federation(link=link, clients_per_round=4, **options)


TYPED = {
    "aggregation=multi_krum": "federation.clients_per_round=2: must be at least 5 for MultiKrum",
    "aggregation=median privacy=gaussian privacy.noise_multiplier=1": "federation: privacy and aggregation=Median",
    "aggregation=norm_bounding aggregation.bound=0": "aggregation.bound=0: Input should be greater than 0",
    "aggregation=norm_bounding aggregation.bound=inf": "aggregation.bound=inf: Input should be a finite number",
    "aggregation=trimmed_mean aggregation.attackers=-1": "aggregation.attackers=-1: Input should be greater than or",
}


@pytest.mark.parametrize("typed", TYPED)
def test_a_wrong_line_names_its_key(shell, typed):
    status, error, _ = shell(*SMALL, *typed.split())
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith(f"error: {TYPED[typed]}"), error
