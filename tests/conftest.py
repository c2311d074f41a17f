"""Shared pieces: a tiny image set, a tiny federation over it, and the real data where they lie beside the checkout."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import hypothesis
import pytest
import pytorch_lightning
import torch
from filelock import FileLock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedpara.algorithms import FedAvg
from fedpara.callbacks import Checkpoint
from fedpara.communication import Cast, Link
from fedpara.data import IID, DataSet, Examples, FederatedDataModule, Normalize
from fedpara.execution import SerialExecutor
from fedpara.federation import Federation, simulated
from fedpara.models import MLP, ClassificationModule
from fedpara.nn import FedPara, PFedPara, factorize
from fedpara.sharing import Split
from fedpara.state import first_names

hypothesis.settings.register_profile("repository", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("repository")
ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
torch.set_num_threads(1)


def thinned(cases, every=2):
    """Each so many-th case by default; the others are slow, and CI has them all."""
    for number, case in enumerate(cases):
        values = case if isinstance(case, tuple) else (case,)
        yield pytest.param(*values, marks=pytest.mark.slow if number % every else ())


def tiny_images(num_train=60, num_test=30, num_classes=3, seed=0):
    """Grey 4x4 images whose label shows in their brightness, so that training has something to learn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size):
        labels = torch.arange(size) % num_classes
        noise = torch.randint(60, (size, 1, 4, 4), generator=generator)
        return Examples((noise + 60 * labels[:, None, None, None]).to(torch.uint8), labels)

    return DataSet("tiny", draw(num_train), draw(num_test), num_classes, Normalize((0.5,), (0.25,)))


class Recording(TorchDispatchMode):
    """The rules of a CUDA graph on a CPU: operators on memory, recorded; a replay runs no Python.

    An operator for which a GPU and the host wait for each other is an error.
    """

    waiting = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        assert operator not in self.waiting, f"{operator} waits"
        result = operator(*args, **(kwargs or {}))
        self.calls.append((operator, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd(), torch.autocast("cpu", enabled=False):
            for operator, args, kwargs, result in self.calls:
                for there, new in zip(tree_leaves(result), tree_leaves(operator(*args, **kwargs)), strict=True):
                    if isinstance(new, torch.Tensor) and new.data_ptr() != there.data_ptr():
                        there.copy_(new)


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
    num_dense=0,
    clients=None,
    **options,
):
    """A federation of 5 clients over `tiny_images`, on the CPU, ready to fit.

    `executor` is called with module, data and trainer, `network`, an MLP where it is None, with nothing, `clients` with
    the executor: where it is None they keep what is theirs where a `Checkpoint` names it, or else in memory.
    """
    torch.manual_seed(seed)
    network = network() if network else MLP([16, 8, 3])
    if dropout:
        network.layers.insert(2, torch.nn.Dropout(dropout))
    factorize(network, recipe or (PFedPara if personal else FedPara)(gamma=1.0), num_dense=num_dense)
    module = ClassificationModule(network, partial(torch.optim.SGD, lr=lr), 3)
    data = FederatedDataModule(
        tiny_images, partition or IID(), num_clients=5, num_classes=3, in_channels=1, batch_size=8, seed=seed
    )
    data.setup()
    trainer = partial(pytorch_lightning.Trainer, accelerator="cpu", max_epochs=max_epochs)
    executor = executor(module, data, trainer)
    split = Split(list(executor.initial_state()), personal, first_names(network))
    settings = {"num_clients": 5, "clients_per_round": 2, "num_rounds": 3, "seed": seed} | options
    callbacks = settings.pop("callbacks", [])
    keeping = [callback.clients for callback in callbacks if isinstance(callback, Checkpoint)]
    settings["clients"] = (clients or next(iter(keeping), simulated))(executor)
    return Federation(executor, algorithm or FedAvg(), Link(Cast(codec), Cast(down)), split, callbacks, **settings)


class ByHand:
    """What an executor without data has besides its arithmetic."""

    workers = 1

    @property
    def datamodule(self):
        return self

    def num_examples(self, client):
        return 1


@pytest.fixture(scope="session")
def real_data(tmp_path_factory):
    """A folder with the real CIFAR files: DATA_DIR, or restored from beside the checkout."""
    given = Path(os.environ.get("DATA_DIR", "/nowhere"))
    if (given / "cifar-100-python" / "train").is_file() and (given / "cifar-10-batches-py").is_dir():
        return given
    packed = SHARED_DATA / "cifar_packed"
    if not packed.is_dir():
        pytest.skip("the real data sets are not at hand")
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "data"
    with FileLock(f"{folder}.lock"):  # once for all of pytest-xdist's workers
        if not folder.exists():
            restore = [sys.executable, SHARED_DATA / "restore.py", packed, folder]
            subprocess.run(restore, check=True, capture_output=True)
    return folder
