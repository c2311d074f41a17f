"""The limit of the machine: the floor's loop in a process per core, with one thread and the fastest float32 kernels.

The memory format is the faster one, and matrices are multiplied as the executors do it (`fedpara.products`).

Weights are exchanged through shared memory and nothing else is. benchmarks/rounds.py starts it as
`python benchmarks/limit.py <workload>`.
"""

import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn

from fedpara.heap import keep_freed_memory
from fedpara.products import fastest_float32
from floor import train_client
from pace import Pace
from workload import WORKLOADS, Workload


class Worker:
    """A process that trains the clients it is sent, from the shared model into a shared sum of its own.

    Args:
        model: the global model, in shared memory.
    """

    def __init__(self, workload: Workload, model: dict[str, Tensor]) -> None:
        self.sum = {name: torch.zeros_like(tensor).share_memory_() for name, tensor in model.items()}
        context = multiprocessing.get_context("fork")  # it has the data without a copy
        self.connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, workload, model, self.sum), daemon=True)
        process.start()


def _serve(connection: Connection, workload: Workload, model: dict[str, Tensor], total: dict[str, Tensor]) -> None:
    network = workload.build()
    best: Any = min((torch.contiguous_format, torch.channels_last), key=lambda f: _seconds(workload, f))
    to: Any = network.to  # torch's stubs lack its memory_format
    to(memory_format=best)
    while True:
        clients, round_index = connection.recv()
        num_steps = 0
        for tensor in total.values():
            tensor.zero_()
        for client in clients:
            network.load_state_dict(model)
            num_steps += train_client(network, workload, client, round_index)
            for name, tensor in network.state_dict().items():
                total[name].add_(tensor)
        connection.send((num_steps, str(best)))


def _seconds(workload: Workload, memory_format: Any, repeats: int = 5) -> float:
    """The least time of a step in a memory format."""
    network, batch = workload.build(), next(workload.batches(0, 0, 0))
    to: Any = network.to
    to(memory_format=memory_format)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main(name: str) -> None:
    """Train one round at each word of the driver."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.set_float32_matmul_precision(fastest_float32())
    workload, round_index = WORKLOADS[name], 0
    workload.data  # noqa: B018  # before the fork
    model = {name: tensor.clone().share_memory_() for name, tensor in workload.build().state_dict().items()}
    workers = [Worker(workload, model) for _ in range(os.cpu_count() or 1)]
    pace = Pace()
    while pace.next_round(lambda: model):
        cohort = workload.cohort(round_index)
        for number, worker in enumerate(workers):
            worker.connection.send((cohort[number :: len(workers)], round_index))
        done = [worker.connection.recv() for worker in workers]
        for name, tensor in model.items():
            tensor.zero_()
            for worker in workers:
                tensor.add_(worker.sum[name], alpha=1 / len(cohort))
        round_index += 1
        pace.round_done(sum(steps for steps, _ in done), memory_formats=[used for _, used in done])


if __name__ == "__main__":
    main(*sys.argv[1:])
