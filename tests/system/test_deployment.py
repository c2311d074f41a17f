"""deploy/: server and clients that share nothing but parcels are the simulated federation, bit for bit."""

import importlib
import json
import logging
import math
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fedpara.app import audit, cli, evaluation
from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError
from fedpara.app.run import run
from fedpara.communication import Packet
from fedpara.deployment import Node, Parcel, read_data, server, write_data
from fedpara.deployment.clients import DeployedClients, Participants
from fedpara.deployment.folders import owner
from fedpara.deployment.kept import KeptStates
from fedpara.deployment.split import split
from fedpara.execution import ClientFailure
from fedpara.federation import Broadcast, Report
from fedpara.files import UnusableFile
from fedpara.storage import read_tensors, write_tensors
from helpers import ROOT
from helpers.cases import thinned
from helpers.federations import same, tiny_images
from helpers.runs import rows_without_times
from helpers.shell import TINY

OPTIONS = [*TINY[:3], "model=mlp", "model.network.widths=[784,16,10]", "federation.num_clients=3", "logger=none"]
OPTIONS += ["federation.clients_per_round=2", "federation.num_rounds=3", "callbacks.partition_picture=null"]
CHOICES = ["method=fedavg", "method=pfedpara link.down_codec.dtype=bfloat16"]
CHOICES += ["algorithm=scaffold link=fedpaq partition=dirichlet aggregation=median"]
CHOICES += ["privacy=distributed privacy.noise_multiplier=1 privacy.seed=0 federation.min_clients=2"]
VALUES = {"client", "last", "run", "round", "attempt", "test"}
ANSWERS = {"num_examples", "num_steps", "finite", "learning_rate_sum", "train_loss", "seconds", "score"}


class InProcess:
    """Nodes of which the server has only what a network would give it: bytes, and what JSON can say."""

    def __init__(self, overrides, folder):
        self.overrides, self.folder = overrides, folder
        self.parcels, self.rounds, self.before = [], 0, lambda nodes, what: None
        self.nodes = {client: self.start(client) for client in range(3)}

    def start(self, client):
        return Node(self.overrides, self.folder / f"client-{client}")

    def ask(self, questions, what):
        self.before(self, what)
        answers = [(client, self.one(client, question, what)) for client, question in questions.items()]
        yield from reversed(answers)  # whoever is ready first

    def one(self, client, question, what):
        try:
            answer = getattr(self.nodes[client], what)(self.sent(question))
        except Exception as error:
            return ClientFailure(client, "crashed", RuntimeError(str(error)), outside=True)
        return self.sent(answer)

    def sent(self, parcel):
        assert isinstance(parcel.payload, bytes)
        self.parcels.append(parcel)
        return Parcel(bytes(parcel.payload), json.loads(json.dumps(dict(parcel.values))))


def checkpoint(folder):
    return load_file(folder / "checkpoint.safetensors")


