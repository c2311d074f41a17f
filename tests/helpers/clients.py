"""Clients of known optimum, and clients that do as they are told."""

import os
import signal
import time
from types import SimpleNamespace

import torch

from fedpara.communication import Link
from fedpara.execution import ClientTask, LocalResult, SerialExecutor
from fedpara.federation import Federation
from fedpara.sharing import Split


class ByHand:
    """What an executor without data has besides its arithmetic."""

    workers, module = 1, SimpleNamespace(network=torch.nn.Identity())

    @property
    def datamodule(self):
        return self

    def num_examples(self, client):
        return 1


class Quadratics(ByHand):
    """Clients f_i(w) = 1/2 (w - b_i)^T A_i (w - b_i), 10 exact gradient steps each; their mean has a known optimum."""

    trainable = ["w"]

    def __init__(self, num_clients=6, dimension=4, learning_rate=0.05):
        generator = torch.Generator().manual_seed(0)
        roots = torch.randn(num_clients, dimension, dimension, generator=generator, dtype=torch.float64)
        self.a = roots @ roots.mT / dimension + 0.5 * torch.eye(dimension, dtype=torch.float64)
        self.b = torch.randn(num_clients, dimension, generator=generator, dtype=torch.float64) * 3
        self.learning_rate = learning_rate
        self.optimum = torch.linalg.solve(self.a.sum(0), (self.a @ self.b[:, :, None]).sum(0)[:, 0])

    def initial_state(self):
        return {"w": torch.zeros(4, dtype=torch.float64)}

    def run(self, tasks):
        for task in tasks:
            w, c = task.state["w"].clone(), task.correction
            for _ in range(10):
                gradient = self.a[task.client] @ (w - self.b[task.client])
                gradient += c.proximal * (w - c.anchor["w"]) if c.proximal else 0
                gradient += c.offset["w"] if c.offset else 0
                w -= self.learning_rate * gradient
            yield LocalResult(task.client, {"w": w}, 1, 10, 10 * self.learning_rate, 0.0, 0.0)

    def evaluate(self, state, client=None):
        return {"distance": float((state["w"] - self.optimum).norm())}


class Exact:
    """A codec that loses nothing of float64."""

    of_updates = False

    def encode(self, state, seed):
        return _Sent(state)

    def decode(self, packet, layout):
        return packet.state


class _Sent:
    def __init__(self, state):
        self.state, self.num_bytes = state, 8 * sum(tensor.numel() for tensor in state.values())


def quadratic_federation(algorithm, num_rounds, clients_per_round=6, num_clients=6, link=None, executor=Quadratics):
    return Federation(
        executor(num_clients), algorithm, link or Link(Exact(), Exact()), Split(["w"]), [],
        num_clients=num_clients, clients_per_round=clients_per_round, num_rounds=num_rounds, eval_every=num_rounds,
        lr_decay=1.0,
    )  # fmt: skip


def distance_after(algorithm, num_rounds, *args, **options):
    federation = quadratic_federation(algorithm, num_rounds, *args, **options)
    for _ in range(num_rounds):
        record = federation.run_round()
    return record.metrics["test/distance"], federation


class Obedient(SerialExecutor):
    """Its clients do as the files in `folder` say, each named by a client."""

    def __init__(self, training, folder=None):
        super().__init__(training)
        self.folder = folder

    def loader(self, client, seed):
        told = self.folder / str(client)
        if told.is_file():
            word = told.read_text()
            if word in ("die", "die once"):
                if word == "die once":
                    told.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "sleep":
                (self.folder / f"asleep-{os.getpid()}").touch()
                time.sleep(60)
            raise Unspeakable(word, 2) if word == "unspeakable" else ValueError(word)
        return super().loader(client, seed)


class Unspeakable(Exception):
    """Pickles, but cannot be made again."""

    def __init__(self, text, number):
        super().__init__(text)


def tasks(executor, clients=range(5)):
    state = executor.initial_state()
    return [ClientTask(client, state, 1.0, seed=client) for client in clients]


def by_hand(executor):
    """What the tasks give without any worker."""
    return [result.state for result in executor.inner.run(tasks(executor))]
