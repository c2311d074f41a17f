"""Algorithms against closed forms: quadratic clients of known optimum, one round by numpy, limits that are FedAvg."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from fedpara.algorithms import Correction, FedAvg, Upload
from fedpara.algorithms.fedavgm import FedAvgM
from fedpara.algorithms.feddyn import FedDyn
from fedpara.algorithms.fedluar import FedLUAR
from fedpara.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from fedpara.algorithms.fedprox import FedProx
from fedpara.algorithms.scaffold import Scaffold
from fedpara.callbacks import Checkpoint
from fedpara.communication import Link
from fedpara.execution import ClientTask, LocalResult
from fedpara.federation import Kept
from fedpara.nn import Dense
from fedpara.state import join
from helpers import ROOT
from helpers.cases import thinned
from helpers.clients import Exact, Quadratics, distance_after, quadratic_federation
from helpers.configured import ALGORITHMS, linked, named, of_yaml
from helpers.federations import make_federation, require_same_bits_if_resumed, same

LINKS = sorted(path.stem for path in (ROOT / "configs" / "link").glob("*.yaml"))
FEWER_BITS = ["fedpaq link.up_codec.bits=4", "fedpaq link.up_codec.bits=2"]


def test_fedavg_stops_at_a_distance_from_the_optimum():
    """With several local steps the fixed point of FedAvg is not the optimum where clients differ."""
    near, far = (distance_after(FedAvg(), rounds)[0] for rounds in (60, 120))
    assert near == pytest.approx(far, rel=1e-6)
    assert far > 0.05


@pytest.mark.parametrize("clients_per_round", [6, 3])
def test_scaffold_reaches_the_optimum(clients_per_round):
    assert distance_after(Scaffold(), 100, clients_per_round)[0] < 1e-9


@pytest.mark.parametrize("clients_per_round", [6, 3])
def test_feddyn_reaches_the_optimum(clients_per_round):
    assert distance_after(FedDyn(alpha=1.0), 250, clients_per_round)[0] < 1e-9


def test_fedprox_shortens_the_distance_of_fedavg():
    assert distance_after(FedProx(mu=3.0), 60)[0] < 0.9 * distance_after(FedAvg(), 60)[0]


@pytest.mark.parametrize("bits", thinned([2, 4, 8], every=3))
@pytest.mark.parametrize("algorithm", [Scaffold(), FedDyn(alpha=1.0)], ids=["scaffold", "feddyn"])
def test_coarse_uploads_reach_the_optimum_too(algorithm, bits):
    """Updates vanish at the optimum, and with them their rounding, unless a memory sums it up for ever."""
    link = linked(f"fedpaq link.up_codec.bits={bits}")
    assert distance_after(algorithm, 60, 10, num_clients=10, link=link)[0] < 1e-5


@pytest.mark.parametrize("choice", thinned(["bf16", "fp16"]))
@pytest.mark.parametrize("name", thinned(ALGORITHMS))
def test_rounded_broadcasts_lead_within_their_rounding_of_the_same_model(name, choice):
    """The server's own model is never rounded, so that nothing adds up."""
    down = linked(choice).down_codec
    exact, rounded = (distance_after(named(name), 25, link=Link(Exact(), c))[1] for c in (Exact(), down))
    expected, found = exact.server["model"]["w"], rounded.server["model"]["w"]
    assert float((found - expected).abs().max()) < torch.finfo(down.dtype).eps * float(expected.abs().max())


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedluar", "fedprox", "scaffold"])
def test_steps_below_the_rounding_of_a_broadcast_add_up(name):
    """bfloat16 has 1/128 between 1 and 2. Without momentum ten rounds move the model by ten steps of the clients."""
    algorithm = {"fedavgm": FedAvgM(momentum=0)}.get(name, named(name)).bound(["w"], num_clients=1)
    server = algorithm.start({"w": torch.full((2, 2), 1.003)})
    for _ in range(10):
        message = algorithm.broadcast(server)
        received = message | {"model": {"w": message["model"]["w"].bfloat16().float()}}
        trained = {"w": received["model"]["w"] + 1e-3}
        upload = Upload(algorithm.upload(received, trained, 1.0, {}), num_examples=10)
        server = algorithm.aggregate(server, received, [upload])
    torch.testing.assert_close(server["model"]["w"], torch.full((2, 2), 1.013), atol=1e-5, rtol=0)


MEMORIES = {"scaffold": "control", "feddyn": "h"}  # what of the server's is the mean of what the clients remember


