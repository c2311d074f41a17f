"""Nothing native aborts, and no client's training leaves anything for the next one's, whatever the Trainer is given."""

import inspect
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import hydra
import pytest
import torch
from pytorch_lightning import Callback, callbacks
from pytorch_lightning.profilers import SimpleProfiler
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from fedpara.app.build import build
from fedpara.app.errors import line_of
from fedpara.data import IID, FederatedDataModule
from fedpara.data.partition import ClientIndices
from fedpara.errors import CrashesAgain, WorkerKilled
from fedpara.execution import (
    AutoExecutor,
    ClientTask,
    FaultInjection,
    ProcessesExecutor,
    SerialExecutor,
    VectorizedExecutor,
    onednn,
)
from fedpara.execution.onednn import contiguous, is_affected
from fedpara.execution.training import OF_EVERY_FIT
from fedpara.federation import simulated
from fedpara.models import MLP, VGG, ClassificationModule
from fedpara.nn import Dense, FedPara, factorize
from helpers import ROOT
from helpers.federations import local_training, make_federation, tiny_images


class Shortcuts(nn.Module):
    """Strided 1x1 convolutions of few channels: a layer, a functional call, and one whose weight is factorised."""

    keep_dense = ["first", "layer", "head"]

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.layer = nn.Conv2d(6, 5, 1, stride=2)
        self.weight = nn.Parameter(torch.randn(16, 5))
        self.factorised = nn.Conv2d(6, 16, 1, stride=4)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        hidden = torch.tanh(self.first(images))
        called = F.conv2d(torch.tanh(self.layer(hidden)), self.weight[:, :, None, None], stride=2)
        return self.head((called + self.factorised(hidden)).mean((2, 3)))


class InTrainingOnly(Shortcuts):
    """Its convolutions are functional calls that testing does not need."""

    recipe, keep_dense = Dense(), None

    def __init__(self):
        super().__init__()
        self.layer = self.factorised = None
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        hidden = torch.tanh(self.first(images))
        if self.training:
            hidden = hidden + F.conv2d(hidden[:, :5], self.weight[:6, :, None, None], stride=2).mean()
        return self.head(hidden.mean((2, 3)))


class LayersAlone(nn.Sequential):
    """As `Shortcuts`, so that it can be folded."""

    recipe = Dense()

    def __init__(self):
        first = nn.Conv2d(1, 6, 3, padding=1), nn.Tanh()
        shortcuts = nn.Conv2d(6, 5, 1, stride=2), nn.Tanh(), nn.Conv2d(5, 16, 1, stride=2), nn.Tanh()
        super().__init__(*first, *shortcuts, nn.Flatten(), nn.Linear(256, 3))


def large_images():
    """16 x 16: of smaller ones oneDNN overruns so little that nothing notices."""
    data = tiny_images()
    train, test = (
        replace(part, inputs=part.inputs.repeat_interleave(4, -1).repeat_interleave(4, -2))
        for part in (data.train, data.test)
    )
    return replace(data, train=train, test=test)


def made_of(network, executor=SerialExecutor, images=tiny_images, batch_size=8, epochs=2, lone="keep", **options):
    torch.manual_seed(0)
    network = network()
    factorize(network, getattr(network, "recipe", FedPara(gamma=0.5)), exclude=getattr(network, "keep_dense", None))
    module = ClassificationModule(network, partial(torch.optim.SGD, lr=0.1), 3)
    data = FederatedDataModule(
        images, IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=batch_size, lone_example=lone
    )
    data.setup()
    return executor(local_training(module, data, **{"max_epochs": epochs} | options))


def tasks(made, clients):
    state = made.initial_state()
    return [ClientTask(client, state, 1.0, seed=client) for client in clients]


def by_hand(network):
    """The state after client 1's training in contiguous memory and float64."""
    made = made_of(network, images=large_images)
    (task,) = tasks(made, [1])
    plain = made.module.network.double().to(memory_format=torch.contiguous_format)
    for parameter in plain.parameters():
        parameter.data = contiguous(parameter.data)
    optimizer, loader = torch.optim.SGD(plain.parameters(), lr=0.1), made.datamodule.client_dataloader(1, task.seed)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(plain(contiguous(images.double())), labels).backward()
            optimizer.step()
    return plain.state_dict()


EXECUTORS = {
    "serial": (SerialExecutor, Shortcuts),
    "whole_epochs": (partial(SerialExecutor, whole_epochs=True), Shortcuts),
    "vectorized": (partial(VectorizedExecutor, chunk_size=3), LayersAlone),
    "processes": (partial(ProcessesExecutor, workers=1), Shortcuts),
    "auto": (AutoExecutor, LayersAlone),
}