@cache
def composed(overrides):
    return compose(list(overrides))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One composition for all ends of an experiment, and no log that stays open."""
    for program in ("fedpara.deployment.node.compose", "fedpara.deployment.split.compose"):
        monkeypatch.setattr(program, lambda overrides: composed(tuple(overrides)))
    yield
    for handler in logging.getLogger().handlers[:]:
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()


def cut(tmp_path, choices):
    overrides = [*OPTIONS, *choices.split()]
    split(overrides, tmp_path / "data")
    return overrides, InProcess(overrides, tmp_path / "data")


def deploy(tmp_path, overrides, nodes, folder="deployed"):
    server.run(overrides, tmp_path / "data" / "server", tmp_path / folder, nodes)
    return tmp_path / folder


def simulate(tmp_path, overrides):
    folder = tmp_path / "simulated"
    run(compose([*overrides, f"paths.output_dir={folder}"], folder))
    return folder


@pytest.mark.parametrize("choices", thinned(CHOICES))
def test_deployed_is_simulated_bit_for_bit(tmp_path, choices):
    if "privacy" in choices:
        pytest.importorskip("dp_accounting")
    overrides, nodes = cut(tmp_path, choices)
    deployed, simulated = deploy(tmp_path, overrides, nodes), simulate(tmp_path, overrides)
    assert same(checkpoint(deployed), checkpoint(simulated))
    assert rows_without_times(deployed) == rows_without_times(simulated)
    assert (deployed / "config.yaml").read_text() == (simulated / "config.yaml").read_text().replace(
        str(simulated), str(deployed)
    )
    kept = {path.name: load_file(path) for path in simulated.glob("clients/*/*.safetensors")}
    own = {client: newest(tmp_path, client) for client in range(3)}
    assert len(kept) == sum(len({name.partition("/")[0] for name in state}) for state in own.values())
    for name, state in kept.items():
        part = own[int(name.partition("-")[0])]
        assert same(state, {key.partition("/")[2]: tensor for key, tensor in part.items()})
    assert set().union(*(parcel.values for parcel in nodes.parcels)) <= VALUES | ANSWERS
    sent = b"|".join(parcel.payload for parcel in nodes.parcels)
    assert not any(tensor.numpy().tobytes() in sent for state in own.values() for tensor in state.values())
    counted = int(rows_without_times(deployed)[-1]["comm/total_bytes"])
    tested = sum(json.loads(line)["test_bytes"] for line in (deployed / "participants.jsonl").read_text().splitlines())
    assert len(sent) - len(nodes.parcels) + 1 == counted + tested


@pytest.mark.parametrize("choices", ["sharing=rotating factorization.gamma=0.5", "factorization=mud"])
@pytest.mark.slow
def test_deployed_clients_are_sent_what_they_lack(tmp_path, choices):
    """They start from the model that they kept and a packet; the simulation starts them from the whole broadcast."""
    choices += " federation.catch_up=true model.optimizer.lr=0.05"
    overrides, nodes = cut(tmp_path, f"{choices} federation.num_rounds=4")
    deployed, simulated = deploy(tmp_path, overrides, nodes), simulate(tmp_path, overrides)
    assert same(checkpoint(deployed), checkpoint(simulated))
    assert rows_without_times(deployed) == rows_without_times(simulated)
    sent = sum(len(parcel.payload) for parcel in nodes.parcels)
    assert sent == int(rows_without_times(deployed)[-1]["comm/total_bytes"])
    assert len({len(parcel.payload) for parcel in nodes.parcels if "last" in parcel.values}) > 1


@pytest.mark.slow
def test_the_server_of_real_clients_logs_what_a_simulation_does(tmp_path):
    """Rounds have the same hashes; states that clients keep are with them, and nobody can train for them again."""
    overrides, nodes = cut(tmp_path, "method=pfedpara callbacks=audited federation.num_rounds=2")
    deployed, simulated = deploy(tmp_path, overrides, nodes), simulate(tmp_path, overrides)
    first, second = (audit.verified(folder) for folder in (deployed, simulated))
    assert [line["kind"] for line in first] == [line["kind"] for line in second] == ["start", "round", "round"]
    for one, other in zip(first[1:], second[1:], strict=True):
        for name in ("cohort", "broadcast", "uploads", "outcomes", "server"):
            assert one[name] == other[name], name
        assert (len(one["states"]), len(other["states"])) == (0, 2)
    for name in ("participants.jsonl", "metrics.csv"):
        content = (deployed / name).read_bytes()
        (deployed / name).write_bytes(content.replace(b"1", b"2", 1))
        with pytest.raises(audit.Mismatch, match=name):
            audit.verified(deployed)
        (deployed / name).write_bytes(content)


def newest(tmp_path, client):
    paths = list((tmp_path / "data" / f"client-{client}" / "kept" / "deployed").glob("*.safetensors"))
    return load_file(max(paths, key=lambda path: int(path.stem))) if paths else {}


@pytest.mark.slow
def test_a_server_that_dies_after_the_training_counts_no_round_twice(tmp_path):
    """Its clients have trained the round and kept it; asked again they go on from what they kept before."""
    overrides, nodes = cut(tmp_path, "method=pfedpara")

    def die(nodes, what):
        nodes.rounds += what == "test"
        if nodes.rounds == 2:
            raise KeyboardInterrupt

    nodes.before = die
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path, overrides, nodes)
    with (tmp_path / "deployed" / "participants.jsonl").open("a") as stream:
        stream.write('{"round": 2, "cli')
    nodes = InProcess(overrides, tmp_path / "data")  # their processes are new too
    whole = deploy(tmp_path, overrides, nodes)
    assert same(checkpoint(whole), checkpoint(simulate(tmp_path, overrides)))
    rows = [json.loads(line) for line in (whole / "participants.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert all(len(row["clients"]) == 2 for row in rows)


@pytest.mark.slow
def test_a_client_that_lost_what_it_kept_says_so_and_is_left_out(tmp_path):
    overrides, nodes = cut(tmp_path, "method=pfedpara federation.clients_per_round=3")

    def lose(nodes, what):
        if what == "train" and nodes.parcels:
            shutil.rmtree(nodes.folder / "client-1" / "kept", ignore_errors=True)

    nodes.before = lose
    folder = deploy(tmp_path, overrides, nodes)
    line = "round 2: 2 of 3 clients succeeded | crashed (RuntimeError: the state of this client after round 1 is lost"
    assert line in (folder / "train.log").read_text()
    assert [row["clients/crashed"] for row in rows_without_times(folder)] == ["0", "1", "1"]


ANOTHER_VERSION = [{"num_examples": math.inf}, {"surprise": 1}, {"train_loss": "low"}, None, {"num_examples": 0}]


@pytest.mark.parametrize("change", thinned(ANOTHER_VERSION, 5))
def test_an_answer_of_another_version_is_its_clients_failure(tmp_path, change):
    overrides, nodes = cut(tmp_path, "federation.num_rounds=1 federation.clients_per_round=3")
    right = nodes.nodes[1].train
    nodes.nodes[1].train = lambda question: other_version(right(question), change)
    folder = deploy(tmp_path, overrides, nodes)
    (row,) = rows_without_times(folder)
    assert (row["clients/succeeded"], row["clients/crashed"]) == ("2", "1")


def other_version(answer, change):
    if change is None:
        return replace(answer, payload=answer.payload[4:])
    return replace(answer, values={**answer.values, **change})


@pytest.mark.parametrize("score", thinned(["abc", 99.0, math.nan], 3))
def test_a_wrong_score_leaves_its_client_out_of_the_means(tmp_path, score):
    """The client's training counts; its test does not, and a line in the log says so."""
    overrides, nodes = cut(tmp_path, "method=pfedpara federation.num_rounds=1 federation.clients_per_round=3")
    right = nodes.nodes[1].test
    nodes.nodes[1].test = lambda question: replace(right(question), values={"score": score})
    folder = deploy(tmp_path, overrides, nodes)
    (row,) = rows_without_times(folder)
    assert (row["clients/succeeded"], 0 <= float(row["personal/acc_mean"]) <= 1) == ("3", True)
    assert f"round 1: not tested | crashed (ValueError: score={score!r}: " in (folder / "train.log").read_text()


