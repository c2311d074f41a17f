"""Many clients in one computation give what each gives alone."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedpara.algorithms.base import Correction
from fedpara.data import IID, FederatedDataModule
from fedpara.execution import AutoExecutor, ClientFailure, ClientTask, LocalResult, SerialExecutor, VectorizedExecutor
from fedpara.execution.folding import Folded
from fedpara.execution.replay import NotCaptured
from fedpara.execution.vectorized import ManyClients
from fedpara.execution.whole_epochs import WholeEpochs
from fedpara.models import MLP, ClassificationModule, ResNet
from fedpara.nn import FedPara, factorize
from fedpara.state import tensors
from helpers.cases import thinned
from helpers.federations import convolutional, local_training, tiny_images
from helpers.recording import Recording


@pytest.fixture(autouse=True)
def together(request, caplog):
    """None is trained by the serial executor, which a chunk that raises falls back to, and says so."""
    yield
    alone = [record for record in caplog.get_records("call") if "trained one by one" in record.msg]
    assert bool(alone) == ("fails_alone" in request.node.name)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_convolutions_dropout_momentum_and_unequal_clients(double, strength):
    serial = convolutional(SerialExecutor, double, strength=strength)
    vectorized = convolutional(VectorizedExecutor, double, strength=strength, chunk_size=5)
    assert len({serial.datamodule.num_examples(client) for client in range(5)}) > 2
    state = serial.initial_state()
    tasks = [ClientTask(client, state, 0.5, seed=client + 7) for client in range(5)]
    tolerance = 1e-12 if double else 1e-5
    for one, other in zip(serial.run(tasks), vectorized.run(tasks), strict=True):
        assert (one.client, one.num_examples, one.num_steps) == (other.client, other.num_examples, other.num_steps)
        assert one.learning_rate_sum == pytest.approx(other.learning_rate_sum)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        for name, tensor in one.state.items():
            torch.testing.assert_close(other.state[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_under_autocast_the_backward_pass_is_in_float32_as_by_serial():
    serial, vectorized = (
        convolutional(executor, double=False, precision="bf16-mixed", network=network)
        for executor in (SerialExecutor, partial(VectorizedExecutor, chunk_size=5))
        for network in [factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))]
    )
    tasks = [ClientTask(client, serial.initial_state(), 1.0, seed=client) for client in range(5)]
    for one, other in zip(serial.run(tasks), vectorized.run(tasks), strict=True):
        for name, tensor in one.state.items():
            torch.testing.assert_close(other.state[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("executor", "trained"),
    [
        (partial(SerialExecutor, whole_epochs=True), WholeEpochs),
        (partial(VectorizedExecutor, chunk_size=5), ManyClients),
    ],
    ids=["whole-epochs", "vectorized"],
)
def test_in_a_local_epoch_neither_host_nor_device_waits_for_the_other(trained, executor, monkeypatch):
    def watched(module, batches, index):
        with Recording():
            steps(module, batches, index)

    steps = trained.training_step
    monkeypatch.setattr(trained, "training_step", watched)
    made = convolutional(executor, strength=1.0)
    state = made.initial_state()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    tasks = [ClientTask(client, state, 1.0, client, Correction(0.1, state, zeros)) for client in range(5)]
    assert [type(outcome) for outcome in made.run(tasks)] == [LocalResult] * 5


def corrected(state, clients):
    """Tasks of SCAFFOLD's kind and of none in turn, two clients each, which are one chunk; the rate falls."""
    torch.manual_seed(1)
    offsets = [{name: torch.randn_like(tensor) / 100 for name, tensor in state.items()} for _ in clients]
    corrections = [
        Correction(offset=offset) if client // 2 % 2 else Correction() for client, offset in enumerate(offsets)
    ]
    return [ClientTask(c, state, 0.5 ** (c // 2), c + 7, corrections[c]) for c in clients]


def captures(executor):
    """The number of graphs of folded steps."""
    return sum(len(many.steps._captured) for many in executor._many.values())


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("dropout", thinned([True, False]), ids=["dropout", "plain"])
def test_folded_and_captured_steps_are_the_folded_ones_and_those_of_each_client(accelerator, optimizer, dropout):
    """Unequal clients with corrections of two kinds, in chunks of 2, 2 and 1, for two rounds; eq. 9 as well."""

    def made(executor):
        network = None if dropout else factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
        # a rate that float32 holds exactly, as a captured step reads it from a tensor
        fused = partial(optimizer, lr=2**-6, fused=True)
        return convolutional(executor, True, network, fused, strength=0.5, accelerator=accelerator)

    together = partial(VectorizedExecutor, chunk_size=2)
    eager, captured = made(partial(together, capture=False)), made(together)
    # on a GPU nn.Dropout draws other masks than each client's own generator
    others = [eager] if dropout and accelerator == "gpu" else [eager, made(SerialExecutor)]
    tasks = corrected(eager.initial_state(), range(5))
    rounds = ([*executor.run(tasks), *executor.run(tasks)] for executor in (captured, *others))
    for one, *expected in zip(*rounds, strict=True):
        for other in expected:
            assert (one.client, one.num_examples, one.num_steps) == (other.client, other.num_examples, other.num_steps)
            assert one.learning_rate_sum == pytest.approx(other.learning_rate_sum)
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
            for name, tensor in one.state.items():
                torch.testing.assert_close(other.state[name], tensor, rtol=1e-10, atol=1e-10, msg=name)
    assert captures(eager) == 0
    # without dropout one shape for each number of clients and kind of correction, as a captured batch is padded
    assert captures(captured) > 3 if dropout else captures(captured) == 3


@pytest.mark.parametrize(
    "make", [partial(SerialExecutor, whole_epochs=True), partial(VectorizedExecutor, chunk_size=5)]
)
def test_graphs_of_many_shapes_do_not_grow_with_the_rounds(accelerator, make):
    """Each size of a last batch has its graph after two rounds; further rounds capture nothing and need no memory."""
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    made = convolutional(make, double=False, optimizer=optimizer, accelerator=accelerator)
    tasks = [ClientTask(client, made.initial_state(), 1.0, seed=client) for client in range(5)]
    counts, reserved = [], []
    for _ in range(4):
        assert all(isinstance(result, LocalResult) for result in made.run(tasks))
        counts.append(captures(made) if hasattr(made, "_many") else len(made._whole.steps._captured))
        reserved.append(torch.cuda.memory_reserved() if accelerator == "gpu" else 0)
    print("graphs", counts, "bytes", reserved)
    assert counts[1] == counts[3] > 1
    assert reserved[3] <= reserved[1] + 2**21


@pytest.mark.gpu
@pytest.mark.parametrize(
    "make", [partial(SerialExecutor, whole_epochs=True), partial(VectorizedExecutor, chunk_size=2)]
)
def test_two_gpus_capture_one_after_the_other(make):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    results = []
    for device in range(2):
        network = factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
        module = ClassificationModule(network, partial(torch.optim.SGD, lr=0.1), 3)
        data = FederatedDataModule(tiny_images, IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8)
        data.setup()
        made = make(local_training(module, data, accelerator="gpu", devices=[device]))
        data.to(made.device)
        state = results[0][0].state if results else made.initial_state()
        tasks = [ClientTask(client, state, 1.0, seed=client) for client in range(4)]
        results.append(list(made.run(tasks)))
        assert all(isinstance(result, LocalResult) for result in results[-1])


def test_folded_steps_that_no_graph_can_hold_are_run_as_they_are(captured_by, caplog):
    def refuse(step, generators):
        step()
        raise NotCaptured("called a synchronizing CUDA operation")

    together = partial(VectorizedExecutor, chunk_size=2)
    made = partial(convolutional, together, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True))
    eager, _, refused = made(), captured_by(refuse), made()
    tasks = corrected(eager.initial_state(), range(5))
    for one, other in zip(eager.run(tasks), refused.run(tasks), strict=True):
        assert (one.num_steps, one.train_loss) == (other.num_steps, other.train_loss)
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == ["steps cannot be captured, so each one is run by itself: called a synchronizing CUDA operation"]


class Arrivals(TorchDispatchMode):
    """Counts copies to the CPU from the meta device, which stands for a GPU."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            self.count += 1
            return torch.zeros(args[0].shape)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("finished", "copies_of_each"), [([0, 1, 2], 1), ([1], 1), ([0, 2], 2)])
def test_clients_that_finish_together_cost_one_copy_of_each_stacked_tensor(finished, copies_of_each):
    folded = Folded(factorize(MLP([16, 8, 3]), FedPara(gamma=0.5)), 3).to("meta")
    with Arrivals() as arrivals:
        states = folded.read(finished)
    assert arrivals.count == copies_of_each * len(tensors(folded.network))
    own = {name: tensor.shape[1:] for name, tensor in tensors(folded.network).items()}
    for state in states:
        assert {name: tensor.shape for name, tensor in state.items()} == own
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())


def test_chunks_are_as_many_as_memory_holds():
    made = convolutional(VectorizedExecutor, double=False, memory_gb=0.0005)
    made.prepare()
    assert 1 <= made.chunk_size < 20
    larger = convolutional(VectorizedExecutor, double=False)
    larger.prepare()
    assert made.chunk_size < larger.chunk_size <= 64


def test_a_composed_weight_is_counted_once_and_not_for_each_example():
    dense, composed = MLP([16, 400, 400, 3]), factorize(MLP([16, 400, 400, 3]), FedPara(gamma=0.1))
    chunks = []
    for network in (dense, composed):
        made = convolutional(VectorizedExecutor, double=False, network=network, memory_gb=0.1)
        made.prepare()
        chunks.append(made.chunk_size)
    assert 0.25 < chunks[1] / chunks[0] < 1


def test_a_network_is_folded_once_for_all_chunks_of_a_size(monkeypatch):
    folded = []
    monkeypatch.setattr("fedpara.execution.vectorized.Folded", lambda *args: folded.append(args) or Folded(*args))
    made = convolutional(VectorizedExecutor, chunk_size=2)
    state = made.initial_state()
    assert len(list(made.run(ClientTask(client, state, 1.0, seed=client) for client in range(4)))) == 4
    assert len(folded) == 1


def test_auto_tries_a_network_that_no_batch_of_one_may_train():
    """BatchNorm over single values: with one example it can be tested, not trained."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    made = convolutional(AutoExecutor, double=False, network=network)
    made.prepare()
    assert int(network[2].num_batches_tracked) == 0
    assert network.training
    made.close()


def test_a_client_that_raises_fails_alone():
    made = convolutional(VectorizedExecutor, chunk_size=5)
    state = made.initial_state()
    broken = {name: tensor for name, tensor in state.items() if "bias" not in name}
    outcomes = list(made.run([ClientTask(c, broken if c == 1 else state, 1.0, seed=c) for c in range(3)]))
    assert [isinstance(outcome, ClientFailure) for outcome in outcomes] == [False, True, False]


def dropping(layer):
    """A convolution, then a layer that draws random numbers."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), layer, nn.Flatten(), nn.Linear(24, 3))


def test_dropout_of_channels_draws_each_clients_own_masks():
    """A client's images lie in channels_last memory, in whose order it draws."""
    network = dropping(nn.Dropout(0.5))
    serial = convolutional(SerialExecutor, double=False, network=copy.deepcopy(network))
    many = convolutional(VectorizedExecutor, double=False, network=network, chunk_size=5)
    many.prepare()
    tasks = [ClientTask(client, serial.initial_state(), 1.0, seed=client) for client in range(5)]
    for one, other in zip(serial.run(tasks), many.run(tasks), strict=True):
        for name, tensor in one.state.items():
            torch.testing.assert_close(other.state[name], tensor, rtol=0, atol=1e-6, msg=name)


class Shuffled(nn.Module):
    """Mixes channels outside of any layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)

    def forward(self, images):
        return self.layer(images.flatten(1).flip(1))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (ResNet([4], [1], 3, in_channels=1), "norm1 is a BatchNorm2d: take executor=serial or processes"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Softmax(1)), "Sequential does more than its layers show"),
        (Shuffled(), "Shuffled does more than its layers show"),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.LayerNorm(3)), "2 is a LayerNorm"),
        (dropping(nn.Dropout2d(0.5)), "Sequential d"),
        (dropping(nn.AlphaDropout(0.5)), "Sequential d"),
    ],
    ids=["batch-norm", "softmax", "shuffled", "layer-norm", "dropout-2d", "alpha-dropout"],
)
def test_networks_that_cannot_be_folded_say_so(network, reason):
    with pytest.raises(ValueError, match=reason):
        convolutional(VectorizedExecutor, double=False, network=network).prepare()


def test_optimizers_and_losses_that_mix_clients_are_refused():
    with pytest.raises(ValueError, match="LBFGS may mix clients, it is not one of ASGD, Adadelta"):
        convolutional(VectorizedExecutor, optimizer=partial(torch.optim.LBFGS, lr=0.1))

    class Other(ClassificationModule):
        def training_step(self, batch, batch_index):
            return super().training_step(batch, batch_index) * 2

    network = factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
    data = FederatedDataModule(tiny_images, IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8)
    other = Other(network, partial(torch.optim.SGD, lr=0.1), 3)
    with pytest.raises(ValueError, match="Other has its own training_step: take executor=serial or processes"):
        VectorizedExecutor(local_training(other, data))


@pytest.mark.parametrize(
    ("cores", "network", "chosen"),
    [
        (1, None, "VectorizedExecutor"),
        (1, ResNet([4], [1], 3, in_channels=1), "SerialExecutor"),
        (2, None, "ProcessesExecutor of VectorizedExecutor"),
        (2, ResNet([4], [1], 3, in_channels=1), "ProcessesExecutor of SerialExecutor"),
    ],
    ids=["one-core", "one-core-batch-norm", "two-cores", "two-cores-batch-norm"],
)
def test_auto_takes_what_the_network_and_the_machine_allow(cores, network, chosen, monkeypatch, caplog):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    made = convolutional(AutoExecutor, double=False, network=network)
    with caplog.at_level("INFO"):
        made.prepare()
    assert caplog.messages[-1] == f"executor: {chosen}"
    if cores == 1:
        (result,) = made.run([ClientTask(0, made.initial_state(), 1.0, seed=0)])
        assert result.num_steps > 0
    made.close()
