"""Attackers: who they are, what they send, and that every executor and every resumed run has the same ones."""

from functools import partial

import pytest
import torch

from fedpara.aggregation import Median, MultiKrum
from fedpara.algorithms import Scaffold
from fedpara.callbacks import Checkpoint
from fedpara.execution import FaultInjection, ProcessesExecutor, SerialExecutor, VectorizedExecutor
from fedpara.execution.attacks import ATTACKS, a_little, alie_z
from fedpara.federation import simulated
from fedpara.state import combine
from helpers.cases import thinned
from helpers.federations import Watch, make_federation, require_same_bits_if_resumed, same
from helpers.shell import SMALL

STRENGTH = {"scaled_update": 3.0, "alie": 1.5}


def attacking(attack, share=0.4, strength=None, **shares):
    strength = STRENGTH.get(attack) if strength is None else strength
    return lambda executor: simulated(
        FaultInjection(executor, attackers=share, attack=attack, strength=strength, **shares)
    )


def rounds(**options):
    usual = {"num_rounds": 2, "max_epochs": 1, "clients_per_round": 4, "eval_every": 2}
    federation = make_federation(**usual | options)
    federation.fit()
    return federation


def who(federation):
    return federation.clients.executor.inner.clients


def test_attackers_are_a_share_of_all_clients_and_follow_from_the_seed():
    executor = make_federation().executor
    executor.datamodule.num_clients = 40

    def drawn(share, seed=0):
        executor.datamodule.seed = seed
        return FaultInjection(executor, attackers=share, attack="sign_flip").inner.clients

    assert len(drawn(0.2)) == 8
    assert drawn(0.2) == drawn(0.2) <= set(range(40))
    assert len({drawn(0.2, seed) for seed in range(10)}) > 5
    assert drawn(1.0) == set(range(40))


@pytest.mark.parametrize(
    ("attack", "strength", "factor"),
    [("sign_flip", None, -1), ("sign_flip", 3.0, -3), ("scaled_update", 3.0, 3)],
)
def test_a_cohort_of_attackers_moves_the_model_by_a_multiple(attack, strength, factor):
    before = make_federation().server["model"]
    options = {"num_rounds": 1, "clients_per_round": 5}
    honest = combine(rounds(**options).server["model"], -1, before)
    found = combine(rounds(clients=attacking(attack, 1.0, strength), **options).server["model"], -1, before)
    for name, moved in honest.items():
        torch.testing.assert_close(found[name], factor * moved, rtol=1e-4, atol=1e-6)


def uploads(**options):
    """The model that each client of the first round sends, and who attacks."""
    federation = make_federation(num_rounds=1, max_epochs=1, clients_per_round=5, evaluate_personal=False, **options)
    sent, receive = {}, federation._receive

    def noting(reply, broadcast, tally):
        upload = receive(reply, broadcast, tally)
        sent[reply.report.client] = upload.parts
        return upload

    federation._receive = noting
    federation.fit()
    return sent, federation


def test_the_attackers_alone_send_something_else_and_all_of_alie_the_same():
    honest, _ = uploads()
    for attack in ATTACKS:
        sent, federation = uploads(clients=attacking(attack))
        mine = who(federation)
        assert len(mine) == 2
        assert sent.keys() == honest.keys()
        for client, parts in sent.items():
            assert same(parts["model"], honest[client]["model"]) == (client not in mine), attack
        if attack == "alie":
            first, second = (sent[client]["model"] for client in sorted(mine))
            assert same(first, second)
            assert same(first, a_little([honest[client]["model"] for client in sorted(mine)], 1.5))


def test_a_little_is_the_mean_minus_z_deviations():
    states = [{"w": torch.tensor([1.0, 5.0])}, {"w": torch.tensor([3.0, 5.0])}]
    assert a_little(states, 1.5)["w"].tolist() == [2.0 - 1.5, 5.0]
    assert a_little(states[:1], 1.5)["w"].tolist() == [1.0, 5.0]  # one attacker knows no deviation