RIGHT = {"num_examples": 3, "num_steps": 1, "learning_rate_sum": 0.1, "train_loss": 0.5, "seconds": 1.0, "finite": True}
WRONG = {
    "num_examples": [math.nan, math.inf, 10**400, 2**31, 2.5, 3.0, True, "9", None, 0, -1],
    "num_steps": [-5, 2.0, True, "=1+1", math.nan, 10**400],
    "learning_rate_sum": [math.nan, math.inf, "0.1", True, None],
    "train_loss": ["low", [1.0], True, None, 10**400],
    "seconds": ["1", -1e9, math.nan, math.inf, 1e300, True, None],
    "finite": ["no", 1, 0.0, None],
    "score": ["abc", [0.5], math.nan, -math.inf, 99, -0.1, True],
    "client": [3],
    "surprise": [1],
}
WRONG_VALUES = [{name: value} for name, values in WRONG.items() for value in values]


class Given:
    """Nodes of which client 1 answers with the given values, and the others rightly."""

    def __init__(self, right, given):
        self.right, self.given = right, given

    def ask(self, questions, what):
        for client in questions:
            yield client, Parcel(bytes([client]), self.given if client == 1 else self.right)


def asked(tmp_path, right, given):
    clients = DeployedClients(Given(right, given), tmp_path, Participants(tmp_path))
    clients.share = True
    return clients, Broadcast(0, Packet(torch.zeros(4, dtype=torch.uint8)), {}, {})


def trained(tmp_path, right, given, test=True):
    clients, broadcast = asked(tmp_path, right, given)
    *replies, last = clients.train(range(3), broadcast, 0, test)
    assert [reply.report.client for reply in replies] == [0, 2]
    assert (last.client, last.kind, last.recurs) == (1, "crashed", False)
    return str(last.error)