def train_shortcuts(*names):
    """In a process of its own: see `test_strided_1x1_convolutions_of_few_channels`."""
    for name in names:
        executor, network = EXECUTORS[name]
        made = made_of(network, executor, images=large_images)
        made.prepare()
        for _ in range(5):  # memory that is overrun is not always missed at once
            _, result, _ = made.run(tasks(made, [0, 1, 2]))
            made.evaluate(result.state)
        made.close()
        for key, value in by_hand(network).items():
            torch.testing.assert_close(result.state[key].double(), value, rtol=1e-5, atol=1e-5)
        print(name, "is right", flush=True)


ENVIRONMENT = os.environ | {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests", "tests/execution")),
}


@pytest.mark.slow
@pytest.mark.parametrize("names", [["serial", "whole_epochs", "vectorized"], ["processes", "auto"]], ids="+".join)
def test_strided_1x1_convolutions_of_few_channels(names):
    """With AVX2's kernels, which any x86 processor can be told to take: without the guard the process is killed."""
    program = [sys.executable, "-c", f"import test_sound; test_sound.train_shortcuts(*{names})"]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    died = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
    assert done.stdout.splitlines() == [f"{name} is right" for name in names], f"{died}: {done.stderr[-2000:]}"


@pytest.mark.parametrize(
    ("weight", "stride", "affected"),
    [
        ((16, 7, 1, 1), (2, 2), True),
        ((16, 15, 1, 1), (1, 2), True),
        ((16, 3, 1, 1, 1), (2, 2, 2), True),
        ((16, 16, 1, 1), (2, 2), False),
        ((16, 7, 1, 1), (1, 1), False),
        ((16, 7, 3, 3), (2, 2), False),
    ],
)
def test_which_convolutions_are_kept_from_onednn(weight, stride, affected):
    assert is_affected(weight, stride) == affected


