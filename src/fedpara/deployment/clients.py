"""Clients behind a network, as the server's partner, and the server's note of whose rounds counted."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Literal, TypeVar

from fedpara.deployment.parcel import Nodes, Parcel, Value, payload, read_answer, read_score
from fedpara.execution import ClientFailure
from fedpara.federation import Broadcast, Federation, FederationCallback, Reply, Report, in_turn
from fedpara.federation.tally import Tally
from fedpara.files import UnusableFile, write_atomically
from fedpara.record import RoundRecord
from fedpara.runs import PARTICIPANTS
from fedpara.state import State

log = logging.getLogger(__name__)
Read = TypeVar("Read")


class Participants(FederationCallback):
    """Notes whose rounds counted: `participants.jsonl` in the run folder, one line a round.

    It must come before the checkpoint, so that a checkpoint never knows of a round that is not noted.

    Args:
        folder: the run folder.

    Attributes:
        last: by client, its last round that counted, from 1.
        test_bytes: bytes that were sent in this round to test clients' models; training does not need them, so that
            they are not in the run's counted bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PARTICIPANTS
        self.last: dict[int, int] = {}
        self.test_bytes = 0

    def on_fit_start(self, federation: Federation) -> None:
        """Forget the rounds after the checkpoint, which are done again.

        Raises:
            UnusableFile: the file is not such a note.
        """
        try:
            text = self.path.read_text() if self.path.is_file() else ""
            whole, _, _ = text.rpartition("\n")  # the last line may be half a one
            rows = [row for row in map(json.loads, whole.splitlines()) if row["round"] <= federation.round]
            self.last = {client: row["round"] for row in rows for client in row["clients"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnusableFile(f"{self.path}: not a list of rounds, or damaged ({error})") from error
        write_atomically(self.path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        if federation.catch_up:
            federation.catch_up.last = dict(self.last)

    def on_round_end(self, federation: Federation, record: RoundRecord) -> None:
        """Note the round, and force the line onto the disk."""
        clients = sorted(client for client, last in self.last.items() if last == record.round)
        with self.path.open("a") as stream:
            stream.write(json.dumps({"round": record.round, "clients": clients, "test_bytes": self.test_bytes}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.test_bytes = 0


class Spool:
    """Replies that wait for their turn on the disk: the turn depends on numbers that all clients must have sent.

    Args:
        file: empty; takes the uploads.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: list[tuple[Report, int, int]] = []  # with the start and the size of each upload

    def add(self, reply: Reply) -> None:
        """Write the upload to the disk.

        Raises:
            OSError: the disk is full.
        """
        start = self._file.tell()
        self._places.append((reply.report, start, self._file.write(payload(reply.packet))))

    def in_turn(self) -> Iterator[Reply]:
        """Read the replies, one at a time, in the order of a simulated round."""
        for report, start, size in sorted(self._places, key=lambda p: in_turn(p[0].num_examples, p[0].client)):
            self._file.seek(start)
            yield Reply(report, Parcel(self._file.read(size), {}).packet)


class DeployedClients:
    """Clients behind a network. They hold their data and their states; the server knows the round of those states.

    Args:
        nodes: the clients.
        folder: the run folder; its name tells the run from others in the clients' folders.
        participants: whose rounds counted.

    Attributes:
        share: whether the clients' scores are shares, from 0 to 1; others are refused.
    """

    workers = 0  # this machine trains nobody
    store = None

    def __init__(self, nodes: Nodes, folder: Path, participants: Participants) -> None:
        self.nodes, self.folder, self.participants = nodes, folder, participants
        self.share = False

    def train(
        self, cohort: Sequence[int], broadcast: Broadcast, attempt: int, test: bool
    ) -> Iterator[Reply | ClientFailure]:
        """Ask the nodes; once all have answered, yield their replies in the order of a simulated round.

        One upload at a time is in memory. The others are in a file without a name, which ends with the process. An
        answer of wrong values is its client's failure.
        """
        failures = list[ClientFailure]()
        values = {"round": broadcast.round, "attempt": attempt, "test": test}
        with TemporaryFile(dir=self.folder) as file:
            spool = Spool(file)
            for client, given in self._ask("train", cohort, broadcast, values):
                reply = _read(client, given, partial(read_answer, client, test=test, share=self.share))
                if isinstance(reply, ClientFailure):
                    failures.append(reply)
                else:
                    spool.add(reply)
            yield from spool.in_turn()
        yield from failures

    def keep(self, round_number: int, clients: Sequence[int]) -> None:
        """Note that the round of these clients counts. They have written their states already."""
        self.participants.last.update(dict.fromkeys(clients, round_number))

    def evaluate(self, clients: Iterable[int], broadcast: Broadcast) -> dict[int, float]:
        """The headline metrics that the clients measured, without clients whose answer is missing or wrong."""
        asked = list(clients)
        self.participants.test_bytes = sum(broadcast.to(client).num_bytes for client in asked)
        answers = self._ask("test", asked, broadcast, {"round": broadcast.round})
        scores, lost = dict[int, float](), Tally()
        for client, given in answers:
            score = _read(client, given, partial(read_score, share=self.share))
            if isinstance(score, ClientFailure):
                lost.failures.append(score)
            else:
                scores[client] = score
        if lost.failures:
            log.warning("round %d: not tested%s", broadcast.round, lost)
        return scores

    def model(self, client: int, broadcast: Broadcast) -> State:
        """Raise ValueError: the model is on the client's own machine."""
        raise ValueError(f"client={client}: its model is on its own machine")

    def close(self) -> None:
        """Do nothing: the nodes keep running."""

    def _ask(
        self, what: Literal["train", "test"], clients: Iterable[int], broadcast: Broadcast, values: Mapping[str, Value]
    ) -> Iterator[tuple[int, Parcel | ClientFailure]]:
        last, common = self.participants.last, {"run": self.folder.name, **values}
        sent = cache(payload)  # clients that are sent the same packet share its bytes
        questions = {c: Parcel(sent(broadcast.to(c)), {"client": c, "last": last.get(c, 0), **common}) for c in clients}
        return self.nodes.ask(questions, what)


def _read(client: int, given: Parcel | ClientFailure, read: Callable[[Parcel], Read]) -> Read | ClientFailure:
    """What a client's answer says; an answer that cannot be read is the client's failure.

    Args:
        read: reads an answer, or raises TypeError or ValueError.
    """
    if isinstance(given, ClientFailure):
        return given
    try:
        return read(given)
    except (TypeError, ValueError) as error:
        # its frames hold the upload, and failures wait in memory for the end of the round
        return ClientFailure(client, "crashed", error.with_traceback(None), outside=True)
