"""The Flower app of a SuperNode, which only translates messages. Flower starts a process of it for each message."""

import shlex
from pathlib import Path
from typing import Literal

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from messages import content, read_message

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One client's half of a round."""
    return _answer(message, context, "train")


@app.evaluate()
def test(message: Message, context: Context) -> Message:
    """The client's model on its own test distribution."""
    return _answer(message, context, "test")


def _answer(message: Message, context: Context, what: Literal["train", "test"]) -> Message:
    from fedpara.deployment import Node  # torch takes seconds to import

    folder = context.node_config.get("folder")
    if not isinstance(folder, str):
        raise ValueError('--node-config: must give folder="...", the folder with the data of this client')
    node = Node(shlex.split(str(context.run_config["overrides"])), Path(folder))
    return Message(content(getattr(node, what)(read_message(message))), reply_to=message)
