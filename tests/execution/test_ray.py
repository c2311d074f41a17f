"""Clients in Ray actors on two nodes: what comes back is serial's, to the bit, whatever an actor or a node does."""

import os
import signal
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec

import pytest
import torch

from fedpara.algorithms.scaffold import Scaffold
from fedpara.execution import LocalResult, RayExecutor, SerialExecutor
from fedpara.interruption import interruption
from fedpara.nn import PFedPara
from fedpara.state import join
from helpers.clients import Obedient, by_hand, tasks
from helpers.federations import make_federation, same

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")  # takes a second to import


class Patient(Obedient):
    """Its clients wait besides where the folder says so, and say on which node."""

    def loader(self, client, seed):
        import ray

        while (self.folder / f"hold-{client}").exists():
            (self.folder / f"waiting-{ray.get_runtime_context().get_node_id()}").touch()
            time.sleep(0.02)
        return super().loader(client, seed)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each, on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.add_node(num_cpus=1)
    ray.init(address=made.address, logging_level="error", log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def told(cluster, tmp_path_factory):
    """An executor whose clients do as they are told, and the folder to tell them in."""
    folder = tmp_path_factory.mktemp("told")
    made = make_federation(
        recipe=PFedPara(gamma=1.0), executor=partial(RayExecutor, inner=partial(Patient, folder=folder))
    )
    made.executor.prepare()
    yield made.executor, folder
    made.executor.close()


def assert_same(one, other):
    assert same(join(one.server), join(other.server))
    for kept, expected in ((one.personal, other.personal), (one.memories, other.memories)):
        assert kept.keys() == expected.keys()
        assert all(same(kept[client], expected[client]) for client in kept)


@pytest.mark.slow
def test_two_rounds_are_serials_to_the_bit(told):
    """With what clients keep and remember."""
    options = {"recipe": PFedPara(gamma=1.0), "personal": ["*.0.[xy]2"], "clients_per_round": 4, "num_rounds": 2}
    runs = []
    for executor in (SerialExecutor, lambda *_: told[0]):
        runs.append(make_federation(algorithm=Scaffold(), executor=executor, **options))
        runs[-1].fit()
    assert_same(*runs)


@pytest.mark.slow
def test_a_client_that_raises_fails_alone_and_one_that_kills_three_actors_too(told):
    executor, folder = told
    expected = by_hand(executor)
    (folder / "0").write_text("a bug")
    (folder / "2").write_text("die")
    (folder / "4").write_text("die once")
    outcomes = list(executor.run(tasks(executor)))
    assert not (folder / "4").exists()
    assert outcomes[0].reason == "crashed (ValueError: a bug)"
    assert "in _fit" in outcomes[0].error.__notes__[0]
    assert outcomes[2].reason.startswith("crashed (WorkerKilled: a client's worker process died, three times: ")
    assert all(same(outcomes[number].state, expected[number]) for number in (1, 3, 4))


def held_on(folder, number):
    """The nodes on which clients wait, once they are so many."""
    end = time.monotonic() + 60
    while len(waiting := list(folder.glob("waiting-*"))) < number:
        assert time.monotonic() < end
        time.sleep(0.02)
    return {path.name.partition("-")[2] for path in waiting}


def begun(executor, folder, clients):
    """A round in which these clients wait, in a thread; what it gives."""
    for client in clients:
        (folder / f"hold-{client}").touch()
    results = []
    training = threading.Thread(target=lambda: results.extend(executor.run(tasks(executor))))
    training.start()
    return training, results


def go_on(folder):
    for path in [*folder.glob("hold-*"), *folder.glob("waiting-*")]:
        path.unlink()


@pytest.mark.slow
def test_what_a_node_takes_with_it_is_trained_again_elsewhere(told, cluster, caplog):
    executor, folder = told
    expected = by_hand(executor)
    training, results = begun(executor, folder, [0, 1])
    assert held_on(folder, 2) == {node.node_id for node in cluster.list_all_nodes()}
    cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
    go_on(folder)
    training.join()
    assert [result.client for result in results] == [0, 1, 2, 3, 4]
    assert all(same(result.state, state) for result, state in zip(results, expected, strict=True))
    assert len([record for record in caplog.records if "trained again elsewhere" in record.message]) == 1


@pytest.mark.slow
def test_a_node_that_joins_is_used(told, cluster):
    """In place of the one that the test before has killed."""
    executor, folder = told
    expected = by_hand(executor)
    if len(cluster.list_all_nodes()) == 1:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
    training, results = begun(executor, folder, [0, 1])
    assert held_on(folder, 2) == {node.node_id for node in cluster.list_all_nodes()}
    go_on(folder)
    training.join()
    assert [result.client for result in results] == [0, 1, 2, 3, 4]
    assert all(same(result.state, state) for result, state in zip(results, expected, strict=True))


@pytest.mark.slow
def test_an_interruption_ends_the_actors_at_once(told):
    import ray

    executor, folder = told
    for client in range(5):
        (folder / f"hold-{client}").touch()

    def press():
        held_on(folder, 1)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        list(executor.run(tasks(executor)))
    presser.join()
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        time.sleep(0.05)
    go_on(folder)
    assert all(isinstance(outcome, LocalResult) for outcome in executor.run(tasks(executor)))


@pytest.mark.slow
def test_a_model_is_tested_where_the_gpus_are(told, cluster):
    """GPUs in name only: Ray takes our word for them, and torch does not find them."""
    import ray

    node = cluster.add_node(num_cpus=1, num_gpus=2)
    cluster.wait_for_nodes()
    executor = make_federation(executor=partial(RayExecutor, gpus=0.5)).executor
    executor.prepare()
    state = executor.initial_state()
    assert executor.evaluate(state, 3) == executor.inner.evaluate(state, 3)
    assert executor.workers == 1
    pool = executor._pool
    pool._training["work"] = actor = pool._idle.pop()
    ray.kill(actor)  # while it trains
    assert executor.evaluate(state, 3) == executor.inner.evaluate(state, 3)
    del pool._training["work"]
    executor.close()
    cluster.remove_node(node)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cpus": 64},
            "cpus=64: must fit on one node, .*; no node has more than 1, 0 and",
        ),
        ({"gpus": 0.5}, "cpus=1: must fit"),
        ({"cpus": 0}, "cpus\n.*greater than 0"),
        ({"actors": 0}, "actors\n.*greater than or equal to 1"),
        ({"inner": partial(RayExecutor)}, "inner=ray: must train in its own process"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch, options, message):
    """By two nodes that are told, since a cluster takes seconds to start."""
    monkeypatch.setattr("fedpara.execution.ray._join", lambda address: False)
    monkeypatch.setattr("fedpara.execution.ray._nodes", lambda: [{"CPU": 1.0, "memory": 1e9}] * 2)
    with pytest.raises(ValueError, match=message):
        make_federation(executor=partial(RayExecutor, **options)).executor.prepare()


def test_a_driver_without_a_gpu_leaves_the_trainer_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    executor = make_federation(executor=RayExecutor, training={"accelerator": "gpu", "precision": "16-mixed"}).executor
    assert executor.inner.device.type == "cpu"
    assert (executor.actors_training.accelerator, executor.actors_training.precision) == ("gpu", "16-mixed")


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^executor=ray: needs Ray; pip install -e '.\[ray\]'$"):
        make_federation(executor=RayExecutor).executor.prepare()