@pytest.mark.parametrize("choice", [*LINKS, *FEWER_BITS])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_both_ends_hold_alike_is_alike_under_every_link(name, choice):
    """c = 1/N sum(c_i) in SCAFFOLD, h = 1/N sum(g_k) in FedDyn: Algorithm 1 of both papers moves both ends alike."""
    link = linked(choice)
    other_way = [] if choice == "topk" else [Link(link.down_codec, link.up_codec)]  # a broadcast is not sparse
    for way in (link, *other_way):
        if way.error_feedback and name == "scaffold":
            continue  # refused, see the test of links
        _, federation = distance_after(named(name), 3, clients_per_round=2, link=way)
        assert bool(federation.memories) == (name in MEMORIES or way.error_feedback)
        if name in MEMORIES:
            mean = sum(memory["w"] for memory in federation.memories.values()) / 6
            torch.testing.assert_close(federation.server[MEMORIES[name]]["w"], mean)


class Idle(Quadratics):
    """Clients that apply no step."""

    def initial_state(self):
        return {"w": torch.tensor([1 / 3, -0.7, 1e-3, 5.1], dtype=torch.float64)}

    def run(self, tasks):
        for task in tasks:
            yield LocalResult(task.client, task.state, 1, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("choice", [*LINKS, *FEWER_BITS])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_rounding_of_a_broadcast_is_no_step(name, choice):
    """A server that took its step from its own model, which no client had, would move, or remember that it should."""
    link = linked(choice)
    for down in (link.down_codec, link.up_codec)[: 1 if choice == "topk" else 2]:
        federation = quadratic_federation(named(name), 2, link=Link(Exact(), down), executor=Idle)
        sent = federation.broadcast(0).received["model"]["w"]
        federation.run_round()
        after = federation.server.pop("model")["w"]
        assert torch.equal(after, sent) or torch.equal(after, Idle().initial_state()["w"])
        steps = [part for key, part in federation.server.items() if key not in ("v", "draws")]
        assert not any(tensor.any() for part in steps for tensor in part.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_object_serves_two_federations_at_once(name):
    """Of other numbers of clients, their rounds by turns: each is what it would be with an object of its own."""
    shared = named(name)
    together = [quadratic_federation(shared, 3, 3, num_clients) for num_clients in (6, 4)]
    alone = [quadratic_federation(named(name), 3, 3, num_clients) for num_clients in (6, 4)]
    for _ in range(3):
        for federation in (*together, *alone):
            federation.run_round()
    for one, other in zip(together, alone, strict=True):
        assert same(join(one.server), join(other.server))


def test_scaffold_at_the_optimum_stays_there():
    executor = Quadratics()
    algorithm = Scaffold().bound(["w"], 6)
    server = algorithm.start({"w": executor.optimum})
    gradients = {i: {"w": executor.a[i] @ (executor.optimum - executor.b[i])} for i in range(6)}
    for client, memory in gradients.items():
        task = ClientTask(client, server["model"], 1.0, 0, algorithm.correction(server, memory))
        (result,) = executor.run([task])
        torch.testing.assert_close(result.state["w"], executor.optimum)


def uploads(*values):
    return [Upload({"model": {"w": torch.tensor([v], dtype=torch.float64)}}, n) for v, n in values]


@pytest.mark.parametrize(
    ("algorithm", "second"),
    [
        (FedAdam(0.1, 0.9, 0.99, 0.01), lambda v, d: 0.99 * v + 0.01 * d**2),
        (FedYogi(0.1, 0.9, 0.99, 0.01), lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2)),
        (FedAdagrad(0.1, 0.9, 0.99, 0.01), lambda v, d: v + d**2),
    ],
)
def test_adaptive_servers_by_numpy(algorithm, second):
    algorithm = algorithm.bound(["w"], 2)
    server = algorithm.start({"w": torch.tensor([1.0], dtype=torch.float64)})
    x, m, v = 1.0, 0.0, 0.01**2
    for values in ([(2.0, 1), (4.0, 3)], [(0.0, 2), (1.0, 2)], [(5.0, 1)]):
        server = algorithm.aggregate(server, server, uploads(*values))
        delta = np.average([value for value, _ in values], weights=[n for _, n in values]) - x
        m, v = 0.9 * m + 0.1 * delta, second(v, delta)
        x += 0.1 * m / (np.sqrt(v) + 0.01)
        assert float(server["model"]["w"]) == pytest.approx(x, rel=1e-12)


def test_server_momentum_by_hand():
    algorithm = FedAvgM(momentum=0.5, server_lr=2.0).bound(["w"], 2)
    server = algorithm.start({"w": torch.tensor([1.0], dtype=torch.float64)})
    server = algorithm.aggregate(server, server, uploads((2.0, 1)))  # m = 1, x = 3
    server = algorithm.aggregate(server, server, uploads((4.0, 1)))  # m = 0.5 + 1, x = 6
    assert float(server["model"]["w"]) == 6.0


def test_recycled_layers_by_hand():
    """A layer that is not sent takes its last update again; its ratio stays; the seed alone decides the draws."""
    algorithm = FedLUAR(recycled=0.5, seed=3).bound(["a", "b", "bias"], 2)
    model = {"a": torch.ones(1, 2), "b": torch.full((2, 1), 2.0), "bias": torch.zeros(1)}
    server, counts = algorithm.start(model), {"a": 0, "b": 0}
    for step in (0.5, 0.25, 1.0, 0.125, 0.5):
        received, before = algorithm.broadcast(server), server
        trained = {name: tensor + step for name, tensor in received["model"].items()}
        parts = algorithm.upload(received, trained, 0.0, {})
        assert parts["model"].keys() == algorithm.sent(received).keys()
        server = algorithm.aggregate(server, received, [Upload(parts, 1), Upload(parts, 3)])
        for name in counts:
            recycled = bool(before["recycled"][name])
            moved = before["update"][name] if recycled else torch.full_like(model[name], step)
            torch.testing.assert_close(server["model"][name], before["model"][name] + moved)
            torch.testing.assert_close(server["update"][name], moved)
            if not recycled:
                ratio = moved.norm() / before["model"][name].norm()
                assert float(server["ratio"][name]) == pytest.approx(float(ratio), rel=1e-5)
            counts[name] += recycled
        torch.testing.assert_close(server["model"]["bias"], before["model"]["bias"] + step)
        assert sum(int(flag) for flag in server["recycled"].values()) == 1
    assert sum(counts.values()) == 4


def test_small_relative_updates_are_recycled_more_often():
    """p = (1 / s) / sum(1 / s): three quarters for a third of the other's s."""
    algorithm, ratio = FedLUAR(recycled=0.5), {"a": torch.tensor(1.0), "b": torch.tensor(3.0)}
    drawn = sum(int(algorithm._drawn(ratio, number)["a"]) for number in range(400)) / 400
    assert drawn == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 400) ** 0.5)


