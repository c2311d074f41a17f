"""A client's half of a round: a function of what it received and what it keeps, wherever the client is."""

from dataclasses import dataclass, field

from fedpara.algorithms.base import FedAvg
from fedpara.communication import Link, Packet
from fedpara.execution.base import ClientTask, LocalResult
from fedpara.sampling import derive_seed
from fedpara.sharing import Split
from fedpara.state import Layout, Parts, PartsLayout, State, arranged, is_finite, layout_of, parts_layout_of


@dataclass(frozen=True)
class Kept:
    """What stays with a client from round to round, and never travels.

    Attributes:
        personal: its part of the model; empty before its first round, and where nothing is personal.
        memory: what the algorithm lets it remember; likewise.
    """

    personal: State = field(default_factory=dict)
    memory: State = field(default_factory=dict)


@dataclass(frozen=True)
class Broadcast:
    """What the server sends at the start of a round.

    Attributes:
        round: rounds finished before it.
        packet: what travels, once to each client of the round.
        received: what every client reads from it.
    """

    round: int
    packet: Packet
    received: Parts


@dataclass(frozen=True)
class Report:
    """Figures of one client's local training, which the server may know.

    Attributes:
        client: index of the client.
        num_examples: training examples of the client.
        num_steps: optimizer steps that were applied.
        learning_rate_sum: sum of their learning rates.
        train_loss: mean over all examples of all local epochs, in nats.
        seconds: wall time of the training.
        finite: whether the trained model is; a personal part is not for the server to see.
        accuracy: of the trained model, from 0 to 1, on the client's own test distribution; None: not tested.
    """

    client: int
    num_examples: int
    num_steps: int
    learning_rate_sum: float
    train_loss: float
    seconds: float
    finite: bool
    accuracy: float | None = None


@dataclass(frozen=True)
class Reply:
    """What a client sends back; nothing else of it reaches the server.

    Attributes:
        report: figures of the training.
        packet: the upload, encoded.
    """

    report: Report
    packet: Packet


@dataclass(frozen=True)
class Layouts:
    """What both ends know of each other's messages, and of what clients keep, before any of it is there."""

    broadcast: PartsLayout
    upload: PartsLayout
    personal: Layout
    memory: Layout

    @classmethod
    def of(cls, algorithm: FedAvg, split: Split, initial: State, server: Parts) -> "Layouts":
        """Those of a federation.

        Args:
            algorithm: bound to it.
            initial: the freshly built model.
            server: what the server keeps, at any time.
        """
        message = algorithm.broadcast(server)
        upload = algorithm.upload(message, message["model"], 0.0, {})  # as of a client that applied no step
        personal = layout_of(split.personal_part(initial))
        return cls(parts_layout_of(message), parts_layout_of(upload), personal, algorithm.remembered(server))


@dataclass(frozen=True)
class ClientSide:
    """What every client of a federation does between a broadcast and its upload, the training itself aside.

    Attributes:
        algorithm: bound to the federation.
        initial: the freshly built model: the common start of what is personal.
        layouts: of what is sent and kept.
        seed, lr_decay: of the federation.
    """

    algorithm: FedAvg
    link: Link
    split: Split
    initial: State
    layouts: Layouts
    seed: int
    lr_decay: float

    def receive(self, packet: Packet, round_index: int) -> Broadcast:
        """The broadcast of a round, read.

        Raises:
            ValueError: it is of another model.
        """
        return Broadcast(round_index, packet, self.link.decode_down(packet, self.layouts.broadcast))

    def model(self, shared: State, kept: Kept) -> State:
        """A whole model in the order of its own names."""
        personal = kept.personal or self.initial
        return {name: shared[name] if name in shared else personal[name] for name in self.initial}

    def task(self, client: int, broadcast: Broadcast, kept: Kept, attempt: int = 0) -> ClientTask:
        """The training of a client that starts from what it received and what it kept."""
        seed = derive_seed(self.seed, broadcast.round, client, "local training")
        correction = self.algorithm.correction(broadcast.received, kept.memory)
        state = self.model(broadcast.received["model"], kept)
        return ClientTask(client, state, self.lr_decay**broadcast.round, seed, correction, attempt)

    def reply(self, result: LocalResult, broadcast: Broadcast, kept: Kept) -> tuple[Reply, Kept]:
        """Send up what is shared, keep what is personal, remember what the server reads.

        Returns:
            What travels, and what the client keeps if the round counts.
        """
        received, shared = broadcast.received, self.split.shared_part(result.state)
        upload = self.algorithm.upload(received, shared, result.learning_rate_sum, kept.memory)
        seed, known = derive_seed(self.seed, broadcast.round, result.client, "upload"), known_to_both(received)
        packet = self.link.encode_up(arranged(upload, self.layouts.upload), known, seed)
        memory: State = {}
        if self.layouts.memory:
            sent = self.link.decode_up(packet, self.layouts.upload, known)
            memory = self.algorithm.remember(received, sent, kept.memory)
        return Reply(_report(result), packet), Kept(self.split.personal_part(result.state), memory)


def _report(result: LocalResult) -> Report:
    return Report(
        result.client, result.num_examples, result.num_steps, result.learning_rate_sum, result.train_loss,
        result.seconds, is_finite(result.state),
    )  # fmt: skip


def known_to_both(received: Parts) -> Parts:
    """What server and client hold when the upload is sent, under the names of the upload."""
    return {"model": received["model"]}
