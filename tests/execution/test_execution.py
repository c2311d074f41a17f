"""The serial executor is a hand-written loop, to the bit, with everything of Lightning in between."""

import copy
import gc
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hydra.utils import get_class
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn

from fedpara.algorithms import FedAvg
from fedpara.algorithms.base import Correction
from fedpara.algorithms.feddyn import FedDyn
from fedpara.algorithms.fedprox import FedProx
from fedpara.algorithms.scaffold import Scaffold
from fedpara.data import IID, FederatedDataModule
from fedpara.data.examples import CropAndFlip, Normalize
from fedpara.execution import ClientFailure, ClientTask, LocalResult, LocalTraining, SerialExecutor, VectorizedExecutor
from fedpara.execution.folding import Folded
from fedpara.execution.local import FrobeniusDecay, GradientCorrection
from fedpara.execution.replay import CudaGraphs, NotCaptured
from fedpara.execution.whole_epochs import WholeEpochs
from fedpara.models import MLP, VGG, ClassificationModule, ResNet
from fedpara.nn import EqualSizeLowRank, FedPara, PFedPara, factorizations, factorize, jacobian_correction
from helpers.cases import thinned
from helpers.configured import composed
from helpers.federations import convolutional, local_training, make_federation, tiny_images
from helpers.recording import Recording, Rehearsed

fused = partial(partial, fused=True)
FUSED_SGD = fused(torch.optim.SGD)


def executor(network=None, max_epochs=2, lr=0.1, optimizer=torch.optim.SGD, whole_epochs=False, **trainer_options):
    network = network or factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
    module = ClassificationModule(network, partial(optimizer, lr=lr), 3)
    data = FederatedDataModule(tiny_images, IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8)
    data.setup()
    training = local_training(module, data, max_epochs=max_epochs, **trainer_options)
    return SerialExecutor(training, whole_epochs=whole_epochs)


def test_local_training_equals_a_hand_written_loop():
    torch.manual_seed(0)
    made = executor(lr=0.2)
    state = made.initial_state()
    (result,) = made.run([ClientTask(3, state, learning_rate_factor=0.5, seed=11)])

    network, data = made.module.network, made.datamodule
    network.load_state_dict(state)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loader, losses = data.client_dataloader(3, 11), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(labels)
    for name, value in network.state_dict().items():
        assert torch.equal(result.state[name], value), name
    assert result.num_examples == 12
    assert result.num_steps == 4
    assert result.train_loss == pytest.approx(sum(losses) / len(losses))


def test_results_do_not_depend_on_who_trained_before():
    torch.manual_seed(0)
    network = factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
    network.layers.insert(2, nn.Dropout(0.5))
    made = executor(network, optimizer=partial(torch.optim.SGD, momentum=0.9))
    state = made.initial_state()
    tasks = [ClientTask(client, state, 1.0, seed=client) for client in (1, 2)]
    both = list(made.run(tasks))
    (alone,) = made.run(tasks[1:])
    for name, value in alone.state.items():
        assert torch.equal(both[1].state[name], value), name


def test_epochs_differ_in_their_order():
    """A loader whose second epoch repeats the first would train otherwise than one whose seed moves on."""
    made = executor()
    loader = made.datamodule.client_dataloader(0, 5)
    first = torch.cat([labels for _, labels in loader])
    loader.sampler.set_epoch(1)
    assert not torch.equal(first, torch.cat([labels for _, labels in loader]))