@pytest.mark.parametrize("change", WRONG_VALUES, ids=lambda change: "{}={:.20}".format(*map(str, *change.items())))
def test_a_wrong_value_in_an_answer_to_train_is_its_clients_failure(tmp_path, change):
    (name,) = change
    line = trained(tmp_path, RIGHT, RIGHT | change)
    assert line.startswith(f"{name}=")
    assert "\n" not in line
    assert len(line) < 150


@pytest.mark.parametrize("name", RIGHT)
def test_a_missing_value_in_an_answer_to_train_is_its_clients_failure(tmp_path, name):
    given = {key: value for key, value in RIGHT.items() if key != name}
    assert trained(tmp_path, RIGHT, given) == f"{name}: must be given"


def test_a_score_for_which_nobody_asked_is_its_clients_failure(tmp_path):
    """With privacy, which asks for none, it would be recorded."""
    line = trained(tmp_path, RIGHT, RIGHT | {"score": 0.5}, test=False)
    assert line == "score: must be absent, no test was asked for"


@pytest.mark.parametrize("change", [{}, {"train_loss": math.nan, "finite": False}, {"score": 1.0}, {"score": None}])
@pytest.mark.parametrize("change_again", [{}, {"num_steps": 0, "learning_rate_sum": 0.0}, {"train_loss": math.inf}])
def test_right_values_are_the_report(tmp_path, change, change_again):
    """A training that diverged, or whose steps all overflowed, is the federation's to judge."""
    values = RIGHT | change | change_again
    clients, broadcast = asked(tmp_path, RIGHT, values)
    reports = {reply.report.client: reply.report for reply in clients.train(range(3), broadcast, 0, True)}
    assert repr(reports[1]) == repr(Report(client=1, **values))


WRONG_TESTS = [{"score": score} for score in [*WRONG["score"], None]] + [{}, {"score": 0.5, "surprise": 1}]


@pytest.mark.parametrize("given", WRONG_TESTS, ids=str)
def test_a_wrong_answer_to_test_leaves_its_client_out(tmp_path, caplog, given):
    clients, broadcast = asked(tmp_path, {"score": 0.25}, given)
    assert clients.evaluate(range(3), broadcast) == {0: 0.25, 2: 0.25}
    (line,) = caplog.messages
    assert line.startswith("round 0: not tested | crashed (ValueError: s")
    assert line.endswith("): 1")


def test_a_score_that_is_no_share_may_be_any_finite_number(tmp_path):
    clients, broadcast = asked(tmp_path, {"score": -0.25}, {"score": 99})
    clients.share = False
    assert clients.evaluate(range(3), broadcast) == {0: -0.25, 1: 99.0, 2: -0.25}


def test_a_client_leaves_out_a_score_that_the_server_would_refuse(tmp_path, monkeypatch):
    """The training counts, though the test of its model overflowed."""
    overrides, nodes = cut(tmp_path, "method=pfedpara federation.num_rounds=1 federation.clients_per_round=3")
    monkeypatch.setattr("fedpara.deployment.node.score", lambda executor, state, client: math.inf)
    (row,) = rows_without_times(deploy(tmp_path, overrides, nodes))
    assert (row["clients/succeeded"], row.get("personal/trained_acc_mean", "")) == ("3", "")


@pytest.mark.slow
def test_what_clients_kept_is_neither_tested_nor_simulated_without_them(tmp_path, monkeypatch, capsys):
    overrides, nodes = cut(tmp_path, "method=pfedpara federation.num_rounds=1")
    folder = deploy(tmp_path, overrides, nodes)
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={folder}", "federation.num_rounds=2"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "its clients are real devices; resume it with `flwr run deploy`" in capsys.readouterr().err
    _, federation = evaluation.load(folder, [])
    metrics = evaluation.evaluate(federation)
    assert metrics == {name: float(rows_without_times(folder)[0][name]) for name in ("round", "test/acc", "test/loss")}
    monkeypatch.setattr(sys, "argv", ["eval.py", f"run={folder}", "client=1"])
    with pytest.raises(SystemExit):
        evaluation.main()
    assert "client=1: must be absent, the clients of this run kept" in capsys.readouterr().err


def test_a_reply_that_came_too_late_is_as_if_it_had_never_been(tmp_path):
    """Its client trained, and kept it; what counts is what the server counted."""
    overrides, nodes = cut(tmp_path, "method=pfedpara federation.clients_per_round=3 federation.num_rounds=2")
    node = nodes.nodes[2]
    (question,) = [Parcel(p.payload, p.values) for p in first_questions(tmp_path, overrides, nodes) if asks(p, 2)]
    before = node.train(question)
    again = node.train(Parcel(question.payload, {**question.values, "attempt": 1}))
    assert before.payload == again.payload


