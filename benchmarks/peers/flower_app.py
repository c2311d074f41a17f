"""Flower's client: the bare loop's local training, between Flower's records."""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from floor import train_client
from workload import WORKLOADS, Workload

app = ClientApp()


@cache  # once in every actor
def _prepared(name: str) -> tuple[Workload, nn.Module]:
    return WORKLOADS[name], WORKLOADS[name].build()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the client that the message names."""
    config = message.content["config"]
    workload, network = _prepared(config["workload"])
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    num_steps = train_client(network, workload, config["client"], config["round"])
    metrics = MetricRecord(
        {"num-examples": workload.num_examples, "num-steps": num_steps, "threads": torch.get_num_threads()}
    )
    return Message(RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics}), reply_to=message)
