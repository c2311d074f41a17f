"""The floor: FedAvg as a hand-written loop in plain torch, without encoding, logging or abstraction.

benchmarks/rounds.py starts it as `python benchmarks/floor.py <workload> [threads] [memory format]`; no threads: torch's
default number.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from pace import Pace
from workload import WORKLOADS, Workload


def train_client(network: nn.Module, workload: Workload, client: int, round_index: int) -> int:
    """Train `network`, which holds the global model, on a client's examples; returns the number of steps."""
    optimizer = torch.optim.SGD(network.parameters(), lr=workload.learning_rate)
    num_steps = 0
    for epoch in range(workload.num_epochs):
        for inputs, labels in workload.batches(client, round_index, epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            num_steps += 1
    return num_steps


def run_round(
    network: nn.Module, model: dict[str, Tensor], workload: Workload, round_index: int
) -> tuple[dict[str, Tensor], int]:
    """The global model after a round (the mean over clients of equal size) and the number of steps."""
    mean = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    num_steps = 0
    for client in workload.cohort(round_index):
        network.load_state_dict(model)
        num_steps += train_client(network, workload, client, round_index)
        for name, tensor in network.state_dict().items():
            mean[name].add_(tensor, alpha=1 / workload.clients_per_round)
    return mean, num_steps


def main(name: str, threads: str = "", memory_format: str = "contiguous_format") -> None:
    """Train one round at each word of the driver."""
    if threads:
        torch.set_num_threads(int(threads))
    workload, round_index = WORKLOADS[name], 0
    network = workload.build()
    to: Any = network.to  # torch's stubs lack its memory_format
    to(memory_format=getattr(torch, memory_format))
    model = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    pace = Pace()
    while pace.next_round(lambda: model):
        mean, num_steps = run_round(network, model, workload, round_index)
        model.update(mean)
        round_index += 1
        pace.round_done(num_steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