def first_questions(tmp_path, overrides, nodes):
    def stop(nodes, what):
        if what == "test":
            raise KeyboardInterrupt

    nodes.before = stop
    with pytest.raises(KeyboardInterrupt):
        deploy(tmp_path, overrides, nodes)
    return nodes.parcels


def asks(parcel, client):
    return parcel.values.get("client") == client


MEGABYTE = 2**20


class Large:
    """Nodes with answers of a megabyte each, in an order that is not the round's; client 2 gives none.

    Those of clients 0, 4, 8, ... are wrong.
    """

    def ask(self, questions, what):
        for client in sorted(questions, key=lambda client: client % 7):
            if client == 2:
                yield client, ClientFailure(client, "late")
                continue
            values = RIGHT | {"num_examples": 1 + client % 5}
            yield client, Parcel(bytes([client]) * MEGABYTE, values if client % 4 else values | {"seconds": "1"})


def test_a_rounds_uploads_wait_on_the_disk_and_not_in_memory(tmp_path):
    """In the order of a simulated round: most examples first, then by number."""
    clients = DeployedClients(Large(), tmp_path, Participants(tmp_path))
    broadcast = Broadcast(0, Packet(torch.zeros(4, dtype=torch.uint8)), {}, {})
    tracemalloc.start()
    received, failures = [], []
    for one in clients.train(range(40), broadcast, 0, False):
        if isinstance(one, ClientFailure):
            failures.append(one.client)
        else:
            assert one.packet.payload.equal(torch.full([MEGABYTE], one.report.client, dtype=torch.uint8))
            received.append(one.report.client)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    failed = [client for client in range(40) if client == 2 or client % 4 == 0]
    assert received == sorted({*range(40)} - {*failed}, key=lambda client: (-(1 + client % 5), client))
    assert sorted(failures) == failed
    assert peak < 8 * MEGABYTE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not find_spec("flwr"), reason="needs pip install -e '.[flower]' in an environment of its own")
def test_flowers_answers_are_pulled_a_few_at_a_time(monkeypatch):
    """Of 10 clients all answer at once; three answers fit in memory."""
    server_app = importlib.import_module("server_app")
    monkeypatch.setattr(server_app, "PULLED_BYTES", 3 * 1001)
    monkeypatch.setattr(server_app, "Message", lambda content, *_, ttl: SimpleNamespace(content=content))
    questions = {client: Parcel(b"q" * 1000, {"client": client}) for client in range(10)}
    pulled, pushed = [], {}

    def push(sent):
        pushed.update({f"m{len(pushed)}": message for message in sent})
        return list(pushed)[-1:]

    def pull(ids):
        pulled.append(list(ids))
        return [answer_to(name, pushed[name]) for name in ids]

    nodes = [SimpleNamespace(name=f"client-{client}", node_id=client + 1) for client in range(10)]
    grid = SimpleNamespace(get_nodes=lambda: nodes, push_messages=push, pull_messages=pull)
    answers = dict(server_app.FlowerNodes(grid, patience_s=60, poll_s=0).ask(questions, "train"))
    assert {client: parcel.values["client"] for client, parcel in answers.items()} == {c: c for c in range(10)}
    assert [len(ids) for ids in pulled] == [3, 3, 3, 1]


@pytest.fixture
def server_app():
    """deploy/server_app.py; without Flower it has stand-ins for Flower's classes, of which only their kinds matter."""
    if find_spec("flwr"):
        yield importlib.import_module("server_app")
        return
    records = {name: type(name, (dict,), {}) for name in ("ArrayRecord", "ConfigRecord", "RecordDict")}
    app = SimpleNamespace(main=lambda: lambda function: function)
    modules = {
        "flwr": {}, "flwr.app": {**records, "Array": StandIn, "Message": None, "Context": None}, "flwr.common": {},
        "flwr.common.constant": {"ErrorCode": SimpleNamespace(NODE_UNAVAILABLE=1)},
        "flwr.serverapp": {"Grid": None, "ServerApp": lambda: app},
    }  # fmt: skip
    with patch.dict(sys.modules, {name: SimpleNamespace(**has) for name, has in modules.items()}):  # and forget them
        yield importlib.import_module("server_app")


