"""FedAvg in Flower's simulation (Beutel et al. 2020): `python flower_simulation.py <workload> <CPUs an actor>`."""

import sys
from collections.abc import Iterable
from contextlib import suppress

from flower_app import app
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from flwr.simulation import run_simulation

from pace import Pace
from workload import WORKLOADS


class Finished(Exception):
    """The last round is over."""


class PacedFedAvg(FedAvg):
    """Flower's FedAvg on the workload's cohorts, with a wait between rounds."""

    def __init__(self, name: str) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.name, self.workload, self.pace = name, WORKLOADS[name], Pace()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """A message to a node for every client of the cohort; the message names the client."""
        if server_round > 1:
            self.pace.round_done(self.num_steps, threads=f"{self.threads} an actor")
        if not self.pace.next_round(arrays.to_torch_state_dict):
            raise Finished
        cohort = self.workload.cohort(server_round - 1)
        nodes, _ = sample_nodes(grid, self.workload.num_clients, len(cohort))
        return [
            Message(
                RecordDict({"arrays": arrays, "config": self._config(client, server_round - 1)}),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for client, node in zip(cohort, nodes, strict=True)
        ]

    def _config(self, client: int, round_index: int) -> ConfigRecord:
        return ConfigRecord({"workload": self.name, "client": client, "round": round_index})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as Flower does, and count the steps."""
        replies = list(replies)
        metrics = [reply.content["metrics"] for reply in replies]
        self.num_steps, self.threads = sum(int(one["num-steps"]) for one in metrics), metrics[0]["threads"]
        return super().aggregate_train(server_round, replies)


def main(name: str, num_cpus: str) -> None:
    """Train one round at each word of the driver."""
    workload, server = WORKLOADS[name], ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord(workload.build().state_dict())
        PacedFedAvg(name).start(grid, arrays, num_rounds=1_000_000)

    resources = {"client_resources": {"num_cpus": int(num_cpus)}}
    with suppress(Finished):
        run_simulation(server, app, workload.num_clients, backend_config=resources)


if __name__ == "__main__":
    main(*sys.argv[1:])
