"""The connection by which a variant, in its own process, waits for the driver before each round."""

import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

import torch

DESCRIPTOR = "BENCHMARK_DESCRIPTOR"  # environment variable with the connection's inherited file descriptor
PACKAGES = ("torch", "pytorch-lightning", "flwr", "ray", "pfl", "fedlab")


class Pace:
    """The child's end of its connection to benchmarks/rounds.py."""

    def __init__(self) -> None:
        self.connection = Connection(int(os.environ[DESCRIPTOR]))
        self.connection.send({"threads": torch.get_num_threads(), "versions": dict(_versions())})

    def next_round(self, model: Callable[[], Mapping[str, torch.Tensor]]) -> bool:
        """Wait for the driver; False if there are no more rounds. Sends the global model if the driver asks for it."""
        while (word := self.connection.recv()) == "model":
            self.connection.send({name: tensor.detach().cpu().numpy() for name, tensor in model().items()})
        return word == "train"

    def round_done(self, num_steps: int, **about: Any) -> None:
        """Report the end of the round with its number of optimizer steps and any other facts."""
        self.connection.send({"num_steps": num_steps, **about})


def _versions() -> Any:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
