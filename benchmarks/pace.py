"""How a variant, in a process of its own, is held between rounds: it trains only at the driver's word."""

import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

import torch

DESCRIPTOR = "BENCHMARK_DESCRIPTOR"  # environment variable: the number of the connection's inherited descriptor
PACKAGES = ("torch", "pytorch-lightning", "flwr", "ray", "pfl", "fedlab")


class Pace:
    """The child's end of its connection to benchmarks/rounds.py."""

    def __init__(self) -> None:
        self.connection = Connection(int(os.environ[DESCRIPTOR]))
        self.connection.send({"threads": torch.get_num_threads(), "versions": dict(_versions())})

    def next_round(self, model: Callable[[], Mapping[str, torch.Tensor]]) -> bool:
        """Wait for the word to train a round; False: there is none to come. Hands out the global model on demand."""
        while (word := self.connection.recv()) == "model":
            self.connection.send({name: tensor.detach().cpu().numpy() for name, tensor in model().items()})
        return word == "train"

    def round_done(self, num_steps: int, **about: Any) -> None:
        """Tell that the round is over, with the number of optimizer steps in it and what else was learned."""
        self.connection.send({"num_steps": num_steps, **about})


def _versions() -> Any:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