class StandIn:
    def __init__(self, dtype, shape, stype, data):
        self.data = data


def wrong_contents(app):
    """What another program may put into a message: nothing, other records, or records of another kind."""
    packet = app.ArrayRecord({"payload": app.Array("uint8", (1,), "fedpara.packet", b"a")})
    values = app.ConfigRecord({"score": 0.5})
    yield app.RecordDict()
    yield app.RecordDict({"packet": packet})
    yield app.RecordDict({"values": values})
    yield app.RecordDict({"packet": app.ArrayRecord(), "values": values})
    yield app.RecordDict({"packet": values, "values": packet})


def ask_three(server_app, monkeypatch, pull, patience_s=60):
    """The answers of three clients; `pull` makes a reply from the client's number and its question's id."""
    monkeypatch.setattr(server_app, "Message", lambda content, node, *_, ttl: SimpleNamespace(content=node))
    pushed = {}

    def push(sent):
        name = f"m{len(pushed)}"
        pushed[name] = sent[0].content
        return [name]

    nodes = [SimpleNamespace(name=f"client-{client}", node_id=client) for client in range(3)]
    pulled = []

    def pull_once(ids):
        new = [name for name in ids if name not in pulled]
        pulled.extend(new)
        return [pull(pushed[name], name) for name in new]

    grid = SimpleNamespace(get_nodes=lambda: nodes, push_messages=push, pull_messages=pull_once)
    questions = {client: Parcel(b"q", {"client": client}) for client in range(3)}
    return dict(server_app.FlowerNodes(grid, patience_s, poll_s=0).ask(questions, "train"))


RIGHT_PARCEL = Parcel(b"a", {"score": 0.5})


@pytest.mark.parametrize("number", range(6))
def test_a_flower_message_that_is_no_answer_is_its_clients_failure(server_app, monkeypatch, number):
    app = importlib.import_module("flwr.app")

    def pull(client, name):
        right = answer_to(name, SimpleNamespace(content=server_app.content(RIGHT_PARCEL)))
        if client != 1:
            return right
        return answer_to(name, SimpleNamespace(content=wrong[number])) if number < len(wrong) else Empty(right.metadata)

    wrong = list(wrong_contents(app))
    answers = ask_three(server_app, monkeypatch, pull)
    assert (answers[0], answers[2]) == (RIGHT_PARCEL, RIGHT_PARCEL)
    assert (answers[1].kind, answers[1].recurs) == ("crashed", False)
    assert "message" in str(answers[1].error).lower()


class Empty:
    """A message of Flower without content and without error."""

    def __init__(self, metadata):
        self.metadata = metadata

    def has_error(self):
        return False

    @property
    def content(self):
        raise ValueError("Message content is None. Use <message>.has_content() to check first.")


def test_a_flower_message_that_answers_no_question_is_its_clients_failure(server_app, monkeypatch):
    """A node writes the id of its question itself."""

    def pull(client, name):
        return answer_to("another" if client == 1 else name, SimpleNamespace(content=server_app.content(RIGHT_PARCEL)))

    answers = ask_three(server_app, monkeypatch, pull, patience_s=0.5)
    assert answers == {0: RIGHT_PARCEL, 2: RIGHT_PARCEL, 1: ClientFailure(1, "late")}


def answer_to(name, question):
    return SimpleNamespace(
        content=question.content, has_error=lambda: False, metadata=SimpleNamespace(reply_to_message_id=name)
    )


class WithBatchNorm(nn.Sequential):
    def __init__(self, widths):
        super().__init__(nn.Flatten(), nn.Linear(widths[0], 4), nn.BatchNorm1d(4), nn.Linear(4, widths[-1]))


def test_a_client_with_a_lone_example_says_so_before_it_trains(tmp_path):
    network = "model.network._target_=test_deployment.WithBatchNorm"
    overrides = [*OPTIONS, network, "factorization=dense", "data.max_train=51"]
    split(overrides, tmp_path / "data")
    with pytest.raises(ValueError, match=r"clients 1 have a batch of a single example.*data\.lone_example=merge"):
        Node([*overrides, "data.batch_size=16"], tmp_path / "data" / "client-1")


