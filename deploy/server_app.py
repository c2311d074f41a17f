"""The Flower app of the SuperLink: it finds the clients' nodes, and sends parcels to them and back."""

import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from flwr.app import Context, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from fedpara.deployment.parcel import Parcel
from fedpara.execution import ClientFailure
from messages import TYPES, content, read_message

log = logging.getLogger(__name__)
NAME = "client-"  # a client's node is registered as this plus the client's number
PULLED_BYTES = 2**26  # of answers that are in memory at once; a larger answer is there alone
app = ServerApp()


class FlowerNodes:
    """Clients as SuperNodes: client 3 is the node whose key was registered under the name `client-3`.

    Args:
        patience_s: seconds to wait for a client that is not connected or does not answer.
        poll_s: seconds between two checks for answers and nodes.
    """

    def __init__(self, grid: Grid, patience_s: float, poll_s: float) -> None:
        self.grid, self.patience_s, self.poll_s = grid, patience_s, poll_s

    def ask(
        self, questions: Mapping[int, Parcel], what: Literal["train", "test"]
    ) -> Iterator[tuple[int, Parcel | ClientFailure]]:
        """Yield answers as they come, then `dropped` clients, not connected, and `late` ones, without an answer.

        `Grid.pull_messages` loads the whole content of all answers that are there, so a few of them are asked for at a
        time: as many as fit in `PULLED_BYTES`, if an answer is as large as its question.
        """
        end = time.monotonic() + self.patience_s
        unsent, asked = set(questions), dict[str, int]()
        largest = max((len(question.payload) for question in questions.values()), default=0)
        at_once = max(1, PULLED_BYTES // (largest + 1))
        while (unsent or asked) and time.monotonic() < end:
            for client, node in self._connected(unsent):
                message = Message(content(questions[client]), node, TYPES[what], ttl=self.patience_s)
                for message_id in filter(None, self.grid.push_messages([message])):
                    unsent.discard(client)
                    asked[message_id] = client
            waiting = list(asked)
            for start in range(0, len(waiting), at_once):
                for reply in self.grid.pull_messages(waiting[start : start + at_once]):
                    sender = asked.pop(reply.metadata.reply_to_message_id, None)
                    if sender is None:  # the node wrote the id itself, and its client stays in `asked`
                        log.warning("an answer to no question: its client will be late")
                    else:
                        yield sender, _read(sender, reply)
            time.sleep(self.poll_s)
        yield from ((client, ClientFailure(client, "dropped")) for client in sorted(unsent))
        yield from ((client, ClientFailure(client, "late")) for client in sorted(asked.values()))

    def _connected(self, clients: set[int]) -> Iterator[tuple[int, int]]:
        """Yield the given clients that are connected, with their nodes."""
        for node in self.grid.get_nodes() if clients else []:
            number = node.name.removeprefix(NAME)
            if node.name.startswith(NAME) and number.isdecimal() and int(number) in clients:
                yield int(number), node.node_id


def _read(client: int, reply: Message) -> Parcel | ClientFailure:
    if reply.has_error():
        return _failure(client, reply)
    try:
        return read_message(reply)
    except ValueError as error:
        return ClientFailure(client, "crashed", error.with_traceback(None), outside=True)  # its frames hold the upload


def _failure(client: int, reply: Message) -> ClientFailure:
    if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
        return ClientFailure(client, "dropped")
    return ClientFailure(client, "crashed", RuntimeError(reply.error.reason), outside=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start the run of a folder, or resume it.

    Raises:
        RuntimeError: the run failed; its log and its summary.json have the reason.
    """
    from fedpara.deployment.server import run  # torch takes seconds to import

    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for every check, which Flower would send up
    given = context.run_config
    for name in ("data", "folder"):
        if not given[name]:
            raise ValueError(f"--run-config: must give {name}=..., a folder on the server")
    nodes = FlowerNodes(grid, float(given["patience-s"]), float(given["poll-s"]))
    try:
        run(shlex.split(str(given["overrides"])), Path(str(given["data"])), Path(str(given["folder"])), nodes)
    except SystemExit as end:
        raise RuntimeError(f"the run failed; see the log in {given['folder']}") from end