@pytest.mark.parametrize(
    ("clients", "attackers", "z"),
    [
        (50, 24, 1.4261),  # Phi^-1(24 / 26), the paper's setting of 50 workers of which 24 are corrupted
        (51, 24, 1.4461),  # 25 / 27
        (20, 4, 0.1573),  # 9 / 16
        (10, 2, 0.0),  # 4 / 8
        (10, 1, 0.0),  # below a half
        (5, 2, 0.4307),  # 2 / 3
        (5, 5, 0.4307),  # a majority counts as the largest minority
        (1, 1, 0.0),
        (2, 1, 0.0),
    ],
)
def test_z_is_the_papers(clients, attackers, z):
    """s = floor(n / 2 + 1) - m, Phi(z) < (n - m - s) / (n - m)."""
    assert alie_z(clients, attackers) == pytest.approx(z, abs=1e-4)


def test_z_comes_from_the_clients_of_the_round():
    """Of 5 clients, 2 attack: Phi^-1(2 / 3)."""

    def by_the_formula(executor):
        return simulated(FaultInjection(executor, attackers=0.4, attack="alie"))

    honest, _ = uploads()
    sent, federation = uploads(clients=attacking("alie"))  # z of 1.5
    by_formula, other = uploads(
        clients=lambda executor: simulated(FaultInjection(executor, attackers=0.4, attack="alie"))
    )
    mine = sorted(who(other))
    assert mine == sorted(who(federation))
    expected = a_little([honest[client]["model"] for client in mine], alie_z(5, 2))
    assert same(by_formula[mine[0]]["model"], expected)
    assert not same(sent[mine[0]]["model"], expected)


def test_labels_of_attackers_are_flipped_in_their_batches_alone():
    federation = make_federation(clients=attacking("label_flip"))
    data, mine = federation.executor.datamodule, who(federation)
    plain = make_federation().executor.datamodule
    for client in range(5):
        batches = zip(data.client_dataloader(client, seed=1), plain.client_dataloader(client, seed=1), strict=True)
        for (inputs, labels), (same_inputs, expected) in batches:
            assert torch.equal(inputs, same_inputs)
            assert torch.equal(labels, 2 - expected if client in mine else expected)
        assert torch.equal(data.test_part(client), plain.test_part(client))
    assert torch.equal(data.examples[0].labels, plain.examples[0].labels)
    tested = zip(data.test_dataloader(), plain.test_dataloader(), strict=True)
    assert all(torch.equal(labels, expected) for (_, labels), (_, expected) in tested)


@pytest.mark.parametrize("attack", ["sign_flip", "alie"])
def test_what_stays_with_an_attacker_is_that_of_its_honest_training(attack):
    options = {"personal": ["*.parametrizations.*.0.[xyt]2"], "evaluate_personal": False, "num_rounds": 1}
    options["clients_per_round"] = 5
    plain, found = rounds(**options), rounds(clients=attacking(attack), **options)
    assert found.personal.keys() == plain.personal.keys()
    assert all(same(found.personal[client], plain.personal[client]) for client in plain.personal)
    assert not same(found.server["model"], plain.server["model"])


def test_statistics_of_a_batch_norm_are_sent_as_they_are():
    def normed():
        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
        )

    honest, _ = uploads(network=normed)
    for attack in ("sign_flip", "alie"):
        sent, _ = uploads(network=normed, clients=attacking(attack))
        for client, parts in sent.items():
            for name in ("2.running_mean", "2.running_var", "2.num_batches_tracked"):
                assert torch.equal(parts["model"][name], honest[client]["model"][name])