def test_evaluation_is_the_mean_over_examples_with_weights_composed_once():
    torch.manual_seed(0)
    made = executor()
    made.datamodule.eval_batch_size = 7  # 30 test images: batches of unequal size
    calls = []
    factorised = made.module.network.layers[1].parametrizations.weight[0]
    handle = factorised.register_forward_hook(lambda *_: calls.append(1))
    metrics = made.evaluate(made.initial_state())
    handle.remove()
    assert len(calls) == 1
    images, labels = (torch.cat(parts) for parts in zip(*made.datamodule.test_dataloader(), strict=True))
    with torch.no_grad():
        logits = made.module.network(images)
    assert metrics["acc"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert metrics["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": -1}, "max_epochs=-1: must be a whole number of local epochs"),
        ({"max_epochs": 0}, "max_epochs=0: must be a whole"),
        ({"devices": 2}, "devices=2: must be 1"),
        ({"precision": "16-mixed", "optimizer": FUSED_SGD}, "precision=16-mixed: must be bf16-mixed, or .*fused=false"),
        ({"precision": 16, "optimizer": FUSED_SGD}, "precision=16: must be bf16-mixed, or .*fused=false"),
        ({"precision": "31-true"}, "Precision '31-true' is invalid. Allowed"),
    ],
)
def test_trainers_that_cannot_train_a_client_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        executor(**options)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_learn(precision):
    torch.manual_seed(0)
    network = factorize(MLP([16, 8, 3]), FedPara(gamma=0.5))
    made = executor(network.double() if precision == "64-true" else network, max_epochs=5, precision=precision)
    (result,) = made.run([ClientTask(0, made.initial_state(), 1.0, seed=0)])
    assert made.evaluate(result.state)["loss"] < made.evaluate(made.initial_state())["loss"]
    expected = torch.float64 if precision == "64-true" else torch.float32
    assert {value.dtype for value in result.state.values()} == {expected}


def test_epochs_are_whole_by_themselves_where_nothing_needs_single_batches():
    class Own(Trainer):
        pass

    def whole(**options):
        return executor(whole_epochs=None, **options)._whole is not None

    assert whole()
    assert whole(precision="bf16-mixed")
    assert not whole(gradient_clip_val=1.0)
    assert not whole(accumulate_grad_batches=2)
    assert not whole(profiler="simple")
    assert not whole(callbacks=[Callback()])
    assert not whole(trainer_class=Own)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_on_a_gpu(precision):
    torch.manual_seed(0)
    made = executor(max_epochs=20, accelerator="gpu", precision=precision)
    (result,) = made.run([ClientTask(0, made.initial_state(), 1.0, seed=0)])
    assert 0 < result.num_steps <= 40
    assert made.evaluate(result.state)["loss"] < 1.1


