"""FedAvg in FedLab's standalone mode (Zeng et al. 2023), serial trainer: `python fedlab_simulation.py <workload>`."""

import sys
from collections.abc import Iterator
from itertools import count
from unittest.mock import MagicMock

import torch
from torch import Tensor

from pace import Pace
from workload import WORKLOADS, Workload

try:
    import torchvision  # noqa: F401  FedLab imports it for data sets that are not used here
except (ImportError, RuntimeError):  # PyPI's does not go with the CPU build of torch
    sys.modules["torchvision"] = MagicMock()

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from fedlab.core.standalone import StandalonePipeline


class Batches:
    """A client's batches; every epoch is one iteration."""

    def __init__(self, workload: Workload, client: int, round_index: int) -> None:
        self.epochs = (workload.batches(client, round_index, epoch) for epoch in count())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return next(self.epochs)


class Clients:
    """The clients' data in the server's current round."""

    def __init__(self, workload: Workload, server: "Server") -> None:
        self.workload, self.server = workload, server

    def get_dataloader(self, client: int, batch_size: int) -> Batches:
        """A client's batches from memory; FedLab's own data sets use a DataLoader, which is slower."""
        return Batches(self.workload, client, self.server.round)


class Server(SyncServerHandler):
    """FedLab's synchronous server on the workload's cohorts, until the last round."""

    finished = False

    def __init__(self, workload: Workload) -> None:
        share = workload.clients_per_round / workload.num_clients
        super().__init__(workload.build(), global_round=1_000_000, sample_ratio=share)
        self.workload = workload

    @property
    def if_stop(self) -> bool:
        """Whether the driver's last round is over."""
        return self.finished

    def sample_clients(self) -> list[int]:
        """The workload's cohort."""
        return self.workload.cohort(self.round)


class PacedPipeline(StandalonePipeline):
    """FedLab's loop, which waits where it would evaluate."""

    def __init__(self, server: Server, trainer: SGDSerialClientTrainer) -> None:
        super().__init__(server, trainer)
        self.pace, self.num_steps = Pace(), 0
        trainer.optimizer.register_step_post_hook(self._count)
        self._wait()

    def _count(self, *_: object) -> None:
        self.num_steps += 1

    def _wait(self) -> None:
        self.handler.finished = not self.pace.next_round(self.handler.model.state_dict)

    def evaluate(self) -> None:
        """Report the end of a round and wait for the next."""
        self.pace.round_done(self.num_steps)
        self.num_steps = 0
        self._wait()


def main(name: str) -> None:
    """Train one round at each word of the driver."""
    workload = WORKLOADS[name]
    server = Server(workload)
    trainer = SGDSerialClientTrainer(workload.build(), workload.num_clients)
    trainer.setup_dataset(Clients(workload, server))
    trainer.setup_optim(workload.num_epochs, workload.batch_size, workload.learning_rate)
    PacedPipeline(server, trainer).main()


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