def test_the_share_of_recycled_layers_is_that_of_decimals():
    """0.58 * 50 is 28.999999999999996."""
    drawn = FedLUAR(recycled=0.58)._drawn({str(number): torch.tensor(1.0) for number in range(50)}, 0)
    assert sum(int(flag) for flag in drawn.values()) == 29


def test_recycled_layers_do_not_travel():
    """Of seven tensors four are factors; two of these stay behind from the second round on."""
    federation = make_federation(algorithm=FedLUAR(recycled=0.5), num_rounds=3)
    sizes = {name: 4 * tensor.numel() for name, tensor in federation.server["model"].items()}
    assert len(federation.server["update"]) == 4
    for _ in range(3):
        left = sum(sizes[name] for name, flag in federation.server["recycled"].items() if flag)
        record = federation.run_round()
        assert (record.up_bytes, record.down_bytes) == (2 * (sum(sizes.values()) - left), 2 * (sum(sizes.values()) + 4))
    assert left


@pytest.mark.parametrize("choice", thinned(["fedpaq4", "fedpaq", "topk"], 3))
def test_recycling_goes_with_links_that_lose_and_is_resumed(tmp_path, choice):
    """What a layer's updates lost is kept through the rounds in which it does not travel."""

    def federation(folder, num_rounds, **options):
        folder.mkdir(exist_ok=True)
        return make_federation(
            link=linked(choice), num_rounds=num_rounds, clients_per_round=5, callbacks=[Checkpoint(folder)], **options
        )

    recycling = partial(federation, algorithm=FedLUAR(recycled=0.5))
    require_same_bits_if_resumed(recycling, tmp_path)
    some, all_of_it = recycling(tmp_path / "some", 1), federation(tmp_path / "all", 1)
    first, second = some.run_round(), some.run_round()
    assert first.up_bytes == all_of_it.run_round().up_bytes > second.up_bytes
    if some.link.error_feedback:
        assert {len(memory) for memory in some.memories.values()} == {len(some.server["model"])}