@pytest.mark.parametrize("line", ["{", "7", "null", "[]", '{"clients": [1]}', '{"round": 1}', '{"round": "1"}', "\xff"])
def test_a_damaged_note_of_whose_rounds_counted_is_one_line(tmp_path, line):
    whole = b'{"round": 1, "clients": [0, 2], "test_bytes": 0}\n'
    (tmp_path / "participants.jsonl").write_bytes(whole + line.encode("latin-1") + b"\n" + whole)
    with pytest.raises(UnusableFile, match=r"participants\.jsonl: not a list of rounds, or damaged \("):
        Participants(tmp_path).on_fit_start(SimpleNamespace(round=3, catch_up=None))


def test_folders_that_are_not_a_clients_own_are_refused(tmp_path):
    overrides, nodes = cut(tmp_path, "method=fedavg")
    with pytest.raises(UnusableFile, match="holds the server's test set"):
        owner(tmp_path / "data" / "server")
    with pytest.raises(UnusableFile, match=r"holds no data.safetensors; python deploy/split.py"):
        read_data(tmp_path)
    with pytest.raises(ValueError, match=r"asked as client 1, but .*client-2 is of client 2"):
        nodes.nodes[2].train(Parcel(b"", {"client": 1}))
    write_tensors(tmp_path / "data.safetensors", {"train/inputs": torch.zeros(2)}, {"about": "{}"})
    with pytest.raises(UnusableFile, match=r"must be a file of fedpara\.deployment\.write_data"):
        owner(tmp_path)
    for name in ("..", "a/b", ""):
        with pytest.raises(ValueError, match="run="):
            KeptStates(tmp_path, name, {})
    for typed, line in (
        ("callbacks.checkpoint.every=2", "every=2: must be 1"), ("faults.dropout=0.1", "faults.dropout=0.1: must be 0"),
        ("faults=sign_flip", "faults.attackers=0.2: must be 0, real clients"),
        ("privacy=distributed privacy.target_epsilon=8", "privacy.noise_multiplier=None: must be given, real clients"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=line):
            server.build(compose([*overrides, *typed.split()]), [], tmp_path, nodes)


class Shifted:
    """A data set's own way to prepare its inputs, in the one file of the data set."""

    def __init__(self, by):
        self.by = by

    def __call__(self, inputs):
        return inputs.float() + self.by

    def to_words(self):
        return {"_target_": "test_deployment.Shifted", "by": self.by}


def test_a_data_sets_own_prepare_is_made_again_where_it_is_trusted(tmp_path):
    data = replace(tiny_images(), prepare=Shifted(1.0))
    write_data(tmp_path, data, client=0)
    with pytest.raises(ConfigurationError, match=r"test_deployment\.Shifted.*trusted"):
        read_data(tmp_path)
    prepare = read_data(tmp_path, ["test_deployment.*"]).prepare
    assert torch.equal(prepare(data.test.inputs), data.prepare(data.test.inputs))
    with patch.object(Shifted, "__init__", lambda self, other: None), pytest.raises(UnusableFile, match="made again"):
        read_data(tmp_path, ["test_deployment.*"])
    with pytest.raises(ValueError, match=r"prepare=<built-in .*: must have to_words\(\)"):
        write_data(tmp_path, replace(data, prepare=torch.relu), client=0)


def test_folders_of_an_earlier_version_are_read(tmp_path):
    """Their `prepare` was mean and deviation alone."""
    write_data(tmp_path, tiny_images(), client=0)
    state, metadata = read_tensors(tmp_path / "data.safetensors", {})
    about = json.loads(metadata["about"])
    write_tensors(tmp_path / "data.safetensors", state, {"about": json.dumps(about | {"prepare": [[0.5], [0.25]]})})
    assert read_data(tmp_path).prepare.to_words() == about["prepare"]


def test_without_the_extra_one_line_says_what_to_install():
    if find_spec("flwr"):
        pytest.skip("flwr is installed here")
    done = subprocess.run([sys.executable, ROOT / "deploy" / "demo.py"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: deploy/ needs Flower: pip install -e '.[flower]' in an environment of its own\n"


@pytest.mark.slow
def test_real_processes_on_loopback_are_the_simulation_and_refuse_a_stranger():
    if not find_spec("flwr"):
        pytest.skip("needs pip install -e '.[flower]' in an environment of its own")
    command = [sys.executable, ROOT / "deploy" / "demo.py", "model=mlp", "method=pfedpara", "federation.num_rounds=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No SuperNode found with the given public key" in done.stdout
    assert "largest difference of any value in the servers' states: 0\n" in done.stdout