def test_jacobian_correction_changes_training_and_is_off_by_default():
    def final(**options):
        federation = make_federation(num_rounds=1, training=options)
        federation.fit()
        return federation.server["model"]

    plain, off, corrected = final(), final(jacobian_correction=0.0), final(jacobian_correction=1.0)
    assert all(torch.equal(plain[name], off[name]) for name in plain)
    assert any(not torch.equal(plain[name], corrected[name]) for name in plain)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SerialExecutor, {"accumulate_grad_batches": 2}),
        (partial(SerialExecutor, whole_epochs=True), {}),
        (partial(VectorizedExecutor, chunk_size=2), {}),
    ],
)
def test_frobenius_decay_is_the_gradient_of_its_penalty_and_of_equation_9s_loss(make, options):
    """Once a step, also with several backward passes, against a loop with l/2 |W|^2 in the loss; at scaled steps."""
    torch.manual_seed(0)
    given = {"jacobian_correction": 1.0, "frobenius_decay": 0.5, "precision": "64-true", "max_epochs": 1} | options
    network = factorize(MLP([16, 8, 3]).double(), FedPara(gamma=0.5, step=0.5))
    made = make(executor(network, **given).training)
    state, network = made.initial_state(), copy.deepcopy(made.module.network)
    *_, result = made.run([ClientTask(client, state, 1.0, seed=client) for client in (2, 3)])

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    batches = list(made.datamodule.client_dataloader(3, 3))
    assert len(batches) == 2
    for step in [batches] if options else [[batch] for batch in batches]:
        with torch.nn.utils.parametrize.cached():
            weights = [network.get_submodule(name).weight for name, _ in factorizations(network)]
            losses = [nn.functional.cross_entropy(network(images.double()), labels) for images, labels in step]
        loss = sum(losses) / len(losses) + 0.25 * sum(weight.square().sum() for weight in weights)
        jacobians = torch.autograd.grad(loss, weights, retain_graph=True)
        optimizer.zero_grad()
        loss.backward()
        for (_, factors), jacobian in zip(factorizations(network), jacobians, strict=True):
            for name, value in jacobian_correction(factors, jacobian, 0.1).items():
                factors.get_parameter(name).grad.add_(value, alpha=factors.gradient_scale)
        optimizer.step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(result.state[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_frobenius_decay_has_the_scale_of_half_precisions_gradients():
    callback, network = FrobeniusDecay(0.5), factorize(nn.Linear(16, 8), EqualSizeLowRank(gamma=1.0))
    callback.on_train_start(SimpleNamespace(precision_plugin=Mock(scaler=Mock(get_scale=lambda: 8.0))), network)
    (factors,) = (factors for _, factors in factorizations(network))
    network(torch.zeros(1, 16)).sum().backward()
    expected = 8 * 0.5 * factors().detach() @ factors.y.detach()
    torch.testing.assert_close(factors.x.grad, expected)


def test_trying_an_example_leaves_the_network_training():
    """Lightning trains modules in the mode it finds them in: dropout and BatchNorm would be those of a test."""
    federation = make_federation(dropout=0.5)
    federation.executor.prepare()
    assert all(module.training for module in federation.executor.module.network.modules())
    federation.run_round()
    assert all(module.training for module in federation.executor.module.network.modules())


ALGORITHMS = [FedAvg, partial(FedProx, mu=0.3), Scaffold, FedDyn]


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("algorithm", thinned(ALGORITHMS), ids=["fedavg", "fedprox", "scaffold", "feddyn"])
def test_whole_epochs_are_the_epochs_of_single_batches_bit_for_bit(captured_by, algorithm, captured):
    """With dropout, momentum, two decays and eq. 9; captured: what a CUDA graph needs, on memory that stays."""

    def final(**options):
        federation = make_federation(
            algorithm=algorithm(), executor=partial(SerialExecutor, **options), dropout=0.3, lr_decay=0.5,
            num_rounds=3, eval_every=3, training={"jacobian_correction": 1.0, "frobenius_decay": 0.1},
        )  # fmt: skip
        momentum = 0.9 if algorithm in (FedAvg, FedDyn) else 0
        optimizer = partial(torch.optim.SGD, lr=0.1, momentum=momentum, fused=captured)
        federation.executor.module.make_optimizer = optimizer
        return [federation.run_round() for _ in range(3)], federation.server

    if captured:
        captured_by(Rehearsed())
    (records, server), (others, quick) = final(whole_epochs=False), final(whole_epochs=True)
    for part, state in server.items():
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, quick[part][name], rtol=0, atol=1e-7 if captured else 0, msg=name)
    assert [r.train_loss for r in records] == pytest.approx([r.train_loss for r in others], abs=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("batch_norm", thinned([True, False]))
def test_captured_steps_are_the_eager_ones_bit_for_bit(captured_by, precision, batch_norm):
    """Clients of unequal size, with and without corrections in turn: a step for each of both and each size of batch."""
    torch.manual_seed(0)
    network = factorize(ResNet([4], [1], 3, in_channels=1), FedPara(gamma=0.4)) if batch_norm else None
    optimizer = fused(partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01))

    def made():
        given = copy.deepcopy(network), optimizer, precision
        return convolutional(SerialExecutor, False, *given, whole_epochs=True, strength=0.5)

    eager, recorded, captured = made(), captured_by(Rehearsed()), made()
    state = eager.initial_state()
    offset = {name: torch.randn(tensor.shape) / 100 for name, tensor in state.items()}
    corrections = [Correction(), Correction(0.1, state, offset), Correction(), Correction(0.1, offset, state)]
    tasks = [ClientTask(c, state, 1 / (c + 1), c, correction) for c, correction in enumerate(corrections)]
    tasks += tasks  # a kind of step is captured when it occurs again
    for one, other in zip(eager.run(tasks), captured.run(tasks), strict=True):
        assert one.train_loss == other.train_loss
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    assert recorded.num_steps > 4


def test_a_step_is_captured_once_its_kind_occurs_again(captured_by):
    """A capture costs five steps: batches of 8 and 4 in each epoch, so two epochs repeat both and one epoch none."""
    for max_epochs, expected in ((1, 0), (2, 2)):
        recorded = captured_by(Rehearsed())
        made = executor(optimizer=FUSED_SGD, whole_epochs=True, max_epochs=max_epochs)
        (result,) = made.run([ClientTask(0, made.initial_state(), 1.0, seed=0)])
        assert (result.num_steps, recorded.num_steps) == (2 * max_epochs, expected)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_gives_the_plain_ones_model_captured_or_not(captured_by, optimizer):
    """And a captured one is as new for every client, at its own rate."""
    torch.manual_seed(0)
    plain, whole = (executor(optimizer=made, whole_epochs=True) for made in (optimizer, fused(optimizer)))
    recorded = captured_by(Rehearsed())
    captured = executor(optimizer=fused(optimizer), whole_epochs=True)
    tasks = [ClientTask(client, plain.initial_state(), 1 / (client + 1), seed=client) for client in range(3)]
    for expected, *results in zip(plain.run(tasks), whole.run(tasks), captured.run(tasks), strict=True):
        for result in results:
            assert result.learning_rate_sum == pytest.approx(expected.learning_rate_sum)
            for name, tensor in expected.state.items():
                torch.testing.assert_close(result.state[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert recorded.num_steps > 0


def test_a_step_that_would_read_its_rate_on_the_host_is_not_captured(captured_by):
    recorded = captured_by(Rehearsed())
    made = executor(whole_epochs=True)
    (result,) = made.run([ClientTask(0, made.initial_state(), 1.0, seed=0)])
    assert (result.num_steps, recorded.num_steps) == (4, 0)


@pytest.mark.parametrize("optimizer", [partial(torch.optim.Adagrad, initial_accumulator_value=0.5)])
def test_an_optimizer_that_does_not_start_at_zeros_is_not_captured(captured_by, optimizer):
    recorded = captured_by(Rehearsed())
    made, plain = executor(optimizer=fused(optimizer), whole_epochs=True), executor(optimizer=optimizer)
    tasks = [ClientTask(client, plain.initial_state(), 1.0, seed=client) for client in range(2)]
    for one, other in zip(made.run(tasks), plain.run(tasks), strict=True):
        for name, value in one.state.items():
            torch.testing.assert_close(other.state[name], value, rtol=0, atol=1e-6, msg=name)
    assert recorded.num_steps == 0


class Counting(nn.Module):
    """Adds a buffer to its input that grows with every training step and that no state contains."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()), persistent=False)

    def forward(self, inputs):
        if self.training:
            self.steps.add_(1)
        return inputs + self.steps


def test_a_capture_leaves_no_trace_in_buffers_that_no_state_contains(captured_by):
    def made():
        torch.manual_seed(0)
        return executor(
            nn.Sequential(MLP([16, 3]), Counting(), nn.Linear(3, 3)), optimizer=FUSED_SGD, whole_epochs=True
        )

    eager, recorded, captured = made(), captured_by(Rehearsed()), made()
    tasks = [ClientTask(client, eager.initial_state(), 1.0, seed=client) for client in range(2)]
    for one, other in zip(eager.run(tasks), captured.run(tasks), strict=True):
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    assert recorded.num_steps > 0


@pytest.fixture
def pretended_cuda(monkeypatch):
    """Names of `torch.cuda` that `CudaGraphs` calls, without a GPU; returns what was captured on which stream."""
    entered, captured = [], []

    @contextmanager
    def stream(aside):
        entered.append(aside)
        yield

    @contextmanager
    def graph(graph, pool, stream=None):
        captured.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Mock)
    monkeypatch.setattr(torch.cuda, "current_stream", Mock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", Mock(side_effect=[(0, 1)]))  # one for all captures
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", Mock())
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    return entered, captured


def test_generators_of_a_step_are_registered_before_its_capture(pretended_cuda, monkeypatch):
    made, generators = [], [torch.Generator(), torch.Generator()]
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Mock()) or made[-1])
    CudaGraphs()(lambda: torch.zeros(()), generators)
    assert [given.args[0] for given in made[0].register_generator_state.call_args_list] == generators


def test_a_step_is_captured_on_the_stream_of_its_warm_up(pretended_cuda):
    """Torch's own stream for captures belongs to the device of the process's first capture."""
    graphs = CudaGraphs()
    for _ in range(2):
        graphs(lambda: torch.zeros(()))
    entered, captured = pretended_cuda
    assert entered == captured
    assert captured[0] is captured[1] is not None


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("called a synchronizing CUDA operation"), NotCaptured),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError),
    ],
)
def test_only_a_step_that_waits_ends_all_captures(pretended_cuda, error, raised):
    """Without memory, this client fails; the next ones may have room."""
    with pytest.raises(raised):
        CudaGraphs()(Mock(side_effect=[None, None, None, error]))


class RefusesTheSecond(Rehearsed):
    """Captures one kind of step; the next one waits for the device."""

    graphs = weakref.WeakSet()

    def __call__(self, step, generators):
        if self.num_steps:
            step()
            raise NotCaptured("called a synchronizing CUDA operation")
        replay = super().__call__(step, generators)
        self.graphs.add(replay)
        return replay


@pytest.mark.parametrize(
    "make", [partial(SerialExecutor, whole_epochs=True), partial(VectorizedExecutor, chunk_size=2)]
)
def test_once_a_step_cannot_be_captured_all_graphs_are_freed(make, captured_by):
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    plain, refused = convolutional(make, optimizer=optimizer), captured_by(RefusesTheSecond())
    made = convolutional(make, optimizer=optimizer)
    tasks = [ClientTask(client, plain.initial_state(), 1.0, seed=client) for client in range(5)]
    for one, other in zip(plain.run(tasks), made.run(tasks), strict=True):
        for name, value in one.state.items():
            torch.testing.assert_close(other.state[name], value, rtol=1e-9, atol=1e-9, msg=name)
    gc.collect()
    assert (refused.num_steps, len(refused.graphs)) == (1, 0)


def test_a_step_that_no_graph_can_hold_is_run_as_it_is(captured_by, caplog):
    def refuse(step, generators):
        step()
        raise NotCaptured("called a synchronizing CUDA operation")

    torch.manual_seed(0)
    made = executor(optimizer=fused(torch.optim.SGD), whole_epochs=True)
    tasks = [ClientTask(client, made.initial_state(), 1.0, seed=client) for client in range(2)]
    captured_by(refuse)
    refused = executor(optimizer=fused(torch.optim.SGD), whole_epochs=True)
    for one, other in zip(made.run(tasks), refused.run(tasks), strict=True):
        assert (one.num_steps, one.train_loss) == (other.num_steps, other.train_loss)
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
    warned = [record.args for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [("called a synchronizing CUDA operation",)]


@pytest.mark.parametrize(
    ("optimizer", "precision", "chosen"),
    [
        (torch.optim.SGD, "32-true", {"lr": 0.1, "fused": True}),
        (torch.optim.SGD, "16-mixed", {"lr": 0.1}),
        (partial(torch.optim.SGD, fused=False), "32-true", {"lr": 0.1, "fused": False}),
        (partial(torch.optim.AdamW, foreach=True), "32-true", {"lr": 0.1, "foreach": True}),
        (torch.optim.RMSprop, "32-true", {"lr": 0.1}),
    ],
)
def test_on_a_gpu_the_optimizer_is_the_fused_one_if_nothing_else_was_said(optimizer, precision, chosen, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cuda"))
    made = executor(optimizer=optimizer, precision=precision)
    assert made.module.make_optimizer.keywords == chosen


def test_bfloat16_is_looked_for_on_the_trainers_gpu_not_on_the_current_one(monkeypatch):
    current = ["cuda:0"]

    @contextmanager
    def on(device):
        current.append(str(device))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == "cuda:0")
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cuda:1"))
    with pytest.raises(ValueError, match="precision=bf16-mixed: cuda:1 has no bfloat16; take 16-mixed or 32-true"):
        executor(precision="bf16-mixed")


@pytest.mark.parametrize("raising", ["backward", "correction"])
def test_a_client_that_raises_within_a_step_leaves_nothing_of_eq_9_to_the_next(raising, monkeypatch):
    """Its jacobians would be added to those of the next client's first step; or that client would have none at all."""

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = executor(jacobian_correction=1.0)
    first, second = (ClientTask(client, made.initial_state(), 1.0, seed=0) for client in range(2))
    (expected,) = made.run([second])
    with monkeypatch.context() as patched:
        if raising == "backward":
            patched.setattr(GradientCorrection, "on_after_backward", fail)
        else:
            patched.setattr("fedpara.nn.jacobian.Watch.correction", fail)
        (outcome,) = made.run([first])
        assert isinstance(outcome, ClientFailure)
    (result,) = made.run([second])
    assert all(torch.equal(value, result.state[name]) for name, value in expected.state.items())


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_whole_epochs_take_the_trainers_precision(precision):
    """Also in the backward pass, which autocast leaves alone: a factor's gradient is a product in float32."""
    torch.manual_seed(0)
    networks = [factorize(MLP([16, 8, 3]), FedPara(gamma=0.5)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    plain, whole = (
        executor(n.double() if precision == "64-true" else n, precision=precision, whole_epochs=w)
        for n, w in zip(networks, (False, True), strict=True)
    )
    task = ClientTask(0, plain.initial_state(), 1.0, seed=0)
    (one,), (other,) = plain.run([task]), whole.run([task])
    assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())


@pytest.mark.parametrize("executor_class", [partial(SerialExecutor, whole_epochs=True), VectorizedExecutor])
def test_no_step_sees_the_last_ones_weights_in_autocasts_memory(executor_class, monkeypatch):
    """Lightning 2.6 has none; with one, an epoch within one autocast would train on its first step's weights."""
    cached = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=True)
    monkeypatch.setattr(MixedPrecision, "autocast_context_manager", lambda self: cached())
    torch.manual_seed(0)
    plain = executor(MLP([16, 8, 3]), precision="bf16-mixed")
    whole = executor_class(plain.training)
    task = ClientTask(0, plain.initial_state(), 1.0, seed=0)
    (one,), (other,) = plain.run([task]), whole.run([task])
    for name, value in one.state.items():
        torch.testing.assert_close(other.state[name], value, rtol=0, atol=1e-6, msg=name)


def test_corrections_of_a_shape_are_always_in_the_same_memory():
    """Clients of one chunk have other shapes than one client, whose captured step would look there."""
    gradient = GradientCorrection()
    places = []
    for clients in ((), (3,), ()):
        network = nn.ParameterDict({"w": torch.ones(*clients, 2)})
        network["w"].grad = torch.zeros(*clients, 2)
        module = SimpleNamespace(network=network, device=torch.device("cpu"))
        gradient.correction = Correction(offset={"w": torch.ones(*clients, 2)})
        gradient.on_train_start(None, module)
        with Recording() as recording:
            gradient.on_before_optimizer_step(None, module, None)
        (added,) = (given[1] for operator, given, *_ in recording.calls if operator is torch.ops.aten.add_.Tensor)
        places.append(added.data_ptr())
    assert places[0] == places[2] != places[1]


def test_float32_is_float32_in_convolutions_too():
    """cuDNN has a switch of its own, on unless said otherwise."""
    for precision in ("high", "highest"):
        made = executor()
        SerialExecutor(replace(made.training, matmul_precision=precision))
        assert torch.backends.cudnn.allow_tf32 == (precision == "high")


@pytest.mark.parametrize("scaled", [False, True])
def test_a_trainer_with_a_loss_scale_is_not_kept_for_the_next_client(scaled, monkeypatch):
    """Which steps are skipped would depend on who trained before."""
    made = executor()
    made._scaled = scaled  # as where there is a GPU
    trainers, trainer = [], LocalTraining.trainer
    monkeypatch.setattr(LocalTraining, "trainer", lambda training: trainers.append(0) or trainer(training))
    list(made.run([ClientTask(client, made.initial_state(), 1.0, seed=0) for client in range(3)]))
    assert len(trainers) == (3 if scaled else 1)


def test_a_gpus_whole_epochs_take_no_batches_of_loader_workers(monkeypatch):
    made = executor()
    made.datamodule.num_workers = 1
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cuda"))
    with pytest.raises(ValueError, match=r"data\.num_workers=1: must be 0, or executor\.whole_epochs=false"):
        SerialExecutor(made.training, whole_epochs=True)


@pytest.mark.parametrize("recipe", [FedPara(gamma=0.4), PFedPara(gamma=0.4), EqualSizeLowRank(gamma=0.4)])
@pytest.mark.parametrize("num_clients", [None, 3])
def test_a_step_stays_on_its_device(recipe, num_clients, monkeypatch):
    """On the meta device, which mixes with no other: a constant left on the CPU would be an error on a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for it
    network = factorize(VGG([[4, 8], [8]], [6], 3, in_channels=2, dropout=0.0), recipe)
    network = (Folded(network, num_clients) if num_clients else network).to("meta")
    augment, normalize = CropAndFlip(), Normalize((0.5, 0.5), (0.25, 0.25))
    pixels = torch.zeros(5, 2, 8, 8, dtype=torch.uint8, device="meta")
    inputs = normalize(augment(pixels, augment.draw(5, torch.Generator()).to("meta")))
    logits = network(torch.stack([inputs] * num_clients, 1) if num_clients else inputs)
    logits.sum().backward()
    for _, factorization in factorizations(network):
        jacobian_correction(factorization, torch.empty_like(factorization()), 0.1)
    assert {parameter.grad.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "overrides",
    [["executor=vectorized"], ["executor=processes"], ["executor=ray", "executor@executor.inner=vectorized"]],
)
def test_a_gpus_steps_are_captured_unless_a_key_says_otherwise(overrides, monkeypatch):
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cuda"))
    for wanted in (True, False):
        key = "executor.capture" if len(overrides) == 1 and "vectorized" in overrides[0] else "executor.inner.capture"
        chosen = composed(*overrides, f"{key}={str(wanted).lower()}").executor
        chosen = chosen.get("inner", chosen)
        made = get_class(chosen._target_)(executor().training, capture=chosen.capture)
        assert isinstance(made.capture, CudaGraphs) == wanted


def test_whole_epochs_refuse_what_they_leave_out():
    with pytest.raises(ValueError, match=r"gradient_clip_val=1\.0: must be absent, or executor\.whole_epochs=false"):
        executor(gradient_clip_val=1.0, whole_epochs=True)


@pytest.mark.gpu
def test_a_local_epoch_never_waits_for_the_gpu(monkeypatch):
    torch.manual_seed(0)
    made = executor(accelerator="gpu", precision="bf16-mixed", max_epochs=3, whole_epochs=True)
    made.datamodule.to(made.device)
    tasks = [ClientTask(client, made.initial_state(), 1.0, seed=client) for client in range(3)]
    list(made.run(tasks))  # captures every shape, which waits
    step = WholeEpochs.training_step

    def watched(module, epoch, index):
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(module, epoch, index)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(WholeEpochs, "training_step", watched)
    for result, eager in zip(made.run(tasks), executor(accelerator="gpu", max_epochs=3).run(tasks), strict=True):
        for name, value in result.state.items():
            torch.testing.assert_close(value.cpu(), eager.state[name].cpu(), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    "make",
    [partial(SerialExecutor, whole_epochs=False), partial(SerialExecutor, whole_epochs=True), VectorizedExecutor],
    ids=["serial", "whole", "many"],
)
def test_no_two_purposes_epochs_or_tasks_share_a_stream(monkeypatch, make):
    """Dropout, batch order and augmentation, two epochs each, of tasks whose seeds follow each other."""
    seeds, seed_all = [], torch.manual_seed

    class Recorded(torch.Generator):
        def manual_seed(self, seed):
            seeds.append(seed)
            return super().manual_seed(seed)

    monkeypatch.setattr(torch, "Generator", Recorded)
    federation = make_federation(dropout=0.5, executor=make)
    data, state = federation.executor.datamodule, federation.executor.initial_state()
    data.transform = CropAndFlip(1)
    data.setup()
    tasks = [ClientTask(client, state, 1.0, seed=7 + client) for client in range(3)]
    list(federation.executor.run(tasks))  # the first of all looks at a batch besides
    seeds.clear()
    recording = SimpleNamespace(manual_seed=lambda seed: seeds.append(seed) or seed_all(seed))
    monkeypatch.setattr(torch, "default_generator", recording)
    assert all(isinstance(result, LocalResult) for result in federation.executor.run(tasks))
    assert len(seeds) == 3 * (1 + 2 * (1 + 1 + 2))  # of each epoch the order, the seeds of its two batches, and those
    assert len(set(seeds)) == len(seeds)
