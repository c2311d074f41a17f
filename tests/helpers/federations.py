"""Tiny federations on the CPU, and what is said of them."""

from dataclasses import fields
from functools import partial

import torch

from fedpara.algorithms import FedAvg
from fedpara.callbacks import Checkpoint, restore
from fedpara.communication import Cast, Link
from fedpara.data import IID, DataSet, Dirichlet, Examples, FederatedDataModule, Normalize
from fedpara.execution import LocalTraining, SerialExecutor
from fedpara.federation import Federation, FederationCallback, simulated
from fedpara.models import MLP, VGG, ClassificationModule
from fedpara.nn import FedPara, PFedPara, factorize, stacked_factors
from fedpara.sharing import Split
from fedpara.state import first_names, join


def tiny_images(num_train=60, num_test=30, num_classes=3, seed=0):
    """Grey 4x4 images whose label shows in their brightness, so that training has something to learn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        labels = torch.arange(size) % num_classes
        noise = torch.randint(60, (size, 1, 4, 4), generator=generator)
        return Examples((noise + 60 * labels[:, None, None, None]).to(torch.uint8), labels)

    return DataSet("tiny", draw(num_train), draw(num_test), num_classes, Normalize((0.5,), (0.25,)))


def local_training(module, data, **options):
    """How clients are trained on the CPU: arguments of `LocalTraining`, any other is the Trainer's."""
    given = {"accelerator": "cpu", "max_epochs": 2} | options
    own = {name: given.pop(name) for name in [one.name for one in fields(LocalTraining)] if name in given}
    return LocalTraining(module, data, **own, options=given)


def make_federation(
    seed=0,
    personal=None,
    recipe=None,
    max_epochs=2,
    lr=0.1,
    codec="float32",
    down="float32",
    dropout=0.0,
    algorithm=None,
    partition=None,
    executor=SerialExecutor,
    network=None,
    factorizing=None,
    training=None,
    clients=None,
    link=None,
    split=Split,
    optimizer=None,
    **options,
):
    """A federation of 5 clients over `tiny_images`, on the CPU, ready to fit.

    `executor` is called with a `LocalTraining`, `network`, an MLP where it is None, with nothing, `clients` with the
    executor: where it is None, they keep their states in the files of a `Checkpoint`, or else in memory. `factorizing`
    are other arguments of `factorize`.
    """
    torch.manual_seed(seed)
    network = network() if network else MLP([16, 8, 3])
    if dropout:
        network.layers.insert(2, torch.nn.Dropout(dropout))
    factorize(network, recipe or (PFedPara if personal else FedPara)(gamma=1.0), **factorizing or {})
    module = ClassificationModule(network, optimizer or partial(torch.optim.SGD, lr=lr), 3)
    data = FederatedDataModule(
        tiny_images, partition or IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8, seed=seed
    )
    data.setup()
    executor = executor(local_training(module, data, max_epochs=max_epochs, **training or {}))
    names = list(executor.initial_state())
    split = split(names, personal, first_names(network), stacks=stacked_factors(network))
    settings = {"num_clients": 5, "clients_per_round": 2, "num_rounds": 3, "lr_decay": 1.0, "seed": seed} | options
    callbacks = settings.pop("callbacks", [])
    keeping = [callback.clients for callback in callbacks if isinstance(callback, Checkpoint)]
    settings["clients"] = (clients or next(iter(keeping), simulated))(executor)
    return Federation(
        executor, algorithm or FedAvg(), link or Link(Cast(codec), Cast(down)), split, callbacks, **settings
    )


def convolutional(
    executor, double=True, network=None, optimizer=None, precision=None, strength=0.0, accelerator="cpu", **options
):
    """A VGG with dropout, GroupNorm and two factorised stages on clients of unequal size."""
    torch.manual_seed(0)
    if network is None:
        network = factorize(VGG([[4, 8], [8]], [6], 3, in_channels=1, dropout=0.4), FedPara(gamma=0.4))
    network = network.double() if double else network
    optimizer = optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    module = ClassificationModule(network, optimizer, 3)
    data = FederatedDataModule(
        tiny_images, Dirichlet(0.4, 3), num_clients=5, num_classes=3, in_channels=1, batch_size=8
    )
    data.setup()
    training = {"precision": precision or ("64-true" if double else "32-true"), "accelerator": accelerator}
    made = executor(local_training(module, data, jacobian_correction=strength, **training), **options)
    data.to(made.device)
    return made


class Watch(FederationCallback):
    def __init__(self):
        self.records, self.reports, self.outcome = [], [], None

    def on_client_end(self, federation, report):
        self.reports.append(report)

    def on_round_end(self, federation, record):
        self.records.append(record)

    def on_fit_end(self, federation, outcome):
        self.outcome = outcome


def watched(**options):
    """A federation, and the results of its clients' trainings, which no server sees."""
    federation, results = make_federation(**options), []
    run = federation.executor.run

    def noting(tasks):
        for result in run(tasks):
            results.append(result)
            yield result

    federation.executor.run = noting
    return federation, results


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def require_same_bits_if_resumed(federation, tmp_path):
    """Three rounds at once, and one and then the rest, of what `federation(folder, num_rounds)` makes."""
    whole = federation(tmp_path / "whole", 3)
    whole.fit()
    federation(tmp_path / "parts", 1).fit()
    rest = federation(tmp_path / "parts", 3)
    restore(rest, tmp_path / "parts")
    rest.fit()
    assert same(join(rest.server), join(whole.server))
