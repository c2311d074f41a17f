"""A tensor that layers share is in the state, on the wire and in the count of bytes once, and stays shared."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fedpara.algorithms.fedprox import FedProx
from fedpara.algorithms.scaffold import Scaffold
from fedpara.execution import ProcessesExecutor, SerialExecutor, VectorizedExecutor
from fedpara.execution.transfer import Room, dump, load
from fedpara.export import export_dense
from fedpara.models import MLP
from fedpara.nn import Dense, FedPara, PFedPara, factorize
from fedpara.sharing import Split
from fedpara.state import first_names, layout_of, load_state, num_elements, read_state
from fedpara.storage import read_tensors, write_tensors
from helpers.federations import make_federation

RECIPES = {"dense": Dense(), "fedpara": FedPara(gamma=0.5), "pfedpara": PFedPara(gamma=0.5)}
EXECUTORS = {
    "whole epochs": partial(SerialExecutor, whole_epochs=True),
    "vectorized": partial(VectorizedExecutor, chunk_size=2),
    "processes": partial(ProcessesExecutor, workers=1),
}


def tied():
    """Three layers, the first two of one weight."""
    network = MLP([16, 16, 16, 3])
    network.layers[3].weight = network.layers[1].weight
    return network


def is_tied(network):
    return len(list(network.named_parameters())) < len(list(network.named_parameters(remove_duplicate=False)))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_it_is_in_the_state_and_on_the_wire_once(recipe):
    federation = make_federation(network=tied, recipe=recipe, num_rounds=1)
    network = federation.executor.module.network
    size = sum(parameter.numel() for parameter in network.parameters())
    assert num_elements(federation.executor.initial_state()) == federation.num_shared == size
    record = federation.run_round()
    assert record.up_bytes == record.down_bytes == 2 * 4 * size
    assert is_tied(network)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    "executor",
    [*list(EXECUTORS)[:-1], pytest.param("processes", marks=pytest.mark.slow)],  # a worker takes seconds
)
def test_every_executor_trains_it_as_the_serial_one(executor, recipe):
    states = []
    for make in (SerialExecutor, EXECUTORS[executor]):
        federation = make_federation(network=tied, recipe=recipe, executor=make, algorithm=Scaffold(), num_rounds=2)
        try:
            federation.fit()
        finally:
            federation.executor.close()
        states.append(federation.server["model"])
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_it_stays_shared_in_a_copy_a_process_a_file_and_an_export(recipe, tmp_path):
    network = factorize(tied(), recipe)
    inputs = torch.randn(4, 16)
    outputs = network(inputs).detach()
    room = Room(0, 2**20)
    data = dump(network, room)
    memory = torch.zeros(2**20, dtype=torch.uint8)
    room.write(memory)
    for other in (copy.deepcopy(network), load(data, memory, copy=True)):
        assert is_tied(other)
        assert torch.equal(other(inputs), outputs)
    write_tensors(tmp_path / "state", read_state(network), {})
    state, _ = read_tensors(tmp_path / "state", layout_of(read_state(network)))
    another = factorize(tied(), recipe)
    load_state(another, state)
    assert torch.equal(another(inputs), outputs)
    export_dense(network, tmp_path / "dense", {})
    plain = tied()
    plain.load_state_dict(load_file(tmp_path / "dense"))
    torch.testing.assert_close(plain(inputs), outputs)


def test_a_split_through_one_tensor_is_refused():
    network = tied()
    names, shared = list(read_state(network)), first_names(network)
    assert Split(names, ["layers.[13].weight"], shared).personal == ["layers.1.weight"]
    for pattern in ("layers.1.*", "layers.3.*"):
        with pytest.raises(ValueError, match=r"must match both of layers.1.weight and layers.3.weight, one tensor"):
            Split(names, [pattern], shared)


@pytest.mark.parametrize("executor", [SerialExecutor, EXECUTORS["vectorized"]], ids=["serial", "vectorized"])
def test_a_frozen_weight_is_left_alone_by_decay_and_by_algorithms(executor):
    """FedProx gave it a gradient of zero, on which weight decay acts."""

    def frozen():
        network = MLP([16, 16, 3])
        network.layers[1].requires_grad_(False)
        return network

    federation = make_federation(
        network=frozen, recipe=Dense(), executor=executor, algorithm=FedProx(mu=0.1), num_rounds=1
    )
    federation.executor.module.make_optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=0.1)
    before = federation.executor.initial_state()
    federation.fit()
    for name, tensor in federation.server["model"].items():
        assert torch.equal(tensor, before[name]) == name.startswith("layers.1."), name