@pytest.mark.parametrize("limit", [FedProx(mu=0), FedLUAR(recycled=0), FedAvgM(momentum=0, server_lr=1), Scaffold()])
def test_limits_that_are_fedavg(limit):
    """FedProx without its pull is FedAvg bit for bit; so is SCAFFOLD's first round, within rounding."""
    num_rounds = 1 if isinstance(limit, Scaffold) else 3
    plain, other = make_federation(num_rounds=num_rounds), make_federation(num_rounds=num_rounds, algorithm=limit)
    plain.fit()
    other.fit()
    for name, value in plain.server["model"].items():
        if isinstance(limit, FedProx):
            assert torch.equal(other.server["model"][name], value)
        torch.testing.assert_close(other.server["model"][name], value)


def learning():
    """FedAvg and those that correct gradients in all set-ups, every other one of which is slow.

    The others are FedAvg to a client, and have their server's step by hand above: one of them is trained.
    """
    for name in ALGORITHMS:
        at_clients = name == "fedavg" or of_yaml(name).correction is not FedAvg.correction
        for personal, (recipe, codec) in product([["*2"], None], [(None, "float16"), (Dense(), "float32")]):
            if at_clients or (name == "fedadam" and personal and recipe is None):
                case = f"{name}-{'personal' if personal else 'full'}-{'fedpara' if recipe is None else 'dense'}"
                marks = () if bool(personal) == (recipe is None) else pytest.mark.slow
                yield pytest.param(name, personal, recipe, codec, id=case, marks=marks)


@pytest.mark.parametrize(("name", "personal", "recipe", "codec"), learning())
def test_every_algorithm_learns_with_every_factorisation_split_and_link(name, personal, recipe, codec):
    if recipe and personal:
        personal = ["layers.1.*"]
    federation = make_federation(
        algorithm=named(name), personal=personal, recipe=recipe, codec=codec, num_rounds=5, clients_per_round=4,
        eval_every=5,
    )  # fmt: skip
    before = federation.evaluate()["test/loss"]
    records = [federation.run_round() for _ in range(5)]
    assert records[-1].train_loss < records[0].train_loss < 1.5
    assert personal or records[-1].metrics["test/loss"] < before
    personal_names = set(federation.split.personal)
    assert not any(key.partition("/")[2] in personal_names for key in join(federation.server))


def test_control_variates_count_as_traffic():
    plain, scaffold = (make_federation(algorithm=algorithm).run_round() for algorithm in (FedAvg(), Scaffold()))
    assert (scaffold.up_bytes, scaffold.down_bytes) == (2 * plain.up_bytes, 2 * plain.down_bytes)


def test_corrections_reach_the_gradients_of_a_lightning_step():
    """One task with a pull and an offset against the same steps by hand."""
    federation = make_federation(recipe=Dense(), max_epochs=1)
    executor, state = federation.executor, federation.executor.initial_state()
    offset = {name: torch.full_like(tensor, 0.01) for name, tensor in state.items()}
    anchor = {name: torch.zeros_like(tensor) for name, tensor in state.items() if "weight" in name}
    task = federation.client_side.task(2, federation.broadcast(0), Kept())
    task = type(task)(2, task.state, 1.0, task.seed, Correction(0.3, anchor, offset))
    (result,) = executor.run([task])
    network = executor.module.network
    network.load_state_dict(state)
    for images, labels in executor.datamodule.client_dataloader(2, task.seed):
        gradients = torch.autograd.grad(
            torch.nn.functional.cross_entropy(network(images), labels), network.parameters()
        )
        with torch.no_grad():
            for (name, w), gradient in zip(network.named_parameters(), gradients, strict=True):
                pull = 0.3 * w if name in anchor else 0
                w.sub_(0.1 * (gradient + pull + 0.01))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(result.state[name], value, msg=name)


def test_scaffold_client_that_applied_no_step_changes_nothing():
    algorithm = Scaffold().bound(["w"], 3)
    server = algorithm.start({"w": torch.ones(2)})
    before = {"w": torch.full((2,), 7.0)}
    parts = algorithm.upload(server, {"w": torch.ones(2)}, 0.0, before)
    memory = algorithm.remember(server, parts, before)
    assert torch.equal(parts["control"]["w"], torch.zeros(2))
    assert torch.equal(memory["w"], torch.full((2,), 7.0))