def test_a_control_variate_is_made_of_the_attacked_model():
    """SCAFFOLD: (x - y) / (K eta) - c, which for -D is the opposite of the honest one while c is 0."""
    honest, _ = uploads(algorithm=Scaffold())
    sent, federation = uploads(algorithm=Scaffold(), clients=attacking("sign_flip"))
    for client in who(federation):
        for name, change in honest[client]["control"].items():
            torch.testing.assert_close(sent[client]["control"][name], -change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attack", [None, "sign_flip"])
def test_without_attackers_nothing_is_changed(attack):
    plain = rounds()
    found = rounds(clients=lambda executor: simulated(FaultInjection(executor, attackers=0.0, attack=attack)))
    assert same(found.server["model"], plain.server["model"])
    assert not plain.executor.datamodule.flipped


@pytest.mark.parametrize(
    ("made", "attack"),
    [
        pytest.param(partial(ProcessesExecutor, workers=1), "label_flip", marks=pytest.mark.slow),
        pytest.param(partial(ProcessesExecutor, workers=2), "alie", marks=pytest.mark.slow),
        (partial(VectorizedExecutor, chunk_size=2), "label_flip"),
        (partial(VectorizedExecutor, chunk_size=2), "alie"),
    ],
)
def test_every_executor_has_the_same_attackers(made, attack):
    """Processes to the bit; vectorized up to rounding."""
    options = {"aggregation": MultiKrum(attackers=0, keep=3), "clients": attacking(attack)}
    serial = rounds(executor=partial(SerialExecutor, whole_epochs=False), **options)
    found = rounds(executor=made, **options)
    found.close()
    exact = made.func is ProcessesExecutor
    for name, expected in serial.server["model"].items():
        tolerance = 0 if exact else 1e-5
        torch.testing.assert_close(found.server["model"][name], expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("attack", thinned(["alie", "sign_flip", "label_flip", "scaled_update"]))
def test_a_resumed_run_has_the_same_attackers_to_the_bit(tmp_path, attack):
    def federation(folder, num_rounds):
        folder.mkdir(exist_ok=True)
        checkpoint = Checkpoint(folder)

        def clients(executor):
            return checkpoint.clients(
                FaultInjection(executor, attackers=0.4, attack=attack, strength=STRENGTH.get(attack), dropout=0.2)
            )

        return make_federation(
            num_rounds=num_rounds, max_epochs=1, clients_per_round=3, clients=clients, callbacks=[checkpoint],
            aggregation=Median(), eval_every=4,
        )  # fmt: skip

    require_same_bits_if_resumed(federation, tmp_path)


def test_attackers_can_fail_too():
    """Those that never answer send nothing; the statistics are those of the others."""
    watch = Watch()
    federation = make_federation(
        seed=2, clients_per_round=5, num_rounds=4, max_epochs=1, callbacks=[watch],
        clients=attacking("alie", share=0.6, dropout=0.3),
    )  # fmt: skip
    federation.fit()
    assert 0 < sum(record.clients["dropped"] for record in watch.records) < 20
    assert federation.round == 4


REFUSED = {
    "attack=None: must be one of sign_flip, scaled_update, label_flip, alie with attackers=0.2": {"attackers": 0.2},
    "strength=None: must be given with attack=scaled_update": {"attackers": 0.2, "attack": "scaled_update"},
    "strength=2.0: must be None with attack=label_flip": {"attackers": 0.2, "attack": "label_flip", "strength": 2.0},
    "attackers=0.05: must be at least one of the 5 clients": {"attackers": 0.05, "attack": "alie"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_attacks_that_cannot_be_are_refused(reason):
    executor = make_federation().executor
    with pytest.raises(ValueError, match=reason):
        FaultInjection(executor, **REFUSED[reason])


def test_labels_that_are_no_classes_cannot_be_flipped():
    executor = make_federation().executor
    executor.datamodule.num_classes = None
    with pytest.raises(ValueError, match="attack=label_flip: needs labels that are classes"):
        FaultInjection(executor, attackers=0.4, attack="label_flip")


TYPED = {
    "faults.attackers=0.5": "faults.attack=None: must be one of sign_flip, scaled_update",
    "faults=scaled_update faults.strength=null": "faults.strength=None: must be given with attack=scaled_update",
    "faults=sign_flip faults.attack=flip": "faults.attack='flip': Input should be 'sign_flip'",
}


@pytest.mark.parametrize("typed", TYPED)
def test_a_wrong_line_names_its_key(shell, typed):
    status, error, _ = shell(*SMALL, *typed.split())
    assert (status, error.count("\n")) == (2, 1), error
    assert error.startswith(f"error: {TYPED[typed]}"), error
