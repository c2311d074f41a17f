"""The server of a federation whose clients are behind a network; the round itself is `fedpara.federation`'s."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

import folders
from fedpara.algorithms.base import Upload
from fedpara.app.build import Experiment, build_experiment, build_federation
from fedpara.app.composition import compose
from fedpara.app.errors import ConfigurationError
from fedpara.app.run import Launch
from fedpara.app.run import run as run_locally
from fedpara.client import Kept, Reply
from fedpara.execution import ClientFailure
from fedpara.federation import Broadcast, Federation, Tally
from fedpara.files import write_atomically
from fedpara.record import RoundRecord
from fedpara.runs import PARTICIPANTS, Run
from node import read_answer
from parcel import Nodes, Parcel, Value, payload

log = logging.getLogger(__name__)


class DeployedFederation(Federation):
    """A federation that has no client's data, and nothing of what clients keep but after which round they kept it.

    Which clients' rounds counted is in `participants.jsonl` of the run folder, a line a round.

    Args:
        nodes: the clients.
        folder: the run folder; its name tells the run from others in the clients' folders.

    Attributes:
        last: of each client that took part, the last round of its that counted, from 1.
        test_bytes: sent in the round at hand to have clients' models tested; no part of training, and not counted.
    """

    def __init__(self, *args: Any, nodes: Nodes, folder: Path, **options: Any) -> None:
        super().__init__(*args, **options)
        self.nodes, self.folder = nodes, folder
        self.last: dict[int, int] = {}
        self.test_bytes = 0

    def fit(self) -> None:
        """Train, from what the checkpoint knows of: a round that was done but not yet in it is done again."""
        path = self.folder / PARTICIPANTS
        whole, _, _ = (path.read_text() if path.is_file() else "").rpartition("\n")  # the last line may be half a one
        rows = [row for row in map(json.loads, whole.splitlines()) if row["round"] <= self.round]
        write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
        self.last = {client: row["round"] for row in rows for client in row["clients"]}
        super().fit()

    def run_round(self) -> RoundRecord:
        """One round, noted before any callback hears of it."""
        self.test_bytes = 0
        record = super().run_round()
        clients = sorted(client for client, last in self.last.items() if last == record.round)
        with (self.folder / PARTICIPANTS).open("a") as stream:
            stream.write(json.dumps({"round": record.round, "clients": clients, "test_bytes": self.test_bytes}) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return record

    def replies(
        self, chosen: list[int], broadcast: Broadcast, attempt: int, tally: Tally
    ) -> Iterator[Reply | ClientFailure]:
        """Those of the nodes, once all are there, in the order in which a simulated round has them."""
        values = {"round": self.round, "attempt": attempt, "test": tally.tests_trained}
        received, replies, failures = broadcast.received, [], []
        upload = self.algorithm.upload(received, received["model"], 0.0, {})  # as of a client that applied no step
        for client, given in tally.awaited(self._ask("train", chosen, broadcast, values)):
            try:
                if isinstance(given, ClientFailure):
                    failures.append(given)
                else:
                    replies.append(read_answer(client, given, upload))
            except (KeyError, TypeError, ValueError) as error:
                failures.append(ClientFailure(client, "crashed", error, outside=True))
        replies.sort(key=lambda reply: (-reply.result.num_examples, reply.result.client))
        yield from replies
        yield from failures

    def receive(self, reply: Reply, broadcast: Broadcast, tally: Tally) -> Upload | ClientFailure:
        """Read the upload; one of another model or another version is its client's failure."""
        try:
            return super().receive(reply, broadcast, tally)
        except ValueError as error:
            return ClientFailure(reply.result.client, "crashed", error, outside=True)

    def keep(self, kept: dict[int, Kept]) -> None:
        """The clients have it already; what the server keeps is that their round counts."""
        self.last.update(dict.fromkeys(kept, self.round + 1))

    def evaluate_personal(self, round_index: int) -> tuple[float, ...]:
        """Accuracy of every client's model, from 0 to 1, as the clients that answer measured it."""
        broadcast = self.broadcast(round_index)
        self.test_bytes = broadcast.packet.num_bytes * self.num_clients
        answers = dict(self._ask("test", range(self.num_clients), broadcast, {}))
        silent = [client for client, given in answers.items() if isinstance(given, ClientFailure)]
        if silent:
            log.warning("round %d: not tested: %s", self.round + 1, ", ".join(map(str, sorted(silent))))
        accuracy = {c: given.values["accuracy"] for c, given in answers.items() if isinstance(given, Parcel)}
        return tuple(float(accuracy[client]) for client in sorted(accuracy))

    def _ask(
        self, what: Literal["train", "test"], clients: Iterable[int], broadcast: Broadcast, values: Mapping[str, Value]
    ) -> Iterator[tuple[int, Parcel | ClientFailure]]:
        sent = payload(broadcast.packet)
        common = {"run": self.folder.name, **values}
        questions = {c: Parcel(sent, {"client": c, "last": self.last.get(c, 0), **common}) for c in clients}
        return self.nodes.ask(questions, what)


def build(cfg: DictConfig, data: Path, nodes: Nodes) -> tuple[Experiment, Federation]:
    """As `fedpara.app.build.build`, for clients elsewhere.

    Args:
        data: the folder with the server's test set.

    Raises:
        ConfigurationError: checkpoints would lie further apart than clients can go back, or faults are to be made up.
    """
    for name, share in cfg.faults.items():
        if name != "_target_" and share:
            raise ConfigurationError(f"faults.{name}={share}: must be 0, real clients fail by themselves")
    checkpoint = cfg.callbacks.get("checkpoint")
    if checkpoint and checkpoint.every != 1:
        every = f"callbacks.checkpoint.every={checkpoint.every}"
        raise ConfigurationError(f"{every}: must be 1, a client can go back by one round")
    experiment = build_experiment(folders.localised(cfg, data, None))
    make = partial(DeployedFederation, nodes=nodes, folder=Path(cfg.paths.output_dir))
    return experiment, build_federation(cfg, experiment, make)


def run(overrides: list[str], data: Path, folder: Path, nodes: Nodes) -> None:
    """A run as by `python src/train.py`, in the run folder; one that is there already goes on.

    Raises:
        SystemExit: it failed, and has said why in one line.
    """
    own = [f"paths.output_dir='{folder}'", "callbacks.partition_picture=null"]  # who holds what is not known here
    if Run(folder).has_checkpoint:
        own.append(f"resume='{folder}'")
    typed = [*overrides, *own]
    run_locally(compose(typed, folder), partial(build, data=data, nodes=nodes), Launch(typed))