@pytest.mark.parametrize(
    ("network", "guarded"),
    [
        (Shortcuts, True),
        (LayersAlone, True),
        (InTrainingOnly, True),
        (lambda: VGG([[4, 8], [8]], [6], 3, in_channels=1, dropout=0.0), False),
    ],
)
@pytest.mark.parametrize("options", [{}, {"callbacks": [Callback()]}], ids=["run", "rehearsal"])
def test_only_a_network_with_such_convolutions_is_guarded(network, guarded, options, monkeypatch):
    """Nothing else pays for the check, and all weights are in channels_last memory."""
    installed, install = [], onednn._install  # done all the same: what is unguarded may end the suite
    monkeypatch.setattr(onednn, "_install", lambda: installed.append(install()))
    made = made_of(network, images=large_images, **options)
    made.rehearse()
    assert bool(installed) == (guarded and bool(options))
    list(made.run(tasks(made, [0])))
    assert bool(installed) == guarded
    kernels = [p for p in made.module.network.parameters() if p.dim() == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_copies_for_a_users_callback_have_the_layout_of_the_module():
    """Convolutions are in channels_last memory, which a copy from before that choice would not be."""
    network = VGG([[4, 8], [8]], [64, 64], 3, in_channels=1, dropout=0.0)
    network.keep_dense = ["features.*"]
    made = made_of(lambda: network, callbacks=[Callback()])
    for module in (made.module, made._own_module()):
        kernels = [p for p in module.network.parameters() if p.dim() == 4]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_a_guarded_convolution_is_computed_in_contiguous_memory():
    """Strides of 1 leave the choice, and `Tensor.contiguous` leaves such a tensor as it is."""
    images = torch.randn(4, 1, 8, 8).to(memory_format=torch.channels_last)
    assert images.contiguous().stride() == (64, 1, 8, 1)
    assert contiguous(images).stride() == (64, 64, 8, 1)


@pytest.mark.parametrize("inputs_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
def test_a_guarded_convolution_gives_gradients_in_the_memory_that_a_compiled_network_expects(
    inputs_format, weight_format
):
    onednn.guard(nn.Conv2d(6, 5, 1, stride=2), torch.randn(4, 6, 8, 8))
    images = torch.randn(4, 6, 8, 8).to(memory_format=inputs_format)
    weight = torch.randn(5, 6, 1, 1).to(memory_format=weight_format)
    given = torch.randn(4, 5, 4, 4), images, weight, [5], [2, 2], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3
    found = torch.ops.aten.convolution_backward(*given)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in given]
        expected = torch.ops.aten.convolution_backward(*fake)
    for gradient, like in zip(found, expected, strict=True):
        assert_laid_out_alike(gradient, like)


def assert_laid_out_alike(gradient, like):
    """Shape, and stride where a dimension has more than one place."""
    assert gradient.shape == like.shape
    assert all(a == b for size, a, b in zip(gradient.shape, gradient.stride(), like.stride(), strict=True) if size > 1)


def buildable():
    """Every callback class that Lightning exports and that can be made without arguments."""
    for name in callbacks.__all__:
        kind = getattr(callbacks, name)
        parameters = list(inspect.signature(kind).parameters.values())
        if all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            yield kind


def same(first, second):
    return all(torch.equal(first.state[name], value) for name, value in second.state.items())


def allowed(**options):
    """A serial executor with the options, rehearsed; None where it is refused, as it must be in one line."""
    try:
        made = made_of(lambda: MLP([16, 8, 3]), epochs=3, **options)
        made.rehearse()
    except (ValueError, TypeError, MisconfigurationException):
        return None
    return made


@pytest.mark.parametrize("kind", list(buildable()), ids=lambda kind: kind.__name__)
def test_a_callback_starts_every_client_as_it_was_configured(kind):
    try:
        options = {"callbacks": [kind()]}
    except ModuleNotFoundError:
        pytest.skip("needs a package that is not at hand")
    if (made := allowed(**options)) is None:
        return
    *_, third = made.run(tasks(made, [0, 1, 2]))
    (alone,) = allowed(callbacks=[kind()]).run(tasks(made, [2]))
    assert same(third, alone)


def test_averaging_of_weights_is_seen_and_is_the_clients_own():
    """The fault: every client after the first sent the broadcast back."""
    made = allowed(callbacks=[callbacks.WeightAveraging()])
    broadcast = made.initial_state()
    plain, averaged = (list(m.run(tasks(made, [0, 1]))) for m in (allowed(), made))
    for without, with_average in zip(plain, averaged, strict=True):
        assert not same(without, with_average)
        assert any(not torch.equal(with_average.state[name], value) for name, value in broadcast.items())


class Leaving(Callback):
    """Leaves what it can behind: in itself, in the Trainer, in the module, in the network."""

    def __init__(self):
        self.seen = 0

    def on_train_start(self, trainer, pl_module):
        self.seen += 1
        for group in trainer.optimizers[0].param_groups:
            group["lr"] *= self.seen
        next(pl_module.network.parameters()).requires_grad_(False)
        pl_module.network.register_forward_hook(lambda module, inputs, output: output * 1.5)
        pl_module.learning_rate_factor = 0.1
        trainer.accumulate_grad_batches = 2


@pytest.mark.parametrize(
    "executor",
    [SerialExecutor, pytest.param(partial(ProcessesExecutor, workers=1), marks=pytest.mark.slow)],
    ids=["serial", "processes"],
)
def test_what_a_callback_leaves_behind_is_gone(executor):
    made = made_of(lambda: MLP([16, 8, 3]), executor, callbacks=[Leaving()])
    *_, third = made.run(tasks(made, [0, 1, 2]))
    made.evaluate(third.state)
    (alone,) = made_of(lambda: MLP([16, 8, 3]), callbacks=[Leaving()]).run(tasks(made, [2]))
    made.close()
    assert same(third, alone)


class Remembering(MLP):
    """Buffers that are in no state: a running mean, a cache that grows, a constant that cannot be written."""

    def __init__(self):
        super().__init__([16, 8, 3])
        self.register_buffer("mean", torch.zeros(()), persistent=False)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.register_buffer("ones", torch.ones(1).expand(3), persistent=False)

    def forward(self, images):
        if self.training:
            self.mean.lerp_(images.mean(), 0.5)
            self.seen = torch.cat([self.seen, images.mean().view(1)])
        return super().forward(images - self.mean - self.seen.mean()) * self.ones


@pytest.mark.parametrize("options", [{}, {"executor": partial(SerialExecutor, whole_epochs=True)}], ids=["", "whole"])
def test_buffers_that_are_in_no_state_start_every_client_as_they_were_built(options):
    made = made_of(Remembering, **options)
    *_, third = made.run(tasks(made, [0, 1, 2]))
    again = made_of(Remembering, **options)
    (alone,) = again.run(tasks(made, [2]))
    assert same(third, alone)
    state = made.initial_state()
    assert made.evaluate(state) == again.evaluate(state) == made_of(Remembering).evaluate(state)


@pytest.mark.slow
def test_a_profiler_starts_anew_and_batched_computations_refuse_what_they_would_change():
    profiler = SimpleProfiler()
    made = made_of(lambda: MLP([16, 8, 3]), profiler=profiler)
    list(made.run(tasks(made, [0, 1])))
    assert not profiler.recorded_durations  # a copy has them
    for executor in (partial(SerialExecutor, whole_epochs=True), VectorizedExecutor):
        with pytest.raises(ValueError, match=r"callbacks=.*must be absent"):
            made_of(lambda: MLP([16, 8, 3]), executor, callbacks=[Leaving()])
    made = made_of(lambda: MLP([16, 8, 3]), AutoExecutor, callbacks=[Leaving()])
    made.prepare()
    made.rehearse()
    list(made.run(tasks(made, [0])))
    made.close()


@pytest.mark.parametrize("name", OF_EVERY_FIT)
def test_what_a_clients_trainer_cannot_be_given_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=3: must be absent from a client's Trainer; see "):
        made_of(lambda: MLP([16, 8, 3]), **{name: 3})


class Stopping(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.current_epoch > 0


def test_a_callback_that_cuts_epochs_is_named():
    made = made_of(lambda: MLP([16, 8, 3]), epochs=4, callbacks=[Stopping()])
    with pytest.raises(ValueError, match=r"client 0 trained on 16 examples, not on the 32 .*trainer\.callbacks"):
        made.rehearse()
    (failure,) = made.run(tasks(made, [0]))
    assert "client 0 trained on" in str(failure.error)
    assert "trainer.callbacks" in str(failure.error)


def test_a_callback_that_adds_epochs_is_refused_before_training():
    made = made_of(with_batch_norm, epochs=4, callbacks=[callbacks.StochasticWeightAveraging(0.01)])
    with pytest.raises(ValueError, match="trained on 40 examples, not on the 32 of its 4 epochs"):
        made.rehearse()


class Refusing(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_start(self, trainer, pl_module):
        raise self.error


@pytest.mark.parametrize("error", [AssertionError(), KeyError("lr")])
def test_a_refusal_without_words_or_without_a_sentence_names_its_type(error):
    line = f"cannot be trained with this Trainer and module: {type(error).__name__}"
    with pytest.raises(ValueError, match=line):
        made_of(lambda: MLP([16, 8, 3]), callbacks=[Refusing(error)]).rehearse()


def test_lists_of_plain_values_are_no_objects():
    """As `devices=[0]`, which a worker on a GPU is given: whole epochs take it."""
    made = made_of(lambda: MLP([16, 8, 3]), partial(SerialExecutor, whole_epochs=True), callbacks=[], plugins=[])
    assert [result.num_steps for result in made.run(tasks(made, [0]))] == [4]


def with_batch_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


@pytest.mark.parametrize("executor", [SerialExecutor, AutoExecutor, partial(ProcessesExecutor, workers=1)])
def test_a_last_batch_of_one_under_a_batch_norm_is_found_before_training(executor):
    made = made_of(with_batch_norm, executor, batch_size=11)  # twelve examples a client
    with pytest.raises(ValueError, match=r"clients 0, 1, 2, 3, 4 have a batch of a single example.*lone_example=merge"):
        made.prepare()
    made.close()
    made_of(with_batch_norm, executor, batch_size=10).prepare()
    made_of(lambda: MLP([16, 8, 3]), executor, batch_size=11).prepare()


def test_a_client_with_a_single_example_is_told_another_way_out():
    made = made_of(with_batch_norm, lone="merge")
    parts = list(made.datamodule.parts)
    made.datamodule.parts = ClientIndices.of([*parts[:3], parts[3][:1], *parts[4:]])
    with pytest.raises(ValueError, match=r"clients 3 have .*they have no other example; take another partition"):
        made.prepare()
    with pytest.raises(ValueError, match=r"take a larger data\.batch_size"):
        made_of(with_batch_norm, batch_size=1).prepare()


def test_a_frozen_batch_norm_may_have_a_batch_of_one():
    made = made_of(with_batch_norm, batch_size=11)
    made.module.network[2].eval()
    made.prepare()
    assert [result.num_steps for result in made.run(tasks(made, [0]))] == [4]


@pytest.mark.parametrize(("lone", "sizes"), [("keep", [11, 1]), ("merge", [12]), ("drop", [11])])
def test_a_lone_example_is_kept_merged_or_dropped(lone, sizes):
    network = with_batch_norm if lone != "keep" else lambda: MLP([16, 8, 3])
    made = made_of(network, batch_size=11, lone=lone)
    loader = made.datamodule.client_dataloader(0, seed=0)
    assert [len(labels) for _, labels in loader] == sizes
    keys = loader.sampler
    assert (len(keys), keys.num_examples, keys.has_lone_example) == (len(sizes), sum(sizes), lone == "keep")
    made.prepare()
    (result,) = made.run(tasks(made, [0]))
    assert (result.num_examples, result.num_steps) == (12, 2 * len(sizes))
    for executor in (partial(SerialExecutor, whole_epochs=True), VectorizedExecutor):
        if lone != "keep" and executor is VectorizedExecutor:
            continue  # which folds no batch norm
        (other,) = made_of(network, executor, batch_size=11, lone=lone).run(tasks(made, [0]))
        assert other.train_loss == pytest.approx(result.train_loss)


class TwoOutputs(MLP):
    def forward(self, images):
        return super().forward(images), images


def test_a_network_that_gives_a_tuple_is_refused():
    with pytest.raises(ValueError, match="TwoOutputs gives a tuple, not a logit for each of the classes"):
        made_of(lambda: TwoOutputs([16, 8, 3])).prepare()


def test_every_layer_is_in_its_own_mode_again_after_a_try():
    made = made_of(with_batch_norm, batch_size=12)
    made.module.network[2].eval()
    made.prepare()
    assert [layer.training for layer in made.module.network] == [True, True, False, True]


class Crashing(MLP):
    """Cannot be trained with the brightest image."""

    def forward(self, images):
        if self.training and images.max() > 1.5:
            raise ValueError("too bright")
        return super().forward(images)


def crashing(**options):
    federation = make_federation(network=lambda: Crashing([16, 8, 3]), clients_per_round=5, num_rounds=4, **options)
    federation.executor.datamodule.examples[0].inputs[7] = 255
    return federation


def test_a_client_that_crashes_in_two_rounds_running_ends_the_run():
    federation = crashing()
    with pytest.raises(
        CrashesAgain, match=r"client \d failed in 2 of its rounds running, crashed \(ValueError: too br"
    ):
        federation.fit()
    assert federation.round == 1
    federation = crashing(max_crashes=None)
    federation.fit()
    assert federation.round == 4


def test_crashes_that_were_allowed_end_a_run_that_goes_on_without_leave():
    federation = crashing(max_crashes=None)
    federation.num_rounds = 3
    federation.fit()
    federation.num_rounds, federation.max_crashes = 5, 2
    with pytest.raises(CrashesAgain, match="failed in 4 of its rounds running"):
        federation.fit()


def test_a_run_that_ends_by_its_workers_death_is_one_line():
    assert line_of(WorkerKilled("a client's worker process died: SIGSEGV")).endswith("died: SIGSEGV")


def test_injected_crashes_do_not_end_a_run():
    federation = make_federation(
        clients_per_round=5, num_rounds=4, clients=lambda executor: simulated(FaultInjection(executor, crash=0.7))
    )
    federation.fit()
    assert federation.round == 4
    assert federation.crashes == {}


def test_callbacks_that_hydra_made_are_copied_too():
    """A deep copy of OmegaConf's list shares what lies in it."""
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        given = "+trainer.callbacks=[{_target_: pytorch_lightning.callbacks.WeightAveraging}]"
        cfg = hydra.compose("train", ["debug=default", "model=mlp", "trainer=cpu", "trainer.max_epochs=3", given])
    first, second = of_config(cfg, [0, 1])
    (alone,) = of_config(cfg, [1])
    assert same(second, alone)
    assert not same(first, second)


def of_config(cfg, clients):
    experiment, _ = build(cfg)
    experiment.datamodule.setup()
    return list(experiment.executor.run(tasks(experiment.executor, clients)))


def test_the_training_loss_is_that_of_the_batches_where_gradients_are_accumulated():
    (plain,) = (made := made_of(lambda: MLP([16, 8, 3]), epochs=1, batch_size=12)).run(tasks(made, [0]))
    (other,) = (made := made_of(lambda: MLP([16, 8, 3]), epochs=1, batch_size=12, accumulate_grad_batches=3)).run(
        tasks(made, [0])
    )
    assert other.train_loss == pytest.approx(plain.train_loss)


@pytest.mark.slow
def test_freed_memory_stays_with_the_process():
    """A network's activations come back page by page otherwise, each filled with zeros by the system."""
    code = """
import resource, torch
from fedpara.heap import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    for _ in range(4):
        del [torch.ones(2**size) for size in (20, 21, 22, 23)][:]
for prepare in (lambda: None, keep_freed_memory):
    prepare()
    step()
    before = faults()
    step()
    print(faults() - before)
"""
    lost, kept = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert kept < lost / 2
